"""Many launches at once: how fast they become training jobs."""

from __future__ import annotations

from bench.launches import message, names
from bench.measurement import WORKER, Measurement, Target
from bench.scenarios.windows import measurement_of
from bench.stage import Stage, until

_MARGIN = 60.0


async def burst(stage: Stage, *, count: int, quota: float | None) -> Measurement:
    """`count` messages on the queue at once; `quota`: CreateTrainingJob calls a second, None: as many as may be."""
    await stage.fresh(CreateTrainingJob=quota)
    settings = {} if quota else {"LAUNCH_RATE_CREATE_TRAINING_JOB": "100"}
    ledger = stage.folder / f"burst-{quota}.db"
    async with stage.worker(ledger, settings) as worker:
        await stage.control("window")
        worker.program.begin_window()
        sent_at = float((await stage.control("time"))["now"])
        await stage.control("messages", bodies=[message(name) for name in names("burst", count)])

        async def all_created() -> bool:
            report = await stage.report()
            return len(report["created_at"]) + int(report["dead"]) >= count

        await until(all_created, f"{count} jobs", seconds=count / (quota or 5) * 1.5 + _MARGIN, every=0.25)
        report = await stage.report()
        usage = worker.program.usage()
    created = [at - sent_at for at in report["created_at"]]
    rate = len(created) / max(created)
    failed = report["dead"] + report["wandb"]["failed_items"]
    if quota:
        title, share = f"burst of {count}, quota {quota:g}/s", rate / quota
        result = f"{rate:.2f}/s, {share:.0%} of the quota, {failed} failed"
        target = Target("≥ 95 % of the quota, 0 failed", share >= 0.95 and not failed)
    else:
        title, result = f"burst of {count}, no quota", f"{rate:.1f} submits/s, {failed} failed"
        target = Target("≥ 25/s", rate >= 25 and not failed)
    return measurement_of(
        title,
        WORKER,
        report,
        usage,
        result=result,
        target=target,
        numbers={"submits_per_second": rate, "failed": failed, "ready_after": worker.ready_after},
        samples={"created": tuple(created)},
    )
