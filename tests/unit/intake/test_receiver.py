"""The intake loop: slots, the four outcomes, lost leases, draining."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from tests.fakes.launch_queue import FakeLaunchQueue, a_message
from tests.unit.waiting import until
from worker.errors import Never, Unreachable
from worker.intake.lease import Leases
from worker.intake.receiver import Receiver
from worker.intake.sqs import SqsMessage
from worker.launch.outcome import Outcome, Verdict
from worker.ops.metrics import Metrics


@dataclass
class Handler:
    """Leg 1, as a test wants it: waits while `gate` is closed, then answers by message id."""

    outcomes: dict[str, Outcome | BaseException] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def __call__(self, message: SqsMessage) -> Outcome:
        self.started.append(message.message_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.message_id)
            raise
        self.ended.append(message.message_id)
        outcome = self.outcomes.get(message.message_id, Outcome(Verdict.DONE))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@dataclass
class Bench:
    queue: FakeLaunchQueue
    leases: Leases
    metrics: Metrics
    handler: Handler
    receiver: Receiver
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The receiver runs; leaving stops it and waits for its end."""
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.receiver.run(self.stop))
            try:
                yield task
            finally:
                self.stop.set()

    def ready(self) -> bool:
        return self.receiver.receiving

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def bench_of(
    *, slots: int = 5, wait: float = 0.05, grace: float = 5.0, lease: float = 60.0, is_open: bool = True
) -> Bench:
    queue, metrics, handler = FakeLaunchQueue(), Metrics(), Handler()
    if is_open:
        handler.gate.set()
    leases = Leases(queue, lease, metrics)
    receiver = Receiver(
        queue=queue, leases=leases, handle=handler, slots=slots, wait=wait, grace=grace, metrics=metrics
    )
    return Bench(queue, leases, metrics, handler, receiver)


async def test_a_stop_says_how_long_the_last_receive_may_take() -> None:
    bench = bench_of(wait=0.4)
    with capture_logs() as logs:
        async with bench.running():
            await until(bench.ready)
    (told,) = [line for line in logs if line["event"] == "last_receive"]
    assert 0 <= told["seconds_left"] <= 0.4


async def test_a_stop_between_receives_promises_no_wait() -> None:
    bench = bench_of(slots=1, is_open=False)
    bench.queue.put(a_message("m"))
    with capture_logs() as logs:
        async with bench.running():
            await until(lambda: bench.handler.started)
            bench.stop.set()
            await asyncio.sleep(0)
            bench.handler.gate.set()
    assert "last_receive" not in [line["event"] for line in logs]


async def test_done_deletes() -> None:
    bench = bench_of()
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.queue.deleted)
    assert (bench.queue.deleted, bench.queue.hidden) == (["m"], [])
    assert bench.sample("launch_messages_total") == 1
    assert bench.sample("launch_outcomes_total", outcome="done", stage="") == 1
    assert bench.sample("launch_in_work") == 0


async def test_never_deletes() -> None:
    """The copy in the DLQ is made before the pipeline answers `never`."""
    bench = bench_of()
    bench.handler.outcomes["m"] = Outcome(Verdict.NEVER, stage="run", code="LW-X")
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.queue.deleted)
    assert (bench.queue.deleted, bench.queue.hidden) == (["m"], [])
    assert bench.sample("launch_outcomes_total", outcome="never", stage="run") == 1


@pytest.mark.parametrize("verdict", [Verdict.BUSY, Verdict.AGAIN])
async def test_busy_and_again_hide_and_never_delete(verdict: Verdict) -> None:
    bench = bench_of()
    bench.handler.outcomes["m"] = Outcome(verdict, delay=50.0)
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.queue.hidden)
    assert (bench.queue.deleted, bench.queue.hidden) == ([], [("m", 50.0)])


async def test_no_receive_without_a_free_slot() -> None:
    bench = bench_of(slots=3, wait=0.01, is_open=False)
    bench.queue.put(*(a_message(f"m-{i}") for i in range(5)))
    async with bench.running():
        await until(lambda: len(bench.handler.started) == 3)
        asked = len(bench.queue.wanted)
        await asyncio.sleep(0.1)
        assert len(bench.queue.wanted) == asked
        assert max(bench.queue.wanted) == 3
        bench.handler.gate.set()
        await until(lambda: len(bench.queue.deleted) == 5)
    assert bench.handler.started == [f"m-{i}" for i in range(5)]


async def test_a_receive_asks_for_the_free_slots_only_and_for_ten_at_most() -> None:
    bench = bench_of(slots=12, wait=0.02, is_open=False)
    bench.queue.put(*(a_message(f"m-{i}") for i in range(10)))
    async with bench.running():
        await until(lambda: len(bench.queue.wanted) >= 2)
        assert bench.queue.wanted[:2] == [10, 2]
        bench.handler.gate.set()


async def test_nothing_is_received_for_a_stop_with_all_slots_taken() -> None:
    bench = bench_of(slots=1, wait=5, is_open=False)
    bench.queue.put(a_message("m"), a_message("other"))
    async with bench.running():
        await until(lambda: bench.handler.started)
        asked = len(bench.queue.wanted)
        bench.stop.set()
        await asyncio.sleep(1.1)  # longer than the loop waits for a slot before it looks at the stop
        bench.handler.gate.set()
    assert len(bench.queue.wanted) == asked
    assert bench.handler.started == ["m"]
    assert bench.queue.deleted == ["m"]


@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), Unreachable("away"), Never("no", code="X"), KeyError()], ids=repr
)
async def test_a_handler_that_raises_anything_stops_nothing(error: Exception) -> None:
    bench = bench_of(slots=1)
    bench.handler.outcomes["bad"] = error
    bench.queue.put(a_message("bad"), a_message("good"))
    async with bench.running():
        await until(lambda: bench.queue.deleted)
    assert bench.queue.deleted == ["good"]
    assert bench.queue.hidden == []


