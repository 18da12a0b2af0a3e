"""The objective: bags in, multi-hot cross-entropy out. Needs torch and nothing else of ours."""
