"""Using what was trained: export, evaluation, generation."""
