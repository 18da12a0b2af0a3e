"""A run on disk: the folder that everything above reads and writes."""
