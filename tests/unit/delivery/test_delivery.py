"""Log delivery as a whole: read, assigned in the ledger, posted; nothing lost, nothing doubled, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, WORKER, record
from worker.aio import Breather
from worker.clients.aws import AwsRefused, NotPermitted
from worker.delivery import closing, posting
from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.errors import Never, Throttled, Unreachable
from worker.intake.refusal import Refusals
from worker.launch.console import CONSOLE_LIMIT
from worker.launch.log_state import LogState
from worker.launch.record import JobFacts, LaunchRecord
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.training import cursor

ONE, TWO = "job-1/algo-1-1700000000", "job-1/algo-2-1700000000"
INTERVAL = 0.005
QUIET = 0.05


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second for another try here."""
    for module in ("worker.persistence", posting, "worker.delivery.read_trouble"):
        target = f"{module}.backoff" if isinstance(module, str) else f"{module.__name__}.backoff"
        monkeypatch.setattr(target, lambda tries, cap: 0.002)


@dataclass
class Worker:
    """One worker's delivery, on a CloudWatch, a ledger and a W&B that others share."""

    cloud: CloudWatch
    ledger: MemoryLedger
    companion: FakeCompanion
    name: str = WORKER
    delivered: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = True
        self.answers: list[bool] = []
        """What W&B is taken to have said: was Stop pressed?"""
        self.metrics = Metrics()
        self.held = HeldLaunches(self.ledger, self.name, self.metrics)
        self.feed = FakeLogFeed(self.cloud)
        self.items = FakeQueueItems()
        parts = Posting(
            held=self.held,
            feed=self.feed,
            companion=self.companion,
            metrics=self.metrics,
            breather=Breather(),
            refusals=Refusals(self.items, FakeLaunchQueue()),
            on_answer=lambda _, stopped: self.answers.append(stopped),
            is_current=lambda: self.current,
        )
        self.delivery = LogDelivery(
            feed=self.feed,
            held=self.held,
            posting=parts,
            closing=Closing(feed=self.feed, posting=parts, companion=self.companion),
            breather=Breather(),
            interval=INTERVAL,
            quiet=QUIET,
            drain_limit=5.0,
        )

    async def follow(self, launch: LaunchRecord) -> HeldLaunch:
        """Hold a launch that is new to the ledger, and follow its log."""
        assert await self.ledger.create(launch) is None
        held = HeldLaunch(launch)
        self.held.add(held)
        self.delivery.follow(held)
        return held

    async def adopt(self, launch_id: str) -> HeldLaunch:
        """Claim what another worker holds, and go on with its log."""
        seen = await self.ledger.read(launch_id)
        assert seen is not None
        claimed = await self.ledger.claim(seen, self.name)
        assert claimed is not None
        held = HeldLaunch(claimed)
        self.held.add(held)
        self.delivery.follow(held)
        return held

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.delivery.run(lambda held: self.delivered.append(held.launch_id)))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def worker() -> Worker:
    return Worker(CloudWatch(), MemoryLedger(), FakeCompanion())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def rounds(worker: Worker, count: int) -> None:
    """Let the loop go round so many times."""
    wanted = len(worker.feed.swept) + count
    await until(lambda: len(worker.feed.swept) >= wanted)


async def finish(worker: Worker, held: HeldLaunch) -> None:
    """The job ends, and its log is delivered to the last line."""
    held.update(facts=replace(held.record.facts, status="Completed", secondary_status="Completed"))
    worker.delivery.job_ended(held)
    await until(lambda: held.launch_id in worker.delivered)


async def test_every_line_arrives_in_order_with_time_and_host(worker: Worker) -> None:
    worker.cloud.put(ONE, "epoch 1", "epoch 2\nloss 0.5", ingested=1_700_000_000_000)
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.console.get("launch-1", {})) == 3)
        worker.cloud.put(ONE, "epoch 3")
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == ["epoch 1", "epoch 2", "loss 0.5", "epoch 3"]
    first = worker.companion.console["launch-1"][0]
    assert (first.timestamp, first.label) == (1_700_000_000_000, "algo-1")
    assert worker.delivered == ["launch-1"]
    assert held.record.log.next_line == 4


