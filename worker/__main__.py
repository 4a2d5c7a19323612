"""`python -m worker` is the command `launch-worker`."""

from worker.cli import main

main()
