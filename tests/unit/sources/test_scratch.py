"""Folders of sources: gone at the end, and those of the dead gone at the next start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.errors import Again
from worker.sources.scratch import PREFIX, remove_leftovers, scratch_folder
from worker.sources.stoppable import StopCheck, Stopped, run_stoppable

CHILD = """
import asyncio, sys
from pathlib import Path
from worker.sources.scratch import scratch_folder

async def main():
    async with scratch_folder(Path(sys.argv[1])) as folder:
        (folder / "data").write_text("x")
        print(folder, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def child(work_dir: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a folder."""
    command = [sys.executable, "-c", CHILD, str(work_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_folder_that_vanishes_meanwhile_stops_no_start(tmp_path: Path) -> None:
    """Another worker that starts at the same time removes the same leftovers."""

    class Listing(type(tmp_path)):  # type: ignore[misc]  # the class of paths depends on the system
        def glob(self, pattern: str) -> Iterator[Path]:
            yield tmp_path / f"{PREFIX}gone"
            yield from tmp_path.glob(pattern)

    (tmp_path / f"{PREFIX}left").mkdir()
    assert remove_leftovers(Listing(tmp_path)) == 1
    assert names(tmp_path) == []


async def test_a_folder_is_ours_and_gone_at_the_end(tmp_path: Path) -> None:
    async with scratch_folder(tmp_path) as folder:
        assert folder.name.startswith(PREFIX)
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/b/c").write_text("x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_it_is_gone_after_an_error_too(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        async with scratch_folder(tmp_path):
            raise error
    assert names(tmp_path) == []


async def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for _ in range(3):
        async with scratch_folder(tmp_path):
            pass
    assert len(names(Path("/proc/self/fd"))) <= before + 1


async def test_a_work_folder_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Again, match="LAUNCH_WORK_DIR"):
        async with scratch_folder(tmp_path / "gone"):
            pass


async def test_folders_of_the_living_stay_those_of_the_dead_go(tmp_path: Path) -> None:
    async with scratch_folder(tmp_path) as ours:
        with child(tmp_path) as (process, theirs):
            assert remove_leftovers(tmp_path) == 0
            assert (theirs / "data").exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert theirs.exists(), "a killed process cannot clean up"
            assert remove_leftovers(tmp_path) == 1
        assert not theirs.exists()
        assert ours.exists()


async def test_nothing_else_is_touched(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").write_text("x")
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / "other").mkdir()
    (work_dir / f"{PREFIX}file").write_text("x")
    (work_dir / f"{PREFIX}link").symlink_to(elsewhere)
    (work_dir / f"{PREFIX}unlocked").mkdir()
    assert remove_leftovers(work_dir) == 1
    assert names(work_dir) == [f"{PREFIX}file", f"{PREFIX}link", "other"]
    assert (elsewhere / "data").exists()


def test_no_work_folder_has_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "gone") == 0


async def test_work_ends_before_a_cancelled_caller_does() -> None:
    steps: list[str] = []
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(check_stop: StopCheck) -> None:
        try:
            while True:
                steps.append("step")
                loop.call_soon_threadsafe(started.set)
                check_stop()
        except Stopped:
            steps.append("stopped")
            raise

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(run_stoppable(work))
        await started.wait()
        waiting.cancel()
        await asyncio.sleep(0)
        waiting.cancel()  # once more, while it waits for the end
    assert waiting.cancelled()
    assert steps[-1] == "stopped"


async def test_work_s_own_errors_and_answers_come_through() -> None:
    assert await run_stoppable(lambda _: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await run_stoppable(lambda _: 1 // 0)