async def test_pages_without_events_end_nothing(worker: Worker) -> None:
    worker.cloud.page_size, worker.cloud.empty_pages = 2, 3
    worker.cloud.put(ONE, *(str(n) for n in range(9)))
    held = await worker.follow(record())
    async with worker.running():
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == [str(n) for n in range(9)]


async def test_streams_may_appear_late_even_after_the_end(worker: Worker) -> None:
    held = await worker.follow(record(instance_count=2))
    async with worker.running():
        await rounds(worker, 3)
        worker.cloud.put(TWO, "two")
        await until(lambda: worker.companion.console.get("launch-1", {}) != {})
        held.update(facts=replace(held.record.facts, status="Completed"))
        worker.delivery.job_ended(held)
        worker.cloud.put(ONE, "one, last words")
        await until(lambda: worker.delivered == ["launch-1"])
    assert sorted(worker.companion.lines("launch-1")) == ["one, last words", "two"]


async def test_no_stream_is_asked_for_before_containers_can_have_one(worker: Worker) -> None:
    held = await worker.follow(record(facts=JobFacts("InProgress", "Pending")))
    async with worker.running():
        await rounds(worker, 10)
        assert len(worker.feed.listed) == 1, "once, since the ledger's state may be old"
        held.update(facts=JobFacts("InProgress", "Downloading"))
        worker.cloud.put(ONE, "pulled")
        await until(lambda: worker.companion.console != {})


async def test_streams_of_restarted_containers_are_followed_before_the_job_ends(worker: Worker) -> None:
    worker.cloud.put(ONE, "before")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.console.get("launch-1", {})) == 1)
        listed = len(worker.feed.listed)
        await rounds(worker, 10)
        assert len(worker.feed.listed) == listed, "all streams are there"
        held.update(facts=JobFacts("InProgress", "Interrupted", transitions=(("Interrupted", 1.0),)))
        worker.delivery.job_changed(held)
        await rounds(worker, 5)
        held.update(facts=JobFacts("InProgress", "Training", transitions=(("Interrupted", 1.0),)))
        worker.delivery.job_changed(held)
        await rounds(worker, 5)
        worker.cloud.put("job-1/algo-1-1700009999", "after")
        await until(lambda: len(worker.companion.console["launch-1"]) == 2)
    assert worker.companion.lines("launch-1") == ["before", "after"]


async def test_a_stream_that_was_missing_for_a_moment_goes_on_where_it_stood(worker: Worker) -> None:
    worker.cloud.put(ONE, "a", "b")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.posts) == 1)
        worker.feed.hidden.add(ONE)
        await rounds(worker, 3)
        worker.feed.hidden.clear()
        worker.cloud.put(ONE, "c")
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == ["a", "b", "c"]


async def test_events_that_come_late_are_appended_after_the_end_with_their_own_time(worker: Worker) -> None:
    worker.cloud.put(ONE, "on time")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.posts) == 1)
        worker.cloud.put(ONE, "late", age_ms=60_000)
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == ["on time", "late"]
    on_time, late = worker.companion.console["launch-1"].values()
    assert 59_000 < on_time.timestamp - late.timestamp <= 60_000


async def test_late_events_of_two_streams_are_both_found(worker: Worker) -> None:
    worker.cloud.put(ONE, "one")
    worker.cloud.put(TWO, "two")
    held = await worker.follow(record(instance_count=2))
    async with worker.running():
        await until(lambda: held.record.log.next_line == 2)
        worker.cloud.put(ONE, "late one", age_ms=5_000)
        worker.cloud.put(TWO, "late two", age_ms=5_000)
        await finish(worker, held)
    assert sorted(worker.companion.lines("launch-1")) == ["late one", "late two", "one", "two"]


async def test_more_late_events_than_a_batch_holds_are_all_found(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "MAX_BATCH_EVENTS", 3)
    worker.cloud.put(ONE, "on time")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.posts) == 1)
        for number in range(10):
            worker.cloud.put(ONE, f"late {number}", age_ms=60_000)
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == ["on time", *(f"late {number}" for number in range(10))]


