"""`python -m bench.simulator [PORT]`: serve until ended; the first line of standard output is the address."""

from __future__ import annotations

import asyncio
import gc
import sys

from bench.simulator.running import running_simulator


async def _serve(port: int) -> None:
    async with running_simulator(port) as simulator:
        sys.stdout.write(f"{simulator.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    gc.freeze()
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
