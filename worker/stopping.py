"""Stopping a job: whoever asks for it, once, with a reason that outlives this worker."""

from __future__ import annotations

import asyncio

from worker.aio import backoff
from worker.clients.aws import NotPermitted
from worker.errors import Stage, WorkerError
from worker.intake.refusal import Refusals
from worker.launch.record import LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.permissions import MissingPermissions
from worker.ops.ridden_out import RiddenOut
from worker.pending import PendingJobs
from worker.stop_requests import StopRequests
from worker.submission import Submission
from worker.tracking.heartbeats import CompanionHeartbeats
from worker.tracking.run_stops import RunStops
from worker.training.sagemaker import SageMaker
from worker.training.status import has_ended

_GO_ON_EVERY = 1.0

_log = get_logger()


class Stopping:
    """Listens to all who may want a job stopped, and stops it."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        submission: Submission,
        sagemaker: SageMaker,
        heartbeats: CompanionHeartbeats,
        run_stops: RunStops | None,
        pending: PendingJobs,
        requests: StopRequests,
        refusals: Refusals,
    ) -> None:
        """`run_stops`: None while W&B is offline."""
        self._held = held
        self._submission = submission
        self._sagemaker = sagemaker
        self._heartbeats = heartbeats
        self._run_stops = run_stops
        self._pending = pending
        self._requests = requests
        self._refusals = refusals
        self._permissions = MissingPermissions()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeats.run(self.stop), name="companion heartbeats")
            tasks.create_task(self._pending.run(self.stop), name="pending jobs")
            tasks.create_task(self._requests.run(self.stop), name="stop requests")
            tasks.create_task(self._go_on(), name="stops begun")
            if self._run_stops is not None:
                tasks.create_task(self._run_stops.run(self.stop, self.note), name="stops of runs")

    async def _go_on(self) -> None:
        """Bring to its end what was begun: by a worker that is gone, or in vain."""
        tries = 0
        while True:
            await asyncio.sleep(backoff(tries, cap=60) if tries else _GO_ON_EVERY)
            begun = [held for held in self._held if held.record.stop_reason and not held.stopping]
            stopped = [
                await self._stop_again(held) for held in begun if held.record.state is LaunchState.ACCEPTED
            ]
            tries = 0 if all(stopped) else tries + 1

    async def _stop_again(self, held: HeldLaunch) -> bool:
        """False: in vain. The next round tries again, and the launches behind this one do not wait for it."""
        with RiddenOut("job_not_stopped", launch_id=held.launch_id):
            await self.stop(held.launch_id, held.record.stop_reason)
            return True
        return False

    async def stop(self, launch_id: str, reason: str) -> bool:
        """Stop a launch for a reason that is told at its end; False: it had ended, is being stopped, or is not ours.

        The reason is durable before the stop, so that no crash can turn it into a stop from outside."""
        held = self._find(launch_id)
        if held is not None and held.record.state is LaunchState.WAITING:
            return await self._submission.cancel(held, reason)
        if held is None or held.record.state is not LaunchState.ACCEPTED:
            return False
        if has_ended(held.record.facts):
            await self.note(launch_id, reason)
            return False
        name = held.record.job_name
        if held.stopping == name or held.record.facts.status == "Stopping":
            return False
        held.stopping = name
        try:
            return await self._stop(held, name, reason)
        except BaseException:
            held.stopping = ""  # the next one who asks tries again
            raise

    async def note(self, launch_id: str, reason: str) -> None:
        """A stop is wanted that nothing is done about: the job has ended, or its container is to end by itself. It is
        told at the end, and no other attempt follows."""
        held = self._find(launch_id)
        if held is None or held.record.stop_asked or held.record.stop_reason:
            return
        held.update(stop_asked=reason)
        try:
            await self._held.save([held])
        except WorkerError as error:  # durable with the next write
            _log.warning("ledger_unreachable", error=str(error))

    def _find(self, launch_id: str) -> HeldLaunch | None:
        return next((held for held in self._held if held.launch_id == launch_id), None)

    async def _stop(self, held: HeldLaunch, name: str, reason: str) -> bool:
        if not held.record.stop_reason:
            held.update(stop_reason=reason)
        # Each time: the write of an earlier try may have failed.
        await self._held.save([held])
        _log.info("job_stopping", launch_id=held.launch_id, training_job=name, reason=held.record.stop_reason)
        if held.lost:
            return False
        try:
            return await self._sagemaker.stop(name)
        except NotPermitted as error:  # the policy will not change while this worker runs: nothing to repeat
            cost = "Stop in W&B and LAUNCH_START_TIMEOUT have no effect: jobs end by themselves or by their time limit"
            self._permissions.tell("sagemaker:StopTrainingJob", cost=cost, error=error)
            told = f"The job is not stopped, although that was asked for ({reason}): {error}"
            await self._refusals.warn(held.record.item_id, "permission_missing", told, Stage.RUN)
            return False
