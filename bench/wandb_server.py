"""`python -m bench.wandb_server LATENCY`: the project's W&B double as a process, for W&B's own agent.

The first line of standard output is the address. Each call waits LATENCY seconds."""

from __future__ import annotations

import asyncio
import sys

from bench.launches import ENTITY
from worker.local.wandb_double import running_wandb_double


async def _serve(latency: float) -> None:
    async with running_wandb_double(0, ENTITY) as double:
        double.fault("", latency=latency, times=1 << 60)
        sys.stdout.write(f"{double.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
