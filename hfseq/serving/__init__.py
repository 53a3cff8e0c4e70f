"""The HTTP server: requests, the continuous batcher, the application."""
