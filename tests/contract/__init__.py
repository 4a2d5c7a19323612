"""One suite a port, run against each of its adapters; the doubles against the real SDKs."""