async def test_a_busy_log_is_searched_for_late_events_while_it_runs(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_DEEP_SWEEP_EVERY", 0.02)
    held = await worker.follow(record())
    worker.cloud.put(ONE, "first")
    written = 0

    def busy() -> None:
        nonlocal written
        worker.cloud.put(ONE, f"line {written}")
        written += 1

    worker.feed.after_sweep = busy
    async with worker.running():
        await until(lambda: held.record.log.next_line > 3)
        worker.cloud.put(ONE, "late", age_ms=30_000)
        await until(
            lambda: "late" in [line.content for line in worker.companion.console["launch-1"].values()]
        )
        assert not worker.delivered


async def test_used_up_marks_bring_a_short_search_for_many_jobs_at_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "DEEP_SWEEP_MARKS", 8)
    monkeypatch.setattr(cursor, "KEPT_MARKS", 3)
    for number in (1, 2):
        await worker.follow(record(f"launch-{number}"))

    def busy() -> None:
        for number in (1, 2):
            worker.cloud.put(f"job-{number}/algo-1-17", f"{len(worker.feed.swept)}")

    worker.feed.after_sweep = busy
    async with worker.running():
        await until(lambda: len(worker.feed.deep) >= 4)
    assert ("job-1/algo-1-17", "job-2/algo-1-17") in [streams for streams, _, _ in worker.feed.deep]
    assert len(worker.feed.deep) < len(worker.feed.swept) / 2, "rare"
    assert all(until is not None and since > 0 for _, since, until in worker.feed.deep), "short"


async def test_nothing_more_is_read_while_wandb_has_not_taken_the_last_batch(worker: Worker) -> None:
    worker.companion.answering.clear()
    worker.cloud.put(ONE, "first")
    await worker.follow(record())
    async with worker.running():
        await until(lambda: worker.companion.waiting == 1)
        for _ in range(50):
            worker.cloud.put(ONE, "backlog")
        await rounds(worker, 10)
        assert worker.companion.waiting == 1, "one batch is outstanding, no more"
        assert all(not swept for swept in worker.feed.swept[-5:]), "and its log is not swept"
        worker.companion.answering.set()
        await until(lambda: len(worker.companion.console.get("launch-1", {})) == 51)
    assert worker.companion.lines("launch-1") == ["first", *["backlog"] * 50]


async def test_a_slow_job_holds_up_no_other(worker: Worker) -> None:
    worker.companion.answering.clear()
    worker.cloud.put(ONE, "stuck")
    await worker.follow(record())
    async with worker.running():
        await until(lambda: worker.companion.waiting == 1)
        await worker.follow(record("launch-2"))
        worker.cloud.put("job-2/algo-1-17", "flows")
        await until(lambda: worker.companion.waiting == 2)


@pytest.mark.parametrize(
    "error", [Unreachable("no answer"), Throttled("slow down"), AwsRefused("post", "413", "refused")]
)
async def test_failed_posts_are_repeated_at_the_same_place(worker: Worker, error: Exception) -> None:
    worker.companion.errors = [error] * 4
    worker.cloud.put(ONE, "a", "b")
    held = await worker.follow(record())
    async with worker.running():
        await finish(worker, held)
    assert worker.companion.posts == [("launch-1", 0, 2)]
    assert worker.companion.lines("launch-1") == ["a", "b"]


async def test_a_post_whose_answer_got_lost_changes_nothing(worker: Worker) -> None:
    worker.companion.lost_answers = 2
    worker.cloud.put(ONE, "a", "b")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.posts) == 1)
        worker.cloud.put(ONE, "c")
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == ["a", "b", "c"]


async def test_nothing_is_posted_before_the_ledger_has_the_assignment(worker: Worker) -> None:
    held = await worker.follow(record())
    worker.cloud.put(ONE, "a")
    worker.ledger.failing = Unreachable("the ledger is down")
    async with worker.running():
        await until(lambda: held.record.log.next_line == 1)
        await asyncio.sleep(0.02)
        assert worker.companion.console == {}
        worker.ledger.failing = None
        await until(lambda: len(worker.companion.posts) == 1)
        stored = await worker.ledger.read("launch-1")
        assert stored is not None
        assert replace(stored.log, acknowledged=True) == held.record.log


