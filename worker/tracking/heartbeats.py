"""Signs of life of companion runs, and what W&B's answers bring: a Stop that was pressed in a companion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from worker.launch.record import LaunchRecord, LaunchState
from worker.ops.logging import get_logger
from worker.ops.ridden_out import RiddenOut
from worker.tracking.port import Companion
from worker.tracking.run_stops import StopJob
from worker.tracking.turns import Turns

PRESSED = "Stop was pressed in W&B, in the companion run."
_AT_ONCE = 40
"""Heartbeats under way at a time, of the 50 connections to W&B: 400 a second at 0.1 s each, and 5,000 jobs need 167."""
_STEP = 1.0
"""Seconds between two looks for runs whose turn has come."""

_log = get_logger()


class CompanionHeartbeats:
    """One loop for the companions of all running jobs."""

    def __init__(
        self,
        companion: Companion,
        *,
        interval: float,
        running: Callable[[], Iterable[LaunchRecord]],
        is_current: Callable[[], bool],
        is_silent: Callable[[str], bool] = lambda _: True,
        is_held: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`running`: the launches this worker holds that have been silent for half an `interval`: their first heartbeat
        comes within the other half, so that no Stop waits for longer than an interval. `is_silent`: one of them (launch
        id) still is; `is_held`: the worker holds a launch at all; `is_current`: no other worker can have taken them
        over."""
        self._is_silent = is_silent
        self._is_held = is_held
        self._companion = companion
        self._interval = interval
        self._running = running
        self._is_current = is_current
        self._pressed: dict[str, float] = {}
        """Launch id → monotonic time at which an answer told it."""
        self._news = asyncio.Event()
        self._unpressed: set[str] = set()
        """Launches of which an answer has said that nobody pressed Stop."""
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._beating: set[str] = set()
        """Launches whose heartbeat is under way, or waits for its place."""

    def answered(self, record: LaunchRecord, stopped: bool) -> None:
        """An answer about a companion says whether Stop was pressed."""
        if not record.stopped_before:
            self._unpressed.discard(record.launch_id)
        elif not stopped:
            self._unpressed.add(record.launch_id)
        elif record.launch_id not in self._unpressed:
            return  # the Stop that ended the attempt before
        if stopped:
            self.pressed(record)

    def pressed(self, record: LaunchRecord) -> None:
        """An answer to a post of log lines says that Stop was pressed: that does not wait for a heartbeat."""
        if record.facts.status != "Stopping" and not record.stop_reason:
            self._pressed.setdefault(record.launch_id, time.monotonic())
            self._news.set()

    async def run(self, stop: StopJob) -> None:
        """Until cancelled; `stop` is asked to stop a job, with the reason."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._stop_pressed(stop), name="stops of companions")
            turns = Turns(self._interval)
            while True:
                await asyncio.sleep(min(_STEP, self._interval))
                self._unpressed = set(filter(self._is_held, self._unpressed))
                self._beat_due(turns, tasks)

    def _beat_due(self, turns: Turns, tasks: asyncio.TaskGroup) -> None:
        """Begin those that are due, each by itself: a post that hangs holds up no other run."""
        # Between two attempts no job runs, but the companion does, and Stop can be pressed in it.
        alive = {
            record.launch_id: record
            for record in self._running()
            if record.state is LaunchState.ACCEPTED or record.is_between_attempts
        }
        for launch_id in turns.due(alive, asyncio.get_running_loop().time()):
            if launch_id not in self._beating:
                self._beating.add(launch_id)
                record = alive[launch_id]
                tasks.create_task(self._beat_in_turn(record), name=f"heartbeat {record.job_name}")

    async def _beat_in_turn(self, record: LaunchRecord) -> None:
        try:
            async with self._at_once:
                await self._beat(record)
        finally:
            self._beating.discard(record.launch_id)

    async def _beat(self, record: LaunchRecord) -> None:
        # A worker that may have been taken for dead must not revive a run that another one has ended.
        # Nor may a run whose end is being told: from here on nothing comes before the post has its place in line.
        if not (self._is_current() and self._is_silent(record.launch_id)):
            return
        with RiddenOut("companion_heartbeat_failed", launch_id=record.launch_id):
            self.answered(record, await self._companion.heartbeat(record))

    async def _stop_pressed(self, stop: StopJob) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            for launch_id, told_at in list(self._pressed.items()):
                # The answer to the next post or heartbeat says it again, should the stop fail.
                del self._pressed[launch_id]
                with RiddenOut("job_not_stopped", launch_id=launch_id):
                    if await stop(launch_id, PRESSED):
                        waited = round(time.monotonic() - told_at, 2)
                        _log.info("companion_stop_done", launch_id=launch_id, seconds=waited)
