"""What W&B is told about a job, beside its log: the facts when it is opened, how it stands, its end, alerts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal

from worker.clients.wandb_api import WandbRefused
from worker.errors import Never
from worker.intake.unstarted import UnstartedRuns
from worker.launch.record import LaunchRecord
from worker.ledger.held import HeldLaunch
from worker.ops.logging import get_logger
from worker.ops.warning_codes import code_of
from worker.tracking.facts import launch_summary, run_facts
from worker.tracking.port import Companion
from worker.tracking.prices import Prices
from worker.training.create_training_job import only_known_members
from worker.training.sagemaker import SageMaker
from worker.training.status import End, Ending, console_links

AlertKind = Literal["failure", "waiting"]
ALERT_CODES: Mapping[AlertKind, str] = {"failure": "LW-JOB-FAILED", "waiting": code_of("job_pending")}
NO_START = "It did not start within"
"""How the reason of a stop begins that LAUNCH_START_TIMEOUT has brought."""

_log = get_logger()


class JobStory:
    """Tells it; each step may be repeated, and an alert comes twice at most where a crash is in between."""

    def __init__(
        self,
        *,
        region: str,
        companion: Companion,
        sagemaker: SageMaker,
        unstarted: UnstartedRuns,
        prices: Prices,
        alerts: Collection[str],
    ) -> None:
        """`alerts`: the kinds that are wanted."""
        self._region = region
        self._companion = companion
        self._sagemaker = sagemaker
        self._unstarted = unstarted
        self._prices = prices
        self._alerts = alerts

    async def open(self, held: HeldLaunch) -> None:
        """Make the companion, or bring it to the present attempt. Raises `Again` and what W&B refuses."""
        record = held.record
        if record.opened == record.attempt:
            return  # by another worker, which has gone on from there
        links = console_links(self._region, record.job_name)
        await self._companion.open(record, run_facts(record, links, await self._request(held)))
        # Durable with the next write: at worst it is said again.
        held.update(opened=record.attempt)
        held.request = None

    async def progress(self, held: HeldLaunch) -> None:
        """How the job stands."""
        await self._companion.summarize(held.record, launch_summary(held.record, prices=self._prices))

    async def end(self, held: HeldLaunch, end: Ending, save: Callable[[], Awaitable[None]]) -> None:
        """The end of the launch: in its companion, on its queue item where its run never appeared, as an alert. `save`
        makes the record durable; it is called where the rest takes long."""
        no_start = end.end is End.STOPPED_BY_WORKER and held.record.stop_reason.startswith(NO_START)
        if no_start or end.end in (End.FAILED, End.STOPPED_BY_TIME_LIMIT):
            await self.alert(held, "failure", f"{held.record.job_name}: {end.end}", end.reason)
        if held.record.end_told != held.record.attempt:
            summary = launch_summary(held.record, end=str(end.end), reason=end.reason, prices=self._prices)
            await self._companion.finish(held.record, summary, end.exit_code)
            held.update(end_told=held.record.attempt)
        await self._unstarted.report(
            held.record, completed=end.exit_code == 0, reason=end.reason, before_waiting=save
        )

    def wants(self, record: LaunchRecord, kind: AlertKind) -> bool:
        """Alerts of this kind are wanted, and none of this launch has been sent."""
        return kind in self._alerts and kind not in record.alerted

    async def alert(self, held: HeldLaunch, kind: AlertKind, title: str, text: str) -> bool:
        """Once a launch, if it is wanted; True: it has been sent now. Raises `Again`; what W&B refuses is not sent."""
        if not self.wants(held.record, kind):
            return False
        try:
            told = f"{ALERT_CODES[kind]}: {text}"
            await self._companion.alert(held.record, title, told, "ERROR" if kind == "failure" else "WARN")
        except WandbRefused as error:
            _log.warning("alert_refused", launch_id=held.launch_id, kind=kind, error=str(error))
        held.update(alerted=(*held.record.alerted, kind))
        return True

    async def _request(self, held: HeldLaunch) -> Mapping[str, Any] | None:
        """The job's request: as it was sent by this worker, else as SageMaker has it; None: the job is deleted."""
        if held.request is not None:
            return held.request
        try:
            return only_known_members(await self._sagemaker.description(held.record.job_name))
        except Never as error:
            _log.warning("request_not_read", launch_id=held.launch_id, error=str(error))
            return None
