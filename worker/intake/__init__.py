"""Where launches come from: SQS messages under a lease, and W&B's launch queue they are reported to."""
