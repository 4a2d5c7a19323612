"""Leases: they run from the receive, are renewed together, and a lost one says so once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue, a_message
from worker.errors import Unreachable
from worker.intake.lease import Lease, Leases
from worker.intake.sqs import MAX_VISIBILITY, SqsMessage
from worker.ops.metrics import Metrics


@dataclass
class Bench:
    queue: FakeLaunchQueue
    metrics: Metrics
    leases: Leases
    lost: list[str] = field(default_factory=list)

    def start(self, name: str, *, age: float = 0.0) -> Lease:
        return self.leases.start(a_message(name), time.monotonic() - age, lambda: self.lost.append(name))

    def lost_count(self) -> float | None:
        return self.metrics.registry.get_sample_value("launch_leases_lost_total")


def bench_of(length: float) -> Bench:
    queue, metrics = FakeLaunchQueue(), Metrics()
    return Bench(queue, metrics, Leases(queue, length, metrics))


@pytest.fixture
async def bench() -> Bench:
    return bench_of(60.0)


async def test_a_lease_runs_from_the_receive_not_from_the_start_of_work(bench: Bench) -> None:
    assert bench.leases.length == 60.0
    received_at = time.monotonic() - 45
    lease = bench.leases.start(a_message(), received_at, lambda: None)
    assert lease.received_at == received_at
    assert lease.expires_at == received_at + 60.0


async def test_renewing_moves_the_end_and_loses_nobody(bench: Bench) -> None:
    lease = bench.start("a", age=45)
    before = time.monotonic()
    await bench.leases.renew()
    assert before + 60.0 <= lease.expires_at <= time.monotonic() + 60.0
    assert (bench.queue.extended, bench.lost, lease.lost) == ([["a"]], [], False)


async def test_renewals_go_in_batches_of_ten(bench: Bench) -> None:
    names = [f"m-{i}" for i in range(23)]
    for name in names:
        bench.start(name)
    await bench.leases.renew()
    assert [len(batch) for batch in bench.queue.extended] == [10, 10, 3]
    assert [name for batch in bench.queue.extended for name in batch] == names


async def test_no_leases_no_call(bench: Bench) -> None:
    await bench.leases.renew()
    assert bench.queue.extended == []


async def test_one_of_a_batch_can_be_lost(bench: Bench) -> None:
    leases = [bench.start(name) for name in "abc"]
    bench.queue.lost = {"b"}
    await bench.leases.renew()
    assert bench.lost == ["b"]
    assert [lease.lost for lease in leases] == [False, True, False]
    assert bench.lost_count() == 1
    await bench.leases.renew()
    assert bench.queue.extended == [["a", "b", "c"], ["a", "c"]]
    assert bench.lost == ["b"]


async def test_a_failed_batch_does_not_keep_the_next_from_being_renewed(bench: Bench) -> None:
    leases = [bench.start(f"m-{i}", age=30) for i in range(12)]
    ends = [lease.expires_at for lease in leases]
    bench.queue.extend_errors = [Unreachable("SQS is away")]
    await bench.leases.renew()
    assert bench.queue.extended == [["m-10", "m-11"]]
    assert [lease.expires_at for lease in leases[:10]] == ends[:10]
    assert leases[11].expires_at > ends[11]
    assert bench.lost == []


async def test_a_lease_that_nobody_renewed_in_time_is_lost_and_not_renewed(bench: Bench) -> None:
    late = bench.start("late", age=60)
    bench.start("early", age=10)
    await bench.leases.renew()
    assert bench.lost == ["late"]
    assert late.lost
    assert bench.queue.extended == [["early"]]


async def test_sqs_keeps_a_message_for_twelve_hours_at_most(bench: Bench) -> None:
    old = bench.start("old", age=MAX_VISIBILITY - 60 - 119)
    young = bench.start("young", age=MAX_VISIBILITY - 60 - 130)
    old.expires_at = young.expires_at = time.monotonic() + 20
    await bench.leases.renew()
    assert bench.lost == ["old"]
    assert bench.queue.extended == [["young"]]


async def test_an_ended_lease_is_left_alone(bench: Bench) -> None:
    lease = bench.start("a", age=90)
    bench.leases.end(lease)
    bench.leases.end(lease)
    await bench.leases.renew()
    assert (bench.queue.extended, bench.lost, lease.lost) == ([], [], False)


async def test_a_lease_that_ends_while_it_is_renewed_is_not_lost(bench: Bench) -> None:
    """The message was deleted between the question and SQS's answer, which then calls it unknown."""
    lease = bench.start("a")
    bench.queue.lost = {"a"}
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.leases.renew())
        await asyncio.sleep(0)
        bench.leases.end(lease)
    assert bench.queue.extended == [["a"]]
    assert (bench.lost, lease.lost, bench.lost_count()) == ([], False, 0)


async def test_renewal_repeats_within_a_third_of_the_length() -> None:
    bench = bench_of(0.3)
    bench.start("a")
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(bench.leases.renew_forever())
        await asyncio.sleep(0.65)
        renewing.cancel()
    assert 4 <= len(bench.queue.extended) <= 10
    assert bench.lost == []


class SlowQueue(FakeLaunchQueue):
    """Renewals are under way until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way, self.answer = asyncio.Event(), asyncio.Event()

    async def extend(self, messages: Sequence[SqsMessage], seconds: float) -> frozenset[str]:
        self.under_way.set()
        await self.answer.wait()
        return await super().extend(messages, seconds)


async def test_a_message_that_is_given_back_waits_for_its_renewal_and_is_in_no_later_one() -> None:
    """A renewal that came to SQS behind the release would hide the message again."""
    queue, metrics = SlowQueue(), Metrics()
    leases = Leases(queue, 60.0, metrics)
    held = [leases.start(a_message(f"m-{n}"), time.monotonic(), lambda: None) for n in range(12)]
    renewing = asyncio.ensure_future(leases.renew())
    await queue.under_way.wait()
    stopping = [asyncio.ensure_future(leases.stop(held[number])) for number in (0, 11)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in stopping)
    queue.answer.set()
    await asyncio.gather(*stopping, renewing)
    assert queue.extended == [[f"m-{n}" for n in range(10)], ["m-10"]]
