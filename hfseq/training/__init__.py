"""Training: command lines, checkpoints, callbacks, reports, and what the recipes share."""
