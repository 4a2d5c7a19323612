"""Start-up: from the process's first moment until /readyz says yes, and how much CPU that takes."""

from __future__ import annotations

from statistics import median

from bench.measurement import WORKER, Measurement, at_most
from bench.scenarios.windows import measurement_of
from bench.stage import Stage


async def start(stage: Stage, *, times: int) -> Measurement:
    """Start a worker with nothing to do, several times; a call takes 100 ms, as all others in the bench."""
    await stage.fresh()
    ready: list[float] = []
    cpu: list[float] = []
    for number in range(times):
        async with stage.worker(stage.folder / f"start-{number}.db") as worker:
            ready.append(worker.ready_after)
            cpu.append(worker.ready_cpu)
            report, usage = await stage.report(), worker.program.usage()
    words = f"{median(ready):.2f} s, of which {median(cpu):.2f} s CPU"
    why = f"{median(cpu):.2f} s are the worker's own CPU: imports and AWS's clients"
    return measurement_of(
        f"start, {times} times",
        WORKER,
        report,
        usage,
        result=words,
        judged=(at_most("start", median(ready), 1.0, words, why=why),),
        numbers={"ready_after": ready, "ready_cpu": cpu},
        notes=("median; the first start also reads the code from disk",),
    )
