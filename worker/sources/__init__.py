"""A launch's code becomes a checkout with a content id."""
