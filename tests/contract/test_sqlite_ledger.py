"""What the SQLite ledger promises beyond the port: shared by processes, cancelled anywhere, tidy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from worker.errors import SettingsError, Unreachable
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.ledger.port import WorkerBeat
from worker.ledger.sqlite import PURGE_BATCH, PURGE_INTERVAL, open_sqlite_ledger
from worker.ledger.sqlite_file import SCHEMA_VERSION

BEAT = WorkerBeat("w1", 1, "default", "host", 0.0)


def a_record(launch_id: str = "aaaa", owner: str = "w1") -> LaunchRecord:
    return LaunchRecord(
        launch_id=launch_id, state=LaunchState.INTENT, run=RunRef("team", "proj", "run1"), owner=owner
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextlib.contextmanager
def writing_elsewhere(path: Path) -> Iterator[None]:
    """Another process is in the middle of a write."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def write_elsewhere(path: Path) -> None:
    """Fails at once if anybody has left a transaction open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")


class TestSharing:
    async def test_two_connections_see_one_ledger(self, path: Path) -> None:
        async with open_sqlite_ledger(path) as one, open_sqlite_ledger(path) as two:
            await one.create(a_record())
            seen = await two.read("aaaa")
            assert seen == a_record()
            claims = await asyncio.gather(one.claim(seen, "w2"), two.claim(seen, "w3"), one.claim(seen, "w4"))
            won = [claimed for claimed in claims if claimed is not None]
            assert len(won) == 1
            assert await two.read("aaaa") == won[0]

    async def test_processes_that_open_and_claim_at_once(self, path: Path) -> None:
        """The file is new: creating it is part of the race. Each launch is claimed by exactly one process."""
        claimers = [await start_claimer(path, f"p{n}") for n in range(3)]
        outputs = await asyncio.gather(*(claimer.communicate() for claimer in claimers))
        assert [claimer.returncode for claimer in claimers] == [0, 0, 0]
        claimed = sorted(launch_id for output, _ in outputs for launch_id in json.loads(output))
        assert claimed == sorted(f"launch-{n:02}" for n in range(30))
        async with open_sqlite_ledger(path) as ledger:
            for n in range(30):
                record = await ledger.read(f"launch-{n:02}")
                assert record is not None
                assert record.epoch == 2

    async def test_a_new_file_that_another_process_is_about_to_use(self, path: Path) -> None:
        """Before a file is in WAL mode, SQLite says 'locked' at once, whatever the busy timeout."""

        async def open_and_write() -> None:
            async with open_sqlite_ledger(path) as ledger:
                await ledger.beat(BEAT)

        async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
            with writing_elsewhere(path):
                opening = tasks.create_task(open_and_write())
                await asyncio.sleep(0.1)
                assert not opening.done()

    async def test_what_was_written_outlives_the_process(self, path: Path) -> None:
        async with open_sqlite_ledger(path) as ledger:
            await ledger.create(a_record())
            await ledger.lock("image", "w1")
            await ledger.beat(BEAT)
        async with open_sqlite_ledger(path) as ledger:
            assert await ledger.read("aaaa") == a_record()
            assert await ledger.lock("image", "w2") == "w1"
            assert await ledger.beats() == [BEAT]


CLAIMER = """
import asyncio, json, sys
from pathlib import Path
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.ledger.sqlite import open_sqlite_ledger

async def main(path, worker):
    claimed = []
    async with open_sqlite_ledger(path, busy_timeout=30) as ledger:
        for n in range(30):
            launch_id = f"launch-{n:02}"
            seen = LaunchRecord(
                launch_id=launch_id, state=LaunchState.WAITING, run=RunRef("e", "p", "r"), owner="dead"
            )
            await ledger.create(seen)
            if await ledger.claim(seen, worker) is not None:
                claimed.append(launch_id)
    print(json.dumps(claimed))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def start_claimer(path: Path, worker: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLAIMER, str(path), worker, stdout=asyncio.subprocess.PIPE
    )


class TestCancellation:
    @pytest.mark.parametrize("steps", range(1, 16))
    async def test_a_write_is_done_or_undone(self, path: Path, steps: int) -> None:
        """Cancelled after any number of turns of the loop: all or nothing is written, no transaction is left."""
        records = [a_record(f"launch-{n}") for n in range(5)]
        async with open_sqlite_ledger(path) as ledger, asyncio.TaskGroup() as tasks:
            for record in records:
                await ledger.create(record)
            saving = tasks.create_task(
                ledger.save([replace(record, tries=1) for record in records], owner="w1")
            )
            for _ in range(steps):
                await asyncio.sleep(0.0002)
            saving.cancel()
            await asyncio.wait([saving])
            tries = {record.tries for record in await ledger.open_records("w1")}
            assert len(tries) == 1
            write_elsewhere(path)

    async def test_while_it_waits_for_another_process(self, path: Path) -> None:
        async with open_sqlite_ledger(path, busy_timeout=0.2) as ledger:
            with writing_elsewhere(path), pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ledger.create(a_record())
            assert await ledger.read("aaaa") is None
            write_elsewhere(path)
            assert await ledger.create(a_record()) is None

    async def test_cancelled_twice(self, path: Path) -> None:
        """The second cancellation hits the rollback."""
        async with open_sqlite_ledger(path, busy_timeout=0.2) as ledger, asyncio.TaskGroup() as tasks:
            with writing_elsewhere(path):
                creating = tasks.create_task(ledger.create(a_record()))
                await asyncio.sleep(0.02)
                creating.cancel()
                await asyncio.sleep(0)
                creating.cancel()
                await asyncio.wait([creating])
            assert creating.cancelled()
            assert await ledger.read("aaaa") is None
            write_elsewhere(path)


