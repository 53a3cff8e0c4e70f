"""Generation, scoring and classification with trained models; no training."""
