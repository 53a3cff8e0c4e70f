"""Data: reading, embedded pairs, batching."""
