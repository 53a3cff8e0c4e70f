"""Generating, scoring and classifying with trained models; nothing here trains."""
