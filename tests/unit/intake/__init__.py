"""Messages under leases, and every outcome settled."""
