"""Whose turn it is to be submitted: fair over W&B's queues, while there is room, one at a time where a quota is full.

A launch is chosen when CreateTrainingJob may be called and not before: who comes later and is more urgent, or of
another queue, does not stand behind all who came earlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from worker.aio import backoff
from worker.errors import Again
from worker.launch.record import LaunchRecord, LaunchState
from worker.launch.turns import QueueKey, in_turn, queue_of
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.training.quota import WaitingLines, is_quota
from worker.training.sagemaker import QuotaExceeded
from worker.training.status import has_ended

_REASONS = ("quota", "room", "retry", "trouble", "turn")


def waited_so_far(record: LaunchRecord, now: float) -> float:
    """Seconds that a waiting launch has waited, in all its attempts."""
    return record.waited + now - record.waiting_at


class HeartbeatLate(Again):
    """Another worker may have the launch by now; the next heartbeat tells."""


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
        self._turns = 0
        self._served: dict[QueueKey, int] = {}
        """W&B queue → number of its last turn."""

    def take_untold(self, now: float) -> list[HeldLaunch]:
        """Those that are to become no job, whose end is to be told; each is out of the queue until `done`."""
        found = [held for held in self._idle() if _is_to_end(held.record, now)]
        self._submitting.update(held.launch_id for held in found)
        return found

    def may_submit(self, now: float) -> bool:
        """Some launch would have a turn; the metrics tell what the others wait for."""
        waiting = [held for held in self._waiting() if held.record.state is LaunchState.WAITING]
        self._observe(waiting, now)
        self._count(waiting, now)
        return self._next(now) is not None

    def take_next(self, now: float) -> HeldLaunch | None:
        """The launch whose turn it is, out of the queue until `done`; None: nobody's any more."""
        held = self._next(now)
        if held is None:
            return None
        self._submitting.add(held.launch_id)
        kind = machine(held.record)
        if self._lines.reason(kind) and not self._is_told(held.record, now):
            self._asking[kind] = held.launch_id
        if not self._lines.reason(kind) or self._asking.get(kind) == held.launch_id:
            self._turns += 1
            self._served[queue_of(held.record)] = self._turns
        return held

    def throttled(self, held: HeldLaunch) -> None:
        """Its turn came to nothing, by no fault of its own: its queue has the next one."""
        self._served.pop(queue_of(held.record), None)

    def _next(self, now: float) -> HeldLaunch | None:
        if self._room() <= 0:
            return None
        ready = {
            held.launch_id: held
            for held in self._idle()
            if held.record.state is LaunchState.WAITING
            and not held.record.stop_reason
            and held.record.not_before <= now
        }
        for record in in_turn((held.record for held in ready.values()), self._served, now):
            if self._has_turn(record, now):
                return ready[record.launch_id]
        return None

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
            raise QuotaExceeded(f"SageMaker has no room: {reason}", reason=reason)

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
            if (waits or record.state is LaunchState.REFUSED) and not held.lost:
                yield held

    def _idle(self) -> Iterator[HeldLaunch]:
        return (held for held in self._waiting() if held.launch_id not in self._submitting)

    def _observe(self, waiting: list[HeldLaunch], now: float) -> None:
        kinds = []
        for held in waiting:
            kinds.append(machine(held.record))
            if is_quota(held.record.waits_for):
                self._lines.remember(kinds[-1], held.record.waits_for, now)
        running = Counter(machine(held.record) for held in self._held if _runs(held.record))
        self._lines.observe(running, kinds, now)
        # Who is refused while it asks may have to tell that for hours; the others ask meanwhile.
        asking = {held.launch_id for held in waiting}
        self._asking = {kind: who for kind, who in self._asking.items() if who in asking}

    def _room(self) -> float:
        if self._max_jobs < 0:
            return float("inf")
        return self._max_jobs - sum(map(self._takes_room, self._held))

    def _takes_room(self, held: HeldLaunch) -> bool:
        """It is a running job or is becoming one; telling a refusal takes no room, however long it lasts."""
        becomes_one = held.record.state is LaunchState.WAITING and held.launch_id in self._submitting
        return becomes_one or _runs(held.record)

    def _has_turn(self, record: LaunchRecord, now: float) -> bool:
        """In a line only the first asks; others get a turn to be told what they wait for, or to give up waiting."""
        kind = machine(record)
        if not self._lines.reason(kind) or self._is_told(record, now):
            return True
        return kind not in self._asking and self._lines.may_ask(kind, now)

    def _is_told(self, record: LaunchRecord, now: float) -> bool:
        """In its line there is something to tell about it, for which SageMaker is not asked."""
        return (
            record.waits_for != self._lines.reason(machine(record))
            or waited_so_far(record, now) > self._max_wait
        )

    def _count(self, waiting: list[HeldLaunch], now: float) -> None:
        has_room = self._room() > 0
        found = Counter(self._reason(held, now, has_room) for held in waiting)
        for reason in _REASONS:
            self._metrics.waiting.labels(reason).set(found[reason])

    def _reason(self, held: HeldLaunch, now: float, has_room: bool) -> str:
        if self._lines.reason(machine(held.record)):
            return "quota"
        if held.record.not_before > now:
            return "trouble" if held.record.tries else "retry"
        return "turn" if has_room or held.launch_id in self._submitting else "room"


def machine(record: LaunchRecord) -> str:
    """What a launch waits for when there is no room: quotas are per instance type, and others for spot."""
    spot = (record.request or {}).get("EnableManagedSpotTraining") is True or record.facts.spot
    return f"{record.instance_type} spot" if spot else record.instance_type


def _runs(record: LaunchRecord) -> bool:
    return record.state is LaunchState.ACCEPTED and not has_ended(record.facts)


def _is_to_end(record: LaunchRecord, now: float) -> bool:
    stopped = bool(record.stop_reason) and record.not_before <= now
    return record.state is LaunchState.REFUSED or stopped
