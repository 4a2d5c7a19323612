"""Requests built by W&B's own launch agent and by ours, side by side."""
