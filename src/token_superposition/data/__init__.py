"""Data: from text to token shards to the batches of a run."""
