"""Who is dead, by my clock; and my own heartbeat, over a ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.dynamodb import dynamodb_client, serve_dynamodb
from tests.fakes.ledger import MemoryLedger
from worker.errors import Unreachable
from worker.ledger.dynamodb import DynamoDbLedger, create_table_request
from worker.ledger.membership import BeatResult, Membership, PeerWatch, new_worker_id
from worker.ledger.port import Ledger, WorkerBeat
from worker.ledger.sqlite import open_sqlite_ledger

HEARTBEAT = 10.0
NOBODY: frozenset[str] = frozenset()


def a_beat(worker: str, version: int = 1) -> WorkerBeat:
    return WorkerBeat(worker, version, "default", "host", 0.0)


class TestPeerWatch:
    def test_a_peer_is_dead_after_three_heartbeats_of_silence(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        assert watch.observe([a_beat("peer")], 100.0) == NOBODY
        assert watch.observe([a_beat("peer")], 129.9) == NOBODY
        assert watch.is_alive("peer", 129.9)
        assert watch.observe([a_beat("peer")], 130.0) == {"peer"}
        assert not watch.is_alive("peer", 130.0)

    def test_a_new_version_is_a_sign_of_life_whatever_its_number(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer", 7)], 0.0)
        watch.observe([a_beat("peer", 2)], 29.0)
        assert watch.observe([a_beat("peer", 2)], 58.0) == NOBODY
        assert watch.observe([a_beat("peer", 2)], 59.0) == {"peer"}

    def test_the_dead_may_wake(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer")], 0.0)
        assert watch.observe([a_beat("peer")], 40.0) == {"peer"}
        assert watch.observe([a_beat("peer", 2)], 41.0) == NOBODY
        assert watch.is_alive("peer", 41.0)

    def test_i_am_alive(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("me")], 0.0)
        assert watch.observe([a_beat("me")], 1000.0) == NOBODY
        assert watch.is_alive("me", 2000.0)

    def test_an_id_nobody_beats_for_is_dead_three_heartbeats_after_its_first_mention(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        assert watch.is_alive("stranger", 0.0)
        watch.observe([], 29.0)
        assert watch.is_alive("stranger", 29.0)
        assert watch.observe([], 30.0) == NOBODY, "there is no heartbeat to forget"
        assert not watch.is_alive("stranger", 30.0)

    def test_a_forgotten_worker_stays_dead(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer")], 0.0)
        watch.observe([a_beat("peer")], 30.0)
        assert watch.observe([], 31.0) == NOBODY
        assert not watch.is_alive("peer", 31.0)
        watch.observe([a_beat("peer")], 32.0)
        assert watch.is_alive("peer", 32.0), "it came back, with the version it had"

    def test_asking_proves_nothing(self) -> None:
        """Nobody looked for a while: the peer may have beaten all the time."""
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer")], 0.0)
        assert watch.is_alive("peer", 1000.0)

    def test_a_slow_answer_proves_silence_only_until_the_question(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer")], 50.0, asked=0.0)  # I was frozen while reading
        assert watch.observe([a_beat("peer")], 90.0, asked=51.0) == NOBODY
        assert watch.observe([a_beat("peer")], 90.0, asked=80.0) == {"peer"}

    def test_excused_time_does_not_count_and_never_reaches_into_the_future(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        watch.observe([a_beat("peer")], 0.0)
        assert watch.is_alive("stranger", 95.0)
        watch.excuse(90.0, 100.0)
        assert watch.observe([a_beat("peer")], 100.0) == NOBODY
        assert watch.observe([a_beat("peer")], 120.0) == {"peer"}
        watch.observe([a_beat("peer")], 130.0)
        assert not watch.is_alive("stranger", 130.0)

    def test_old_ids_are_dropped(self) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        for day in range(5):
            watch.observe([a_beat(f"worker-of-day-{day}")], day * 86_400.0)
        assert len(watch._signs) <= 2

    @given(st.lists(st.tuples(st.floats(0.1, 9.9), st.booleans()), max_size=30))
    def test_a_peer_is_dead_exactly_while_silent_for_too_long(self, steps: list[tuple[float, bool]]) -> None:
        watch = PeerWatch("me", HEARTBEAT)
        now, version, since = 0.0, 0, 0.0
        watch.observe([a_beat("peer", version)], now)
        for pause, beats in steps:
            now += pause
            if beats:
                version, since = version + 1, now
            dead = watch.observe([a_beat("peer", version)], now)
            assert dead == ({"peer"} if now - since >= 30.0 else NOBODY)
            assert watch.is_alive("peer", now) == (not dead)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class SlowLedger(MemoryLedger):
    """Writing a heartbeat takes `pause` seconds of the test's clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.pause = 0.0
        self._clock = clock

    async def beat(self, beat: WorkerBeat) -> None:
        self._clock.now += self.pause
        await super().beat(beat)


