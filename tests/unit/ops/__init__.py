"""What operators see: rates, logs, health."""
