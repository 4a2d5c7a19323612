"""The worker as a process, from the queue to the finished log."""
