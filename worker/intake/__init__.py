"""Where launches come from: W&B's launch queues, mirrored into SQS and reported back to, and messages under a lease."""
