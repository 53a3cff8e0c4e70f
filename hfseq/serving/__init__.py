"""The HTTP server: request state, continuous batching, the application."""
