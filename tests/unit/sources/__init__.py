"""Sources: what is written, what is refused."""