async def test_nothing_is_posted_when_ownership_was_lost_between_reading_and_saving(worker: Worker) -> None:
    held = await worker.follow(record())
    worker.cloud.put(ONE, "a")
    thief = replace(record(), owner=OTHER, epoch=2)

    def steal() -> None:
        worker.ledger._put(thief)

    worker.feed.after_sweep = steal
    async with worker.running():
        await until(lambda: held.lost)
        await rounds(worker, 3)
        assert worker.companion.console == {}
        assert worker.feed.swept[-1] == {}, "and it is not read any more"
    assert await worker.ledger.read("launch-1") == thief


async def test_a_worker_that_lost_a_launch_stops_posting_its_batch(worker: Worker) -> None:
    held = await worker.follow(record())
    worker.cloud.put(ONE, "a")
    worker.companion.errors = [Unreachable("no answer")] * 1000
    async with worker.running():
        await until(lambda: held.record.log.batch is not None)
        held.lost = True
        await asyncio.sleep(0.02)
        worker.companion.errors.clear()
        await asyncio.sleep(0.02)
        assert worker.companion.posts == []


@pytest.mark.parametrize("reached_wandb", [False, True])
async def test_after_adoption_the_same_lines_are_posted_at_the_same_place(
    worker: Worker, reached_wandb: bool
) -> None:
    worker.cloud.put(ONE, "a", "b\nc")
    worker.cloud.put(ONE, "late, but not for a first look", age_ms=500)
    worker.companion.lost_answers = 100_000 if reached_wandb else 0
    worker.companion.errors = [] if reached_wandb else [Unreachable("no answer")] * 100_000
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: worker.ledger.saves != [])
        await asyncio.sleep(0.01)
    assert (worker.companion.console != {}) is reached_wandb
    worker.companion.lost_answers = 0
    worker.companion.errors.clear()
    worker.cloud.put(ONE, "d")
    successor = Worker(worker.cloud, worker.ledger, worker.companion, name=OTHER)
    adopted = await successor.adopt("launch-1")
    async with successor.running():
        await finish(successor, adopted)
    assert worker.companion.posts[0] == ("launch-1", 0, held.record.log.next_line)
    assert sorted(worker.companion.lines("launch-1")) == [
        "a",
        "b",
        "c",
        "d",
        "late, but not for a first look",
    ]


async def test_a_frozen_worker_that_wakes_writes_nothing_new(worker: Worker) -> None:
    worker.companion.answering.clear()
    worker.cloud.put(ONE, "a")
    await worker.follow(record())
    async with worker.running():
        await until(lambda: worker.companion.waiting == 1)
        successor = Worker(worker.cloud, worker.ledger, FakeCompanion(), name=OTHER)
        successor.companion = worker.companion
        adopted = await successor.adopt("launch-1")
        worker.cloud.put(ONE, "b")
        worker.companion.answering.set()
        successor = Worker(worker.cloud, worker.ledger, worker.companion, name=OTHER)
        successor.held.add(adopted)
        successor.delivery.follow(adopted)
        async with successor.running():
            await finish(successor, adopted)
    assert worker.companion.lines("launch-1") == ["a", "b"]


async def test_a_batch_whose_events_are_gone_does_not_hold_back_the_rest(worker: Worker) -> None:
    worker.cloud.put(ONE, "gone")
    first = await worker.follow(record())
    worker.companion.errors = [Unreachable("no answer")] * 100_000
    async with worker.running():
        await until(lambda: first.record.log.batch is not None)
        await asyncio.sleep(0.01)
    worker.companion.errors.clear()
    worker.cloud.streams[ONE].clear()
    worker.cloud.put(ONE, "stays")
    successor = Worker(worker.cloud, worker.ledger, worker.companion, name=OTHER)
    adopted = await successor.adopt("launch-1")
    async with successor.running():
        await finish(successor, adopted)
    assert {n: line.content for n, line in worker.companion.console["launch-1"].items()} == {1: "stays"}


@pytest.mark.parametrize(
    "error", [Throttled("slow down"), Unreachable("no answer"), AwsRefused("FilterLogEvents", "X", "odd")]
)
async def test_no_error_of_cloudwatch_ends_the_loop_or_strands_a_batch(
    worker: Worker, error: Exception
) -> None:
    held = await worker.follow(record())
    async with worker.running():
        for number in range(12):
            worker.cloud.put(ONE, str(number))
            worker.feed.errors = [error]
            await until(lambda: not worker.feed.errors)
        await finish(worker, held)
    assert worker.companion.lines("launch-1") == [str(number) for number in range(12)]