@contextlib.asynccontextmanager
async def open_ledger(kind: str, folder: Path) -> AsyncIterator[Ledger]:
    if kind == "memory":
        yield MemoryLedger()
    elif kind == "sqlite":
        async with open_sqlite_ledger(folder / "ledger.db") as sqlite:
            yield sqlite
    else:
        with serve_dynamodb() as double:
            async with dynamodb_client(double.url) as client:
                await client.create_table(**create_table_request("launch-ledger"))
                yield DynamoDbLedger(client, "launch-ledger")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "dynamodb"])
async def test_workers_find_out_who_died(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with open_ledger(kind, tmp_path) as ledger:
        mine, live, dying = (
            Membership(ledger, a_beat(w, 0), HEARTBEAT, clock) for w in ("me", "live", "dying")
        )
        await dying.beat_once()
        for _ in range(3):
            await live.beat_once()
            assert await mine.beat_once() == BeatResult(NOBODY, gap=False)
            clock.now += HEARTBEAT
        await live.beat_once()
        assert await mine.beat_once() == BeatResult(frozenset({"dying"}), gap=False)
        assert [mine.is_alive(worker) for worker in ("me", "live", "dying")] == [True, True, False]
        assert await dying.beat_once() == BeatResult(NOBODY, gap=False)
        assert await mine.beat_once() == BeatResult(NOBODY, gap=False)
        assert mine.is_alive("dying")
        await dying.beat_once()
        await ledger.forget_worker("live")
        assert sorted(beat.worker for beat in await ledger.beats()) == ["dying", "me"]


async def test_a_frozen_worker_learns_that_it_was_away() -> None:
    clock, ledger = Clock(), MemoryLedger()
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, clock)
    results = []
    for pause in (0.0, 30.0, 30.1, 10.0):
        clock.now += pause
        results.append((await membership.beat_once()).gap)
    assert results == [False, False, True, False]


async def test_a_gap_is_told_even_if_reading_failed_when_it_was_found() -> None:
    class HalfBroken(MemoryLedger):
        async def beats(self) -> list[WorkerBeat]:
            if self.saves:
                raise Unreachable("reading does not work")
            return await super().beats()

    clock, ledger = Clock(), HalfBroken()
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, clock)
    await membership.beat_once()
    clock.now = 31.0
    ledger.saves.append(())
    with pytest.raises(Unreachable):
        await membership.beat_once()
    ledger.saves.clear()
    clock.now = 32.0
    assert (await membership.beat_once()).gap
    assert not (await membership.beat_once()).gap


async def test_a_heartbeat_that_took_long_is_a_gap() -> None:
    clock = Clock()
    ledger = SlowLedger(clock)
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, clock)
    await membership.beat_once()
    ledger.pause = 31.0
    assert (await membership.beat_once()).gap


async def test_a_slow_answer_may_belong_to_an_early_write() -> None:
    clock = Clock()
    ledger = SlowLedger(clock)
    ledger.pause = 25.0
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, clock)
    assert not (await membership.beat_once()).gap
    ledger.pause, clock.now = 0.0, clock.now + HEARTBEAT
    assert (await membership.beat_once()).gap, "up to 35 s lie between the two writes"


async def test_after_an_outage_nobody_is_taken_for_dead() -> None:
    """All were silent, for nobody could write; each gets the time for its next heartbeat."""
    clock, ledger = Clock(), MemoryLedger()
    one, two = (Membership(ledger, a_beat(w, 0), HEARTBEAT, clock) for w in ("one", "two"))
    await asyncio.gather(one.beat_once(), two.beat_once())
    clock.now = 10.0
    await one.beat_once()
    ledger.failing = Unreachable("down")
    for _ in range(30):
        clock.now += HEARTBEAT
        with pytest.raises(Unreachable):
            await one.beat_once()
    ledger.failing = None
    clock.now += HEARTBEAT
    assert await one.beat_once() == BeatResult(NOBODY, gap=True)
    assert one.is_alive("two")
    clock.now += HEARTBEAT
    await two.beat_once()
    assert await one.beat_once() == BeatResult(NOBODY, gap=False)


async def test_a_peer_that_did_not_survive_the_outage_is_found_later() -> None:
    clock, ledger = Clock(), MemoryLedger()
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, clock)
    await ledger.beat(a_beat("gone"))
    await membership.beat_once()
    clock.now = 1000.0
    dead = []
    for _ in range(4):
        dead.append((await membership.beat_once()).dead)
        clock.now += HEARTBEAT
    assert dead[0] == NOBODY
    assert dead[-1] == {"gone"}


async def test_each_try_writes_a_new_version() -> None:
    ledger = MemoryLedger()
    membership = Membership(ledger, a_beat("me", 0), HEARTBEAT, Clock())
    await membership.beat_once()
    ledger.failing = Unreachable("the answer was lost")
    with pytest.raises(Unreachable):
        await membership.beat_once()
    ledger.failing = None
    await membership.beat_once()
    assert await ledger.beats() == [a_beat("me", 3)]


def test_worker_ids_are_unique_and_fit_a_key() -> None:
    ids = {new_worker_id("host.example") for _ in range(100)}
    assert len(ids) == 100
    assert all(worker.startswith("host.example-") for worker in ids)
    assert new_worker_id("bad host#/ü" * 40).isascii()
    assert len(new_worker_id("x" * 500)) < 100
    assert new_worker_id("").startswith("host-")
