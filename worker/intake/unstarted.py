"""Jobs that ended without their run in W&B: told on the queue item, as W&B's own agent does.

Such a run shows nowhere, so nobody would learn that anything happened. A run that was started tells its own end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.clients.wandb_runs import RunAddress, run_state
from worker.errors import Stage
from worker.intake.refusal import Refusals
from worker.launch.record import LaunchRecord
from worker.ops.logging import get_logger

NO_INIT = "The submitted job exited successfully but failed to call wandb.init"
NOT_STARTED = "The submitted run was not successfully started"
"""W&B's own words (wandb/sdk/launch/agent/agent.py)."""

_FIRST_PAUSE = 1.0
"""Seconds between the first two looks."""

_log = get_logger()


async def _go_on() -> None:
    """Nothing is to be done first."""


class UnstartedRuns:
    """Looks for the run of an ended job; without one its queue item fails, with the end of the container's log."""

    def __init__(
        self,
        api: WandbApi | None,
        refusals: Refusals,
        log_end: Callable[[LaunchRecord], Awaitable[str]],
        *,
        grace: float,
    ) -> None:
        """`api`: None while W&B is offline. `grace`: seconds that a run may take to appear."""
        self._api = api
        self._refusals = refusals
        self._log_end = log_end
        self._grace = grace

    async def report(
        self,
        record: LaunchRecord,
        *,
        completed: bool,
        reason: str,
        before_waiting: Callable[[], Awaitable[None]] = _go_on,
    ) -> None:
        """To be called once the job's log is complete; repeating it is harmless. `reason` is how the job ended, in
        words; `before_waiting` is awaited if the grace has to be waited for. Raises `Again` when W&B does not
        answer."""
        # With `run` the worker writes the run, and with `files` it has made one that the container did not.
        if self._api is None or not record.item_id or record.log_target not in ("companion", "off"):
            return
        if await self._appears(self._api, record, before_waiting):
            return
        message = NO_INIT if completed else f"{NOT_STARTED}: {reason}"
        _log.warning("run_not_started", launch_id=record.launch_id, run=record.run.run_id, reason=message)
        log = await self._log_end(record) if record.log_target != "off" else ""  # which wants none in W&B
        await self._refusals.fail_item(record, message, Stage.RUN, log=log)

    async def _appears(
        self, api: WandbApi, record: LaunchRecord, before_waiting: Callable[[], Awaitable[None]]
    ) -> bool:
        """Its creation may be under way: look again, with growing pauses, as long as the grace lasts."""
        run = RunAddress(record.run.entity, record.run.project, record.run.run_id)
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._grace
        pause = _FIRST_PAUSE
        while True:
            if await _state(api, run) not in (
                "",
                "pending",
            ):  # W&B makes the runs of sweeps beforehand, pending
                return True
            left = deadline - clock()
            if left <= 0:
                return False
            if pause == _FIRST_PAUSE:
                await before_waiting()
            await asyncio.sleep(min(pause, left))
            pause *= 2


async def _state(api: WandbApi, run: RunAddress) -> str:
    try:
        return await run_state(api, run)
    except WandbRefused as error:
        if error.status not in (200, 404):
            raise
        return ""  # no such project