class TestErrors:
    async def test_locked_is_unreachable_and_passes(self, path: Path) -> None:
        async with open_sqlite_ledger(path, busy_timeout=0.02) as ledger:
            with writing_elsewhere(path):
                with pytest.raises(Unreachable, match="does not answer"):
                    await ledger.beat(BEAT)
                assert await ledger.beats() == [], "readers do not wait for writers"
            await ledger.beat(BEAT)
            assert await ledger.beats() == [BEAT]

    async def test_opening_while_locked_is_unreachable(self, path: Path) -> None:
        async with open_sqlite_ledger(path):
            pass
        with writing_elsewhere(path), pytest.raises(Unreachable):
            async with open_sqlite_ledger(path, busy_timeout=0.02):
                pass

    async def test_a_newer_schema_is_refused_untouched(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        with pytest.raises(SettingsError, match="newer launch-worker"):
            async with open_sqlite_ledger(path):
                pass
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)

    async def test_a_file_that_is_no_database_is_refused(self) -> None:
        path = Path(__file__)
        with pytest.raises(SettingsError, match="LAUNCH_LEDGER"):
            async with open_sqlite_ledger(path):
                pass

    async def test_a_missing_folder_is_refused(self, path: Path) -> None:
        with pytest.raises(SettingsError, match="LAUNCH_LEDGER"):
            async with open_sqlite_ledger(path.parent / "missing" / "ledger.db"):
                pass

    async def test_a_database_of_somebody_else_is_refused(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE workers (name TEXT)")
        with pytest.raises(SettingsError, match="already exists"):
            async with open_sqlite_ledger(path):
                pass
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("workers",)]


class TestExpiry:
    async def test_expired_closed_records_are_removed(self, path: Path) -> None:
        time = 1000.0
        finished = replace(a_record("finished"), state=LaunchState.FINISHED, expires_at=2000.0)
        kept = [
            a_record("open"),
            replace(a_record("open with a time"), expires_at=1.0),
            replace(a_record("for ever"), state=LaunchState.REFUSED),
            replace(a_record("later"), state=LaunchState.FINISHED, expires_at=99_999.0),
        ]
        async with open_sqlite_ledger(path, now=lambda: time) as ledger:
            for record in (finished, *kept):
                await ledger.create(record)
            time = 2001.0
            await ledger.beat(BEAT)
            assert await ledger.read("finished") == finished, "not with each heartbeat"
            time = 2000.0 + PURGE_INTERVAL
            await ledger.beat(BEAT)
            assert await ledger.read("finished") is None
            for record in kept:
                assert await ledger.read(record.launch_id) == record

    async def test_claims_of_runs_are_kept_for_their_time(self, path: Path) -> None:
        time = 1000.0
        async with open_sqlite_ledger(path, now=lambda: time) as ledger:
            await ledger.claim_run("r1", "old", expires_at=2000.0)
            await ledger.claim_run("r2", "old", expires_at=99_999.0)
            time = 2001.0 + PURGE_INTERVAL
            await ledger.beat(BEAT)
            assert await ledger.claim_run("r1", "new", expires_at=99_999.0) == "new"
            assert await ledger.claim_run("r2", "new", expires_at=99_999.0) == "old"

    async def test_a_pile_is_removed_in_pieces(self, path: Path) -> None:
        old = replace(a_record(), state=LaunchState.FINISHED, expires_at=1.0)
        async with open_sqlite_ledger(path, now=lambda: 0.0) as ledger:
            for n in range(3):
                await ledger.create(replace(old, launch_id=f"old-{n}"))
        with contextlib.closing(sqlite3.connect(path)) as other:
            rows = [(f"pile-{n:04}", "w1", 1, 0, 0.5, "{}") for n in range(PURGE_BATCH)]
            other.executemany("INSERT INTO launches VALUES (?, ?, ?, ?, ?, ?)", rows)
            other.commit()
        async with open_sqlite_ledger(path, now=lambda: 10.0) as ledger:
            assert count_launches(path) == 3
            await ledger.beat(BEAT)
            assert count_launches(path) == 0


def count_launches(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as other:
        return int(other.execute("SELECT count(*) FROM launches").fetchone()[0])


async def test_commits_are_on_the_disk_and_readers_do_not_block(path: Path) -> None:
    async with open_sqlite_ledger(path) as ledger:
        connection = ledger._connection
        assert list(await connection.execute_fetchall("PRAGMA journal_mode")) == [("wal",)]
        assert list(await connection.execute_fetchall("PRAGMA synchronous")) == [(2,)]
