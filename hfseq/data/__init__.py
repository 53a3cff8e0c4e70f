"""Reading, streaming, tokenization, collation and token-budget batching of datasets."""
