"""The plan of a run: which bag size when, and what that costs. Pure Python; nothing here needs torch."""
