"""Launches that leg 1 lets go are released, at once or as soon as the ledger answers.

Left with a worker that lives and does not work on them, they would be busy for all others, or `waiting` with nobody to
submit them. What a worker that ends could not give back is taken over once its heartbeat counts as dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace

from worker.errors import WorkerError
from worker.launch.record import LaunchRecord
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger

_LOOK_EVERY = 2.0
_WITHIN = 5.0
"""Seconds for one launch: a worker that is told to end has not many."""

_log = get_logger()


class GivingBack:
    """Releases launches of leg 1, and remembers those of which the ledger did not say that it is done."""

    def __init__(
        self, ledger: Ledger, worker: str, *, in_work: Set[str], is_held: Callable[[str], bool]
    ) -> None:
        """`in_work`: the launches that leg 1 is at work on now. `is_held`: leg 2 has the launch."""
        self._ledger = ledger
        self._worker = worker
        self._in_work = in_work
        self._is_held = is_held
        self._owed: set[str] = set()

    async def run(self) -> None:
        """Until cancelled: give back what is owed."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for launch_id in self._owed - self._in_work:
                self._owed.discard(launch_id)
                if not await self._answered(launch_id, self._release_if_left(launch_id, self._in_work)):
                    break  # the ledger is away

    def owe(self, launch_id: str) -> None:
        """A write that had no answer may have made the launch this worker's."""
        self._owed.add(launch_id)

    async def give_back(self, record: LaunchRecord) -> None:
        """Release a launch that this worker holds, as `record` has it."""
        self._owed.add(record.launch_id)
        if await self._answered(record.launch_id, self._release(record)):
            self._owed.discard(record.launch_id)

    async def give_back_unclear(self, launch_id: str) -> None:
        """Release a launch that may be this worker's by a write that was cut off, as the ledger has it. It stays owed
        for another look: that write may still be on its way."""
        self._owed.add(launch_id)
        await self._answered(launch_id, self._release_if_left(launch_id, set()))

    async def _release_if_left(self, launch_id: str, in_work: Set[str]) -> None:
        record = await self._ledger.read(launch_id)
        if launch_id in in_work:  # its message has come again: it is looked at once that is done with
            self._owed.add(launch_id)
        elif record is not None and self._is_left(record):
            await self._release(record)

    def _is_left(self, record: LaunchRecord) -> bool:
        is_ours = record.owner == self._worker and record.is_open
        return is_ours and not self._is_held(record.launch_id)

    async def _release(self, record: LaunchRecord) -> None:
        # Conditional on the epoch: whoever has claimed it since, also leg 1 of this worker, keeps it.
        await self._ledger.save([replace(record, owner="")], owner=self._worker)

    async def _answered(self, launch_id: str, step: Awaitable[None]) -> bool:
        try:
            async with asyncio.timeout(_WITHIN):
                await step
        except (WorkerError, TimeoutError) as error:
            self._owed.add(launch_id)
            _log.warning(
                "launch_not_given_back", launch_id=launch_id, error=str(error) or type(error).__name__
            )
            return False
        return True
