"""Many launches at once: how fast they become training jobs."""

from __future__ import annotations

from bench.launches import message, names
from bench.measurement import WORKER, Judged, Measurement, at_least
from bench.scenarios.windows import Window, measurement_of
from bench.stage import Stage, until

_MARGIN = 60.0


async def burst(stage: Stage, *, count: int, quota: float | None) -> Measurement:
    """`count` messages on the queue at once; `quota`: CreateTrainingJob calls a second, None: as many as may be."""
    await stage.fresh(CreateTrainingJob=quota)
    settings = {} if quota else {"LAUNCH_RATE_CREATE_TRAINING_JOB": "100"}
    ledger = stage.folder / f"burst-{quota}.db"
    async with stage.worker(ledger, settings) as worker:
        window = await Window.begin(stage, worker)
        sent_at = float((await stage.control("time"))["now"])
        await stage.control("messages", bodies=[message(name) for name in names("burst", count)])

        async def all_created() -> bool:
            report = await stage.report()
            return len(report["created_at"]) + int(report["dead"]) >= count

        await until(all_created, f"{count} jobs", seconds=count / (quota or 5) * 1.5 + _MARGIN, every=0.25)
        report, usage = await window.end()
    created = [at - sent_at for at in report["created_at"]]
    rate = len(created) / max(created)
    failed = report["dead"] + report["wandb"]["failed_items"]
    title, judged = _judged(count, quota, rate, failed)
    return measurement_of(
        title,
        WORKER,
        report,
        usage,
        result=judged.value,
        judged=(judged,),
        numbers={"submits_per_second": rate, "failed": failed, "ready_after": worker.ready_after},
        samples={"created": tuple(created)},
    )


def _judged(count: int, quota: float | None, rate: float, failed: int) -> tuple[str, Judged]:
    """The scenario's name, and what was found."""
    if quota:
        share = rate / quota
        words = f"{rate:.2f}/s, {share:.0%} of the quota, {failed} failed"
        name = f"burst of {count}, quota {quota:g}/s"
        return name, at_least("quota", share, 0.95, words, and_also=not failed)
    words = f"{rate:.1f} submits/s, {failed} failed"
    return f"burst of {count}, no quota", at_least("submits", rate, 25, words, and_also=not failed)
