"""Training one run: its configuration, its loop, and what the loop needs."""
