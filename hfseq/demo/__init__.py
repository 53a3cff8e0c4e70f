"""The demo page of a model."""
