"""The job becomes visible in W&B: the companion run, its console, facts and files."""