async def test_a_message_that_cannot_be_settled_stops_nothing() -> None:
    bench = bench_of(slots=1)
    bench.queue.settle_errors = [Unreachable("SQS is away")]
    bench.queue.put(a_message("a"), a_message("b"))
    async with bench.running():
        await until(lambda: bench.queue.deleted)
    assert bench.queue.deleted == ["b"]


async def test_a_failed_receive_shows_and_is_tried_again() -> None:
    bench = bench_of()
    bench.queue.errors = [Unreachable("SQS is away")]
    bench.queue.put(a_message("m"))
    assert not bench.ready()
    async with bench.running():
        await until(lambda: len(bench.queue.wanted) == 1 and not bench.queue.errors)
        await asyncio.sleep(0.01)
        assert not bench.ready()
        await until(lambda: bench.queue.deleted)
        assert bench.ready()
    assert max(bench.queue.wanted) == 5  # the slots taken for the failed receive came back


async def test_a_lost_lease_cancels_the_work_and_settles_nothing() -> None:
    bench = bench_of(slots=1, is_open=False)
    bench.queue.put(a_message("lost"), a_message("next"))
    bench.queue.lost = {"lost"}
    async with bench.running():
        await until(lambda: bench.handler.started)
        await bench.leases.renew()
        await until(lambda: bench.handler.cancelled)
        bench.handler.gate.set()
        await until(lambda: bench.queue.deleted)
    assert bench.handler.cancelled == ["lost"]
    assert bench.queue.deleted == ["next"]
    assert bench.queue.hidden == []


async def test_the_lease_starts_at_the_receive() -> None:
    """A receive that took 0.2 s has used up a 0.15 s lease: the first look finds it lost."""
    bench = bench_of(wait=5, lease=0.15, is_open=False)
    async with bench.running():
        await until(lambda: bench.queue.wanted)
        await asyncio.sleep(0.2)
        bench.queue.put(a_message("slow"))
        await until(lambda: bench.handler.cancelled)
    assert bench.queue.extended == []
    assert (bench.queue.deleted, bench.queue.hidden) == ([], [])


async def test_leases_are_renewed_while_draining() -> None:
    bench = bench_of(lease=0.15, is_open=False)
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.handler.started)
        bench.stop.set()
        await asyncio.sleep(0.4)
        assert bench.handler.cancelled == []
        bench.handler.gate.set()
    assert bench.queue.deleted == ["m"]
    assert len(bench.queue.extended) >= 2


async def test_work_that_ends_within_the_grace_is_settled() -> None:
    bench = bench_of(is_open=False)
    bench.queue.put(a_message("m"))
    async with bench.running() as task:
        await until(lambda: bench.handler.started)
        bench.stop.set()
        await asyncio.sleep(0.1)
        assert not task.done()
        bench.handler.gate.set()
    assert (bench.handler.ended, bench.queue.deleted, bench.queue.hidden) == (["m"], ["m"], [])


async def test_unfinished_work_is_cancelled_and_released_after_the_grace() -> None:
    bench = bench_of(grace=0.2, is_open=False)
    bench.handler.outcomes["quick"] = Outcome(Verdict.DONE)
    bench.queue.put(a_message("a"), a_message("b"))
    async with bench.running():
        await until(lambda: len(bench.handler.started) == 2)
        bench.stop.set()
        at = time.monotonic()
    assert 0.15 <= time.monotonic() - at < 1.5
    assert sorted(bench.handler.cancelled) == ["a", "b"]
    assert sorted(bench.queue.hidden) == [("a", 0), ("b", 0)]
    assert bench.queue.deleted == []


async def test_the_grace_is_counted_from_the_signal() -> None:
    """A long poll under way at the stop is left to end, and is no extra time."""
    bench = bench_of(wait=0.6, grace=0.7, is_open=False)
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.handler.started and len(bench.queue.wanted) == 2)
        bench.stop.set()
        at = time.monotonic()
    assert 0.6 <= time.monotonic() - at < 1.0
    assert bench.queue.hidden == [("m", 0)]


async def test_a_stop_at_the_moment_of_a_receive_leaves_the_whole_grace() -> None:
    """The loop sees the stop before the task that notes its time has run."""
    bench = bench_of(wait=5, grace=1.0, is_open=False)
    bench.queue.put(a_message("m"))
    async with bench.running():
        await until(lambda: bench.handler.started and len(bench.queue.wanted) == 2)
        bench.queue.put(a_message("late"))
        bench.stop.set()
        await asyncio.sleep(0.1)
        assert bench.handler.cancelled == []
        bench.handler.gate.set()
    assert bench.queue.deleted == ["m"]


async def test_messages_fetched_while_stopping_are_released_unread() -> None:
    bench = bench_of(wait=0.5)
    async with bench.running():
        await until(lambda: bench.queue.wanted)
        bench.stop.set()
        await asyncio.sleep(0.05)
        bench.queue.put(a_message("late"))
    assert bench.handler.started == []
    assert (bench.queue.hidden, bench.queue.deleted) == ([("late", 0)], [])


async def test_a_release_that_fails_does_not_keep_the_others() -> None:
    bench = bench_of(grace=0.05, is_open=False)
    bench.queue.put(a_message("a"), a_message("b"))
    bench.queue.settle_errors = [Unreachable("SQS is away")]
    async with bench.running():
        await until(lambda: len(bench.handler.started) == 2)
    assert sorted(bench.handler.cancelled) == ["a", "b"]
    assert len(bench.queue.hidden) == 1
