"""Real clients against the local stack."""
