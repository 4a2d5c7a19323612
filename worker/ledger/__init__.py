"""What must survive a worker: one record a launch, worker beats, locks. A port with two adapters."""
