"""A checkout becomes an image in ECR; a ready image becomes a pinned one."""
