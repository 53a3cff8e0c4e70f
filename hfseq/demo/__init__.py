"""Demo page for a trained model."""
