"""Embedded datasets, which need no download."""
