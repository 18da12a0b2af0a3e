"""Superposition inside the training stacks that people have: thin, beside `train`, never importing it."""
