"""Publishing to the model Hub, and the model card."""
