"""Publishing models on the Hub, with a model card."""