async def test_a_failing_search_for_late_events_strands_no_batch(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_DEEP_SWEEP_EVERY", 0.0)
    worker.cloud.put(ONE, "0")
    held = await worker.follow(record())
    other = await worker.follow(record("launch-2"))
    async with worker.running():
        for number in range(1, 30):
            worker.cloud.put(ONE, str(number))
            worker.cloud.put(ONE, f"late {number}", age_ms=1000)
            worker.cloud.put("job-2/algo-1-17", str(number))
            worker.feed.errors = [Throttled("slow down"), Throttled("slow down")]
            await asyncio.sleep(0.002)
        worker.feed.errors.clear()
        await finish(worker, held)
        await finish(worker, other)
    assert sorted(worker.companion.lines("launch-1")) == sorted(
        [*map(str, range(30)), *(f"late {number}" for number in range(1, 30))]
    )
    assert worker.companion.lines("launch-2") == list(map(str, range(1, 30)))


async def test_a_long_log_takes_several_batches_and_its_file_is_whole(worker: Worker) -> None:
    total = cursor.MAX_BATCH_EVENTS + 500
    worker.cloud.put(ONE, *(f"line {n}" for n in range(total)))
    held = await worker.follow(record())
    async with worker.running():
        await finish(worker, held)
    assert [lines for _, _, lines in worker.companion.posts] == [cursor.MAX_BATCH_EVENTS, 500]
    (whole,) = worker.companion.files["launch-1"].values()
    assert [line.rpartition(b"Z ")[2] for line in whole.splitlines()] == [
        f"line {n}".encode() for n in range(total)
    ]


async def test_the_full_record_is_a_file_for_each_host_and_can_be_uploaded_again(worker: Worker) -> None:
    worker.cloud.put(ONE, " 10%\r 20%", ingested=1_700_000_000_000)
    worker.cloud.put(TWO, "two\nlines", ingested=1_700_000_000_000)
    worker.cloud.put("job-1/algo-1-1700009999", "after the restart", ingested=1_700_000_001_000)
    held = await worker.follow(record(instance_count=2))
    worker.companion.errors = []
    async with worker.running():
        await until(lambda: held.record.log.next_line == 4)
        worker.feed.errors = [Unreachable("no answer")]
        await finish(worker, held)
    assert worker.companion.files["launch-1"] == {
        "logs/algo-1/00001.log": b"2023-11-14T22:13:20.000000Z  10%\r 20%\n"
        b"2023-11-14T22:13:21.000000Z after the restart\n",
        "logs/algo-2/00001.log": b"2023-11-14T22:13:20.000000Z two\n2023-11-14T22:13:20.000000Z lines\n",
    }


async def test_a_job_without_a_log_is_delivered_after_the_quiet_time(worker: Worker) -> None:
    held = await worker.follow(record())
    async with worker.running():
        await rounds(worker, 3)
        assert worker.delivered == []
        started = asyncio.get_running_loop().time()
        await finish(worker, held)
        assert asyncio.get_running_loop().time() - started >= QUIET
    assert worker.companion.files == {}


async def test_a_worker_that_dies_while_closing_leaves_a_close_that_can_be_repeated(worker: Worker) -> None:
    worker.cloud.put(ONE, "a")
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: len(worker.companion.posts) == 1)
        worker.cloud.put(ONE, "late", age_ms=1000)
        await finish(worker, held)
    successor = Worker(worker.cloud, worker.ledger, worker.companion, name=OTHER)
    adopted = await successor.adopt("launch-1")
    async with successor.running():
        await finish(successor, adopted)
    assert worker.companion.lines("launch-1") == ["a", "late"]
    assert worker.companion.uploads == ["logs/algo-1/00001.log"] * 2


async def test_a_silent_stream_is_not_read_from_its_beginning_for_ever(worker: Worker) -> None:
    worker.cloud.put(ONE, "one line", ingested=1_000)
    worker.cloud.put(TWO, "busy")
    await worker.follow(record(instance_count=2))
    async with worker.running():
        await until(lambda: worker.feed.swept != [] and ONE in worker.feed.swept[-1])
        await until(lambda: worker.feed.swept[-1].get(ONE, cursor.NOTHING_TAKEN).timestamp > 1_000_000)


