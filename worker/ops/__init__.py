"""What operators see: logs, metrics, health, rates."""
