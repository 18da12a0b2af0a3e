"""Models that take bags: any Hugging Face causal language model, by its own forward."""