async def test_what_the_policy_hides_stands_on_the_queue_item(worker: Worker) -> None:
    denied = "FilterLogEvents: AccessDeniedException: no; allow it in the worker's IAM policy"
    worker.cloud.put(ONE, "a")
    held = await worker.follow(record(item_id="item-1"))
    worker.feed.errors = [NotPermitted(denied) for _ in range(5)]
    async with worker.running():
        await finish(worker, held)
    told = f"LW-PERMISSION-MISSING: The job's log does not come to W&B: {denied}"
    assert worker.items.warned == [("item-1", told, "run")]
    assert worker.companion.lines("launch-1") == ["a"], "somebody has allowed it"


@pytest.mark.parametrize("taken_over", [False, True])
async def test_a_worker_that_was_frozen_posts_nothing_before_it_knows_whose_the_launch_is(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    """The other worker may have ended the run in W&B: late lines would make it running again."""
    monkeypatch.setattr(posting, "_LATE_BEAT", 0.002)
    worker.cloud.put(ONE, "a")
    worker.current = False
    held = await worker.follow(record())
    async with worker.running():
        await until(lambda: held.record.log.next_line == 1)
        await rounds(worker, 5)
        assert worker.companion.posts == [], "it is assigned, and waits for the heartbeat"
        if taken_over:
            assert await worker.ledger.claim(held.record, OTHER)
            await worker.held.save([held])
        worker.current = True
        await rounds(worker, 5)
        if not taken_over:
            await finish(worker, held)
    assert worker.companion.lines("launch-1") == ([] if taken_over else ["a"])


async def test_a_log_that_is_read_all_the_same_is_not_called_hidden(worker: Worker) -> None:
    worker.cloud.put(ONE, "a")
    held = await worker.follow(record(item_id="item-1"))
    async with worker.running():
        await until(lambda: worker.companion.lines("launch-1") == ["a"])
        worker.feed.errors = [NotPermitted("DescribeLogStreams: AccessDeniedException: no") for _ in range(3)]
        await until(lambda: worker.feed.errors == [])
        await finish(worker, held)
    assert worker.items.warned == []


@pytest.mark.parametrize(
    ("launch", "asked"),
    [
        (record(), True),
        (record(log=LogState(next_line=CONSOLE_LIMIT)), False),
        (record(log_target="files"), False),
    ],
    ids=["console", "behind the console's limit", "files"],
)
async def test_where_nothing_is_posted_wandb_has_not_said_that_nobody_pressed_stop(
    worker: Worker, launch: LaunchRecord, asked: bool
) -> None:
    """Of a launch that was stopped before it would make the old stop a new one."""
    worker.cloud.put(ONE, "a line")
    held = await worker.follow(launch)
    async with worker.running():
        await finish(worker, held)
    assert (worker.answers != [], any(worker.answers)) == (asked, False)


class SmallLedger(MemoryLedger):
    """It cannot hold the batches of one launch."""

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        if any(record.launch_id == "launch-1" and record.log.batch for record in records):
            raise Never("the record is too large", code="LW-LEDGER-ITEM-SIZE")
        return await super().save(records, owner=owner)


@pytest.mark.parametrize("ended_before", [False, True], ids=["while its job runs", "behind its job's end"])
async def test_a_log_that_the_ledger_cannot_hold_is_given_up_when_its_job_has_ended(
    ended_before: bool,
) -> None:
    """It stood still for ever, and so did its launch."""
    worker = Worker(CloudWatch(), SmallLedger(), FakeCompanion())
    held, other = await worker.follow(record()), await worker.follow(record("launch-2", job_name="job-2"))
    async with worker.running():
        if not ended_before:
            worker.cloud.put(ONE, "lost")
            worker.cloud.put("job-2/algo-1-1700000000", "told")
            await until(lambda: "launch-2" in worker.companion.console)
            await rounds(worker, 3)
            assert worker.delivered == [], "the job runs"
        else:
            worker.cloud.put(ONE, "lost")
        await finish(worker, held)
        await worker.held.save([held])
    assert held.record.log.undelivered == "log_delivery: the record is too large"
    assert worker.companion.console.get("launch-1", {}) == {}
    assert not other.record.log.undelivered
