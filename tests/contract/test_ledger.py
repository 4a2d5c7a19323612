"""One suite for every adapter of the ledger's port, and beneath it what is special to each adapter."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.dynamodb import DynamoDbDouble, dynamodb_client, serve_dynamodb
from tests.fakes.ledger import MemoryLedger
from worker.launch.log_state import LogBatch, LogState, StreamPosition
from worker.launch.record import Failure, JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.dynamodb import DynamoDbLedger, create_table_request
from worker.ledger.measured import MeasuredLedger
from worker.ledger.port import Ledger, StopRequest, WorkerBeat
from worker.ledger.sqlite import open_sqlite_ledger
from worker.ops.metrics import Metrics


@pytest.fixture(scope="module")
def dynamodb_double() -> Iterator[DynamoDbDouble]:
    with serve_dynamodb() as double:
        yield double


@contextlib.asynccontextmanager
async def open_dynamodb_ledger(url: str) -> AsyncIterator[DynamoDbLedger]:
    table = f"launch-ledger-{secrets.token_hex(4)}"
    async with dynamodb_client(url) as client:
        await client.create_table(**create_table_request(table))
        yield DynamoDbLedger(client, table)


@pytest.fixture(params=["memory", "measured", "sqlite", "dynamodb"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
    elif request.param == "measured":
        yield MeasuredLedger(MemoryLedger(), Metrics())
    elif request.param == "sqlite":
        async with open_sqlite_ledger(tmp_path / "ledger.db") as sqlite:
            yield sqlite
    else:
        double = request.getfixturevalue("dynamodb_double")
        async with open_dynamodb_ledger(double.url) as dynamodb:
            yield dynamodb


def a_record(
    launch_id: str = "aaaa", *, owner: str = "w1", state: LaunchState = LaunchState.INTENT
) -> LaunchRecord:
    return LaunchRecord(launch_id=launch_id, state=state, run=RunRef("team", "proj", "run1"), owner=owner)


FULL_RECORD = LaunchRecord(
    launch_id="full",
    state=LaunchState.ACCEPTED,
    run=RunRef("team", "projekt ü", "r-1"),
    owner="w1",
    epoch=7,
    attempt=2,
    tries=3,
    item_id="UnVuUXVldWVJdGVtOjE=",
    message='{"runSpec": "\\u0000 \U0001f680 \\" \n"}',
    private_key=True,
    image="123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-dev@sha256:00",
    request={
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "Environment": {"A": ""},
        "x": [1.5, None, True],
    },
    not_before=1_800_000_000.123456,
    created_at=0.1 + 0.2,
    facts=JobFacts("Stopped", "MaxRuntimeExceeded", transitions=(("Starting", 1.5), ("Training", 2.25))),
    failure=Failure("run", "LW-X", "because\r\n"),
    reported=True,
    log=LogState(
        next_line=12,
        positions={"job/algo-1": StreamPosition(1_800_000_000_123, 1_800_000_000_999, 2, ((1, 2), (3, 4)))},
        batch=LogBatch(10, 2, {"job/algo-1": (5, 6)}, "AAAA", "ff" * 32),
    ),
    expires_at=1_900_000_000.5,
)


class TestCreateAndRead:
    async def test_an_unknown_launch_has_no_record(self, ledger: Ledger) -> None:
        assert await ledger.read("nobody") is None

    async def test_values_come_back_exactly(self, ledger: Ledger) -> None:
        assert await ledger.create(FULL_RECORD) is None
        assert await ledger.read("full") == FULL_RECORD

    async def test_a_duplicate_is_answered_with_what_is_there(self, ledger: Ledger) -> None:
        first = a_record(owner="w1")
        assert await ledger.create(first) is None
        assert await ledger.create(a_record(owner="w2")) == first
        assert await ledger.read("aaaa") == first

    async def test_of_ten_creators_one_inserts(self, ledger: Ledger) -> None:
        answers = await asyncio.gather(*(ledger.create(a_record(owner=f"w{n}")) for n in range(10)))
        stored = await ledger.read("aaaa")
        assert stored is not None
        assert [answer for answer in answers if answer is not None] == [stored] * 9

    async def test_a_record_near_dynamodbs_item_size(self, ledger: Ledger) -> None:
        big = replace(a_record(), message="ü" + "y" * 380_000)
        assert await ledger.create(big) is None
        bigger = replace(big, state=LaunchState.WAITING, message="x" * 400_000)
        assert await ledger.save([bigger], owner="w1") == frozenset()
        assert await ledger.read("aaaa") == bigger


class TestClaim:
    async def test_it_raises_the_epoch_and_changes_nothing_else(self, ledger: Ledger) -> None:
        await ledger.create(FULL_RECORD)
        claimed = await ledger.claim(FULL_RECORD, "w2")
        assert claimed == replace(FULL_RECORD, owner="w2", epoch=8)
        assert await ledger.read("full") == claimed
        assert await ledger.open_records("w1") == []
        assert await ledger.open_records("w2") == [claimed]

    async def test_it_returns_what_was_saved_since_it_was_seen(self, ledger: Ledger) -> None:
        seen = a_record()
        await ledger.create(seen)
        later = replace(seen, state=LaunchState.WAITING, image="image")
        await ledger.save([later], owner="w1")
        assert await ledger.claim(seen, "w2") == replace(later, owner="w2", epoch=2)

    async def test_of_ten_claims_one_wins(self, ledger: Ledger) -> None:
        seen = a_record(owner="dead")
        await ledger.create(seen)
        claims = await asyncio.gather(*(ledger.claim(seen, f"w{n}") for n in range(10)))
        won = [claimed for claimed in claims if claimed is not None]
        assert len(won) == 1
        assert won[0].epoch == 2
        assert await ledger.read("aaaa") == won[0]

    async def test_what_was_seen_must_still_hold(self, ledger: Ledger) -> None:
        seen = a_record(owner="dead")
        assert await ledger.claim(seen, "w1") is None, "no such record"
        await ledger.create(seen)
        assert await ledger.claim(replace(seen, owner="other"), "w1") is None
        assert await ledger.claim(replace(seen, epoch=2), "w1") is None
        assert await ledger.read("aaaa") == seen

    async def test_a_record_closed_since_is_not_claimed_by_mistake(self, ledger: Ledger) -> None:
        seen = a_record()
        await ledger.create(seen)
        closed = replace(seen, state=LaunchState.REFUSED, reported=True)
        await ledger.save([closed], owner="w1")
        assert await ledger.claim(seen, "w2") is None
        assert await ledger.claim(closed, "w2") == replace(closed, owner="w2", epoch=2), "to report it, say"
        assert await ledger.open_records("w2") == []


class TestSave:
    async def test_a_stale_writer_is_told_and_the_others_are_written(self, ledger: Ledger) -> None:
        mine, claimed, foreign = a_record("mine"), a_record("claimed"), a_record("foreign", owner="w2")
        for record in (mine, claimed, foreign):
            await ledger.create(record)
        await ledger.claim(claimed, "w1")  # the same owner, but a newer epoch
        news = [replace(record, image="new") for record in (claimed, mine, foreign, a_record("absent"))]
        assert await ledger.save(news, owner="w1") == {"claimed", "foreign", "absent"}
        assert await ledger.read("mine") == replace(mine, image="new")
        assert await ledger.read("claimed") == replace(claimed, epoch=2)
        assert await ledger.read("foreign") == foreign
        assert await ledger.read("absent") is None

    async def test_a_frozen_worker_cannot_write_after_it_was_replaced(self, ledger: Ledger) -> None:
        record = a_record()
        await ledger.create(record)
        claimed = await ledger.claim(record, "w2")
        assert await ledger.save([replace(record, image="late")], owner="w1") == {"aaaa"}
        assert await ledger.read("aaaa") == claimed

    async def test_released_is_for_whoever_wants_it(self, ledger: Ledger) -> None:
        record = a_record(state=LaunchState.WAITING)
        await ledger.create(record)
        released = replace(record, owner="")
        assert await ledger.save([released], owner="w1") == frozenset()
        assert await ledger.open_records("") == [released]
        assert await ledger.open_records("w1") == []
        assert await ledger.save([record], owner="w1") == {"aaaa"}, "given away is given away"
        claimed = await ledger.claim(released, "w2")
        assert claimed == replace(record, owner="w2", epoch=2)
        assert await ledger.open_records("") == []
        assert await ledger.open_records("w2") == [claimed]

    @pytest.mark.parametrize("state", [LaunchState.FINISHED, LaunchState.REFUSED])
    async def test_closed_records_are_kept_but_no_longer_open(
        self, ledger: Ledger, state: LaunchState
    ) -> None:
        record = a_record()
        await ledger.create(record)
        closed = replace(record, state=state, reported=True, expires_at=4_000_000_000.5)
        await ledger.save([closed], owner="w1")
        assert await ledger.open_records("w1") == []
        assert await ledger.read("aaaa") == closed

    async def test_a_refusal_that_nobody_was_told_is_still_open(self, ledger: Ledger) -> None:
        record = a_record()
        await ledger.create(record)
        refused = replace(record, state=LaunchState.REFUSED)
        await ledger.save([refused], owner="w1")
        assert await ledger.open_records("w1") == [refused]
        await ledger.save([replace(refused, reported=True)], owner="w1")
        assert await ledger.open_records("w1") == []

    async def test_more_records_than_a_transaction_takes(self, ledger: Ledger) -> None:
        records = [a_record(f"launch-{n:03}") for n in range(250)]
        for record in records:
            await ledger.create(record)
        await ledger.claim(records[42], "w2")
        await ledger.claim(records[242], "w2")
        news = [replace(record, state=LaunchState.ACCEPTED) for record in records]
        assert await ledger.save(news, owner="w1") == {"launch-042", "launch-242"}
        mine = sorted(await ledger.open_records("w1"), key=lambda record: record.launch_id)
        assert mine == [record for n, record in enumerate(news) if n not in (42, 242)]

    async def test_more_bytes_than_a_transaction_takes(self, ledger: Ledger) -> None:
        records = [replace(a_record(f"launch-{n:02}"), message="x" * 380_000) for n in range(12)]
        for record in records:
            await ledger.create(record)
        news = [replace(record, tries=1) for record in records]
        assert await ledger.save(news, owner="w1") == frozenset()
        assert sorted(await ledger.open_records("w1"), key=lambda record: record.launch_id) == news

    async def test_of_one_record_twice_the_later_is_written(self, ledger: Ledger) -> None:
        record = a_record()
        await ledger.create(record)
        await ledger.create(a_record("bbbb"))
        news = [replace(record, tries=1), replace(a_record("bbbb"), tries=9), replace(record, tries=2)]
        assert await ledger.save(news, owner="w1") == frozenset()
        assert await ledger.read("aaaa") == news[2]

    async def test_nothing_to_save(self, ledger: Ledger) -> None:
        assert await ledger.save([], owner="w1") == frozenset()


class TestBeats:
    async def test_a_beat_replaces_the_one_before(self, ledger: Ledger) -> None:
        first = WorkerBeat("w1", 1, "default", "host ü", 1_800_000_000.25)
        other = WorkerBeat("w2", 5, "default", "host", 0.0)
        for beat in (first, other, replace(first, version=2)):
            await ledger.beat(beat)
        beats = sorted(await ledger.beats(), key=lambda beat: beat.worker)
        assert beats == [replace(first, version=2), other]

    async def test_a_forgotten_worker_has_no_beat_until_it_beats_again(self, ledger: Ledger) -> None:
        beat = WorkerBeat("w1", 1, "default", "host", 0.0)
        await ledger.beat(beat)
        await ledger.forget_worker("w1")
        await ledger.forget_worker("never seen")
        assert await ledger.beats() == []
        await ledger.beat(beat)
        assert await ledger.beats() == [beat]

    async def test_beats_and_launches_are_kept_apart(self, ledger: Ledger) -> None:
        await ledger.create(a_record("w1"))
        await ledger.beat(WorkerBeat("w1", 1, "default", "host", 0.0))
        await ledger.lock("w1", "w1")
        assert await ledger.open_records("w1") == [a_record("w1")]
        assert len(await ledger.beats()) == 1


class TestLocks:
    async def test_one_holder_at_a_time(self, ledger: Ledger) -> None:
        assert await ledger.lock("image", "w1") == "w1"
        assert await ledger.lock("image", "w2") == "w1"
        assert await ledger.lock("another", "w2") == "w2"
        await ledger.unlock("image", "w1")
        assert await ledger.lock("image", "w2") == "w2"

    async def test_taking_it_again_is_no_conflict(self, ledger: Ledger) -> None:
        """The answer of a first try may have been lost."""
        assert await ledger.lock("image", "w1") == "w1"
        assert await ledger.lock("image", "w1") == "w1"

    async def test_a_stranger_cannot_unlock(self, ledger: Ledger) -> None:
        await ledger.lock("image", "w1")
        await ledger.unlock("image", "w2")
        await ledger.unlock("never locked", "w2")
        assert await ledger.lock("image", "w2") == "w1"

    async def test_a_dead_holder_is_replaced_only_while_it_holds(self, ledger: Ledger) -> None:
        await ledger.lock("image", "dead")
        assert await ledger.lock("image", "w1", held_by="somebody else") == "dead"
        assert await ledger.lock("image", "w1", held_by="dead") == "w1"
        assert await ledger.lock("image", "w2", held_by="dead") == "w1"

    async def test_of_ten_takers_one_holds(self, ledger: Ledger) -> None:
        holders = await asyncio.gather(*(ledger.lock("image", f"w{n}") for n in range(10)))
        assert len(set(holders)) == 1


class TestRunClaims:
    async def test_a_run_is_one_launchs(self, ledger: Ledger) -> None:
        assert await ledger.claim_run("acme/vision/r1", "aaaa", expires_at=4e9) == "aaaa"
        assert await ledger.claim_run("acme/vision/r1", "bbbb", expires_at=4e9) == "aaaa"
        assert await ledger.claim_run("acme/vision/r1", "aaaa", expires_at=4e9) == "aaaa", (
            "again is no conflict"
        )
        assert await ledger.claim_run("acme/other/r1", "bbbb", expires_at=4e9) == "bbbb"

    async def test_a_launch_is_replaced_only_while_it_has_the_run(self, ledger: Ledger) -> None:
        await ledger.claim_run("r", "aaaa", expires_at=4e9)
        assert await ledger.claim_run("r", "bbbb", expires_at=4e9, former="cccc") == "aaaa"
        assert await ledger.claim_run("r", "bbbb", expires_at=4e9, former="aaaa") == "bbbb"
        assert await ledger.claim_run("r", "cccc", expires_at=4e9, former="aaaa") == "bbbb"
        assert await ledger.claim_run("r", "aaaa", expires_at=4e9) == "bbbb"

    async def test_of_ten_launches_one_has_it(self, ledger: Ledger) -> None:
        claims = (ledger.claim_run("r", f"launch-{n}", expires_at=4e9) for n in range(10))
        assert len(set(await asyncio.gather(*claims))) == 1

    async def test_it_is_no_launch_and_no_lock(self, ledger: Ledger) -> None:
        await ledger.claim_run("r", "aaaa", expires_at=4e9)
        assert await ledger.lock("r", "w1") == "w1"
        assert await ledger.read("r") is None
        assert await ledger.records(over=True) == []


async def test_all_open_records_are_listed_whoever_holds_them_and_all_others_when_asked(
    ledger: Ledger,
) -> None:
    await ledger.create(a_record("aaaa", owner="w1"))
    await ledger.create(a_record("bbbb", owner=""))
    await ledger.create(a_record("cccc", owner="w2", state=LaunchState.FINISHED))
    await ledger.beat(WorkerBeat("w1", 1, "default", "host", 1.0))
    await ledger.ask_stop(StopRequest("aaaa", "why", 2.0))
    assert {record.launch_id for record in await ledger.records(over=False)} == {"aaaa", "bbbb"}
    assert {record.launch_id for record in await ledger.records(over=True)} == {"aaaa", "bbbb", "cccc"}


async def test_a_request_to_stop_stays_until_it_is_taken_back(ledger: Ledger) -> None:
    assert await ledger.stop_requests() == []
    await ledger.ask_stop(StopRequest("aaaa", "wrong data", 2.0))
    await ledger.ask_stop(StopRequest("bbbb", "ü", 3.5))
    await ledger.ask_stop(StopRequest("aaaa", "too dear", 4.0))
    assert {(r.launch_id, r.reason, r.asked_at) for r in await ledger.stop_requests()} == {
        ("aaaa", "too dear", 4.0),
        ("bbbb", "ü", 3.5),
    }
    await ledger.forget_stop("aaaa")
    await ledger.forget_stop("aaaa")
    assert [request.launch_id for request in await ledger.stop_requests()] == ["bbbb"]


async def test_a_request_to_stop_is_no_launch_and_no_worker(ledger: Ledger) -> None:
    await ledger.ask_stop(StopRequest("aaaa", "why", 2.0))
    assert await ledger.read("aaaa") is None
    assert await ledger.records(over=True) == []
    assert await ledger.beats() == []
    assert await ledger.open_records("") == []
