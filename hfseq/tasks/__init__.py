"""Tasks: rows, encoding, loss, predictions, scores and baselines, for every recipe and both drivers."""
