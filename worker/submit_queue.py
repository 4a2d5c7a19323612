"""Whose turn it is to be submitted: oldest first, as far as there is room, and one at a time where a quota is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from worker.aio import backoff
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.training.quota import WaitingLines, is_quota
from worker.training.sagemaker import QuotaExceeded
from worker.training.status import has_ended

_REASONS = ("quota", "room", "retry", "trouble", "turn")


class NotAsked(QuotaExceeded):
    """Another launch asks SageMaker for all that wait for the same machines."""


def waited_so_far(record: LaunchRecord, now: float) -> float:
    """Seconds that a waiting launch has waited, in all its attempts."""
    return record.waited + now - record.waiting_at


class SubmitQueue:
    """The launches that wait, in memory; the ledger has what they wait with. Times are epoch seconds."""

    def __init__(self, held: HeldLaunches, metrics: Metrics, *, max_jobs: int, max_wait: float) -> None:
        self._held = held
        self._metrics = metrics
        self._max_jobs = max_jobs
        self._max_wait = max_wait
        self._lines = WaitingLines(lambda tries: backoff(tries, base=4, cap=120))
        self._submitting: set[str] = set()
        self._asking: dict[str, str] = {}
        """Kind of machine → launch id of the one that asks whether there is room again."""
        self._ruled_out: dict[str, set[str]] = {}
        """Launch id → instance types that it can never have."""

    def take_due(self, now: float) -> list[HeldLaunch]:
        """Those whose turn has come; each is out of the queue until `done`."""
        waiting = sorted(self._waiting(), key=lambda held: held.record.waiting_at)
        self._observe(waiting, now)
        idle = [held for held in waiting if held.launch_id not in self._submitting]
        refused = [held for held in idle if held.record.state is LaunchState.REFUSED]
        to_submit = [held for held in idle if held.record.state is LaunchState.WAITING]
        to_submit = [held for held in to_submit if held.record.not_before <= now]
        due = refused + [held for held in to_submit if held.record.stop_reason]
        room = self._room()
        for held in to_submit:
            if held.record.stop_reason:
                continue
            if room > 0 and self._has_turn(held, now):
                due.append(held)
                room -= 1
        self._submitting.update(held.launch_id for held in due)
        self._count(waiting, now)
        return due

    def done(self, held: HeldLaunch) -> None:
        """The try is over, however it went."""
        self._submitting.discard(held.launch_id)
        self._asking = {kind: who for kind, who in self._asking.items() if who != held.launch_id}
        if held.record.state is not LaunchState.WAITING:
            self._ruled_out.pop(held.launch_id, None)

    def check(self, held: HeldLaunch) -> None:
        """Raise `QuotaExceeded` when a try is known to be useless by now, and another launch is the one to ask."""
        kind = machine(held.record)
        if (reason := self._lines.reason(kind)) and self._asking.get(kind) != held.launch_id:
            raise NotAsked(f"SageMaker has no room: {reason}", reason=reason)

    def refused(self, held: HeldLaunch, reason: str, now: float) -> None:
        """SageMaker had no room for it, or `check` said so."""
        kind = machine(held.record)
        if not self._lines.reason(kind) or self._asking.get(kind) == held.launch_id:
            self._lines.refused(kind, reason, now)

    def admitted(self, held: HeldLaunch, now: float) -> None:
        """SageMaker took it."""
        self._lines.admitted(machine(held.record), now)

    def rule_out(self, record: LaunchRecord) -> str:
        """The launch can never have its instance type; returns the next one to try, or nothing."""
        ruled_out = self._ruled_out.setdefault(record.launch_id, set())
        ruled_out.add(record.instance_type)
        return next((name for name in record.instance_types if name not in ruled_out), "")

    def _waiting(self) -> Iterator[HeldLaunch]:
        """A held launch that is refused has not been told to everybody yet; one that is given up is another's task."""
        for held in self._held:
            record = held.record
            waits = record.state is LaunchState.WAITING and not record.given_up
            if waits or record.state is LaunchState.REFUSED:
                yield held

    def _observe(self, waiting: list[HeldLaunch], now: float) -> None:
        kinds = []
        for held in waiting:
            if held.record.state is LaunchState.WAITING:
                kinds.append(machine(held.record))
                if is_quota(held.record.waits_for):
                    self._lines.remember(kinds[-1], held.record.waits_for, now)
        running = Counter(machine(held.record) for held in self._held if _runs(held.record))
        self._lines.observe(running, kinds, now)
        # Who is refused while it asks may have to tell that for hours; the others ask meanwhile.
        asking = {held.launch_id for held in waiting if held.record.state is LaunchState.WAITING}
        self._asking = {kind: who for kind, who in self._asking.items() if who in asking}

    def _room(self) -> float:
        if self._max_jobs < 0:
            return float("inf")
        return self._max_jobs - sum(map(self._takes_room, self._held))

    def _takes_room(self, held: HeldLaunch) -> bool:
        """It is a running job or is becoming one; telling a refusal takes no room, however long it lasts."""
        becomes_one = held.record.state is LaunchState.WAITING and held.launch_id in self._submitting
        return becomes_one or _runs(held.record)

    def _has_turn(self, held: HeldLaunch, now: float) -> bool:
        """In a line only the oldest asks; others get a turn to be told what they wait for, or to give up waiting."""
        kind, record = machine(held.record), held.record
        reason = self._lines.reason(kind)
        if not reason or record.waits_for != reason or waited_so_far(record, now) > self._max_wait:
            return True
        if kind in self._asking or not self._lines.may_ask(kind, now):
            return False
        self._asking[kind] = held.launch_id
        return True

    def _count(self, waiting: list[HeldLaunch], now: float) -> None:
        found = Counter(
            self._reason(held, now) for held in waiting if held.record.state is LaunchState.WAITING
        )
        for reason in _REASONS:
            self._metrics.waiting.labels(reason).set(found[reason])

    def _reason(self, held: HeldLaunch, now: float) -> str:
        if self._lines.reason(machine(held.record)):
            return "quota"
        if held.record.not_before > now:
            return "trouble" if held.record.tries else "retry"
        return "turn" if held.launch_id in self._submitting else "room"


def machine(record: LaunchRecord) -> str:
    """What a launch waits for when there is no room: quotas are per instance type, and others for spot."""
    spot = (record.request or {}).get("EnableManagedSpotTraining") is True or record.facts.spot
    return f"{record.instance_type} spot" if spot else record.instance_type


def _runs(record: LaunchRecord) -> bool:
    return record.state is LaunchState.ACCEPTED and not has_ended(record.facts)
