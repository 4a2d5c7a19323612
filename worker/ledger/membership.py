"""Who is dead: workers whose heartbeat has stood still for three heartbeats of *my* monotonic clock.

No clock of another host is read. A wrong answer costs work, never correctness: claims and saves are conditional.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from worker.ledger.port import Ledger, WorkerBeat

MISSED_BEATS = 3
"""Heartbeats a worker may miss before it counts as dead."""
_FORGET_AFTER = 24 * 3600.0
"""Seconds an id without a heartbeat is remembered; only then does a long life stay small."""


def new_worker_id(host: str) -> str:
    """`host-pid-random`: a process that starts again is another worker."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", host)[:64].strip("-") or "host"
    return f"{name}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class _Sign:
    """The newest sign of life of a peer."""

    version: int | None
    """None: it has no heartbeat."""
    since: float


class PeerWatch:
    """The decision, without ledger or clock: tell it what the ledger holds and what time it is.

    Times are seconds of one monotonic clock. Only what was observed counts against a peer: asking later changes
    nothing until the next observation."""

    def __init__(self, me: str, heartbeat: float) -> None:
        self._me = me
        self._patience = MISSED_BEATS * heartbeat
        self._signs: dict[str, _Sign] = {}
        self._dead: frozenset[str] = frozenset()

    def observe(
        self, beats: Sequence[WorkerBeat], now: float, *, asked: float | None = None
    ) -> frozenset[str]:
        """Take in the heartbeats of all workers; returns those (never me) that are dead by now.

        When reading them took long, `asked` is the time before and `now` the time after: what was read proves
        silence only until `asked`."""
        until = now if asked is None else asked
        versions = {beat.worker: beat.version for beat in beats if beat.worker != self._me}
        for worker, version in versions.items():
            if worker not in self._signs or self._signs[worker].version != version:
                self._signs[worker] = _Sign(version, now)
        for worker in self._signs.keys() - versions.keys():
            self._signs[worker] = replace(self._signs[worker], version=None)
        self._drop(
            w
            for w, sign in self._signs.items()
            if sign.version is None and until - sign.since > _FORGET_AFTER
        )
        self._dead = frozenset(w for w, sign in self._signs.items() if until - sign.since >= self._patience)
        return self._dead & versions.keys()

    def is_alive(self, worker_id: str, now: float) -> bool:
        """False for the dead. An id without a heartbeat is given as long as a silent one, from its first mention."""
        if worker_id == self._me:
            return True
        self._signs.setdefault(worker_id, _Sign(None, now))
        return worker_id not in self._dead

    def excuse(self, seconds: float, now: float) -> None:
        """Do not count the last `seconds` against anybody: nobody was watching, or nobody could beat."""
        self._signs = {
            worker: replace(sign, since=min(now, sign.since + seconds))
            for worker, sign in self._signs.items()
        }

    def _drop(self, workers: Iterable[str]) -> None:
        for worker in list(workers):
            del self._signs[worker]


@dataclass(frozen=True, slots=True)
class BeatResult:
    """What one heartbeat has shown."""

    dead: frozenset[str]
    """Workers with a heartbeat in the ledger that are dead: claim their launches, then forget them."""
    gap: bool
    """I was silent so long that peers may have taken me for dead and claimed my launches."""


class Membership:
    """This worker's heartbeat and its view of the others. It starts no task: `beat_once` is called in a loop."""

    def __init__(
        self,
        ledger: Ledger,
        worker: WorkerBeat,
        heartbeat: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`heartbeat`: seconds between two calls of `beat_once`."""
        self._ledger = ledger
        self._beat = worker
        self._heartbeat = heartbeat
        self._clock = clock
        self._watch = PeerWatch(worker.worker, heartbeat)
        self._beaten_at: float | None = None
        self._watched_at: float | None = None
        self._gap = False

    async def beat_once(self) -> BeatResult:
        """Write my heartbeat and read the others'. Raises what the ledger raises; then simply call again later."""
        started = self._clock()
        # A new version for each try: a write whose answer was lost must not hide the next sign of life.
        self._beat = replace(self._beat, version=self._beat.version + 1)
        await self._ledger.beat(self._beat)
        if self._beaten_at is not None and self._clock() - self._beaten_at > MISSED_BEATS * self._heartbeat:
            self._gap = True
        self._beaten_at = started
        asked = self._clock()
        beats = await self._ledger.beats()
        self._excuse_blind_time(asked)
        dead = self._watch.observe(beats, self._clock(), asked=asked)
        self._watched_at = asked
        gap, self._gap = self._gap, False  # kept until told: reading may have failed after a late heartbeat
        return BeatResult(dead, gap)

    def is_alive(self, worker_id: str) -> bool:
        """Whether a worker lives, as far as the last `beat_once` could see; True for myself."""
        return self._watch.is_alive(worker_id, self._clock())

    def _excuse_blind_time(self, asked: float) -> None:
        """Time in which I did not look proves nothing: I was frozen, or the ledger was down for everybody.

        After an outage all heartbeats are old; each peer gets the time to write its next one."""
        if self._watched_at is None:
            return
        pause = asked - self._watched_at
        if pause > 2 * self._heartbeat:
            self._watch.excuse(pause - self._heartbeat, asked)
