"""Identical builds at one time are one build: in this worker, and over workers by a lock in the ledger.

A lock never waits for the dead: a holder whose heartbeat has stopped is replaced, conditionally, by one of those
who wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from worker.errors import WorkerError
from worker.ledger.membership import Membership
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger

_LOOK_EVERY = 2.0

_log = get_logger()


class BuildLocks:
    """Locks by image tag."""

    def __init__(self, ledger: Ledger, membership: Membership, worker: str) -> None:
        self._ledger = ledger
        self._membership = membership
        self._worker = worker
        self._local: dict[str, _Counted] = {}
        self._owed: set[str] = set()
        """Locks that could not be given back: others would wait for them as long as this worker lives."""

    async def run(self) -> None:
        """Until cancelled: give back what is owed."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            for tag in self._owed - self._local.keys():
                await self._give_back(tag)

    @contextlib.asynccontextmanager
    async def only_one(self, tag: str) -> AsyncIterator[None]:
        """Hold the lock of `tag`; waits while somebody alive holds it. Raises `Again` when the ledger is away."""
        counted = self._local.setdefault(tag, _Counted())
        counted.waiting += 1
        try:
            async with counted.lock:
                try:
                    # Inside: a try that was cancelled, or whose answer got lost, may have taken it.
                    await self._take(tag)
                    yield
                finally:
                    await self._give_back(tag)
        finally:
            counted.waiting -= 1
            if not counted.waiting:
                self._local.pop(tag, None)

    async def _take(self, tag: str) -> None:
        told = ""
        dead = ""
        while True:
            holder = await self._ledger.lock(tag, self._worker, held_by=dead)
            if holder == self._worker:
                return
            dead = "" if self._membership.is_alive(holder) else holder
            if dead:
                _log.warning("build_lock_replaced", tag=tag, holder=holder)
                continue
            if told != holder:
                _log.info("build_awaited", tag=tag, builder=holder)
                told = holder
            await asyncio.sleep(_LOOK_EVERY)

    async def _give_back(self, tag: str) -> None:
        # Also when the build was cancelled: a lock left behind would be held for as long as this worker lives.
        self._owed.add(tag)
        try:
            async with asyncio.timeout(10):
                await asyncio.shield(self._ledger.unlock(tag, self._worker))
            self._owed.discard(tag)
        except (WorkerError, TimeoutError) as error:
            _log.warning("build_lock_not_given_back", tag=tag, error=str(error))


class _Counted:
    """A lock that is forgotten when nobody waits for it any more."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
