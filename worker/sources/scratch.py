"""A folder for one source, removed at the end in any case; what a killed process has left is removed by the next.

A folder's owner holds a lock on a file in it. The kernel lets go of the lock when the process dies, however it dies,
and knows about containers and reused process ids, which a written-down process id would not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from worker.errors import Again
from worker.ops.logging import get_logger
from worker.sources.stoppable import run_to_end

PREFIX = "launch-src-"
_LOCK = "owner.lock"
_TRIES = 5

_log = get_logger()


@dataclass(frozen=True, slots=True)
class _Owned:
    """A folder, and the open file that locks it."""

    path: Path
    lock: int

    def remove(self) -> None:
        _remove(self.path)
        os.close(self.lock)


@contextlib.asynccontextmanager
async def scratch_folder(work_dir: Path) -> AsyncIterator[Path]:
    """A folder below `work_dir`, ours alone. Raises `Again` when it cannot be made."""
    owned: list[_Owned] = []  # filled by the thread, so that a cancellation meanwhile does not lose it
    try:
        try:
            await run_to_end(lambda: owned.append(_make(work_dir)))
        except OSError as error:
            raise Again(f"No folder can be made in {work_dir} (LAUNCH_WORK_DIR): {error.strerror}") from error
        yield owned[0].path
    finally:
        for folder in owned:
            await run_to_end(folder.remove)


def remove_leftovers(work_dir: Path) -> int:
    """Delete the folders of dead processes below `work_dir`; returns how many. For the start of a worker; blocks."""
    removed = 0
    for path in work_dir.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # gone meanwhile; or its owner lives
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
                removed += 1
            finally:
                os.close(lock)
    if removed:
        _log.info("source_leftovers_removed", folders=removed, work_dir=str(work_dir))
    return removed


def _make(work_dir: Path) -> _Owned:
    """Make a folder and lock it. Between the two, another process that starts may take it for a leftover: once more."""
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=work_dir)).resolve()
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return _Owned(path, lock)
        except BlockingIOError:
            pass
        os.close(lock)
    raise Again(f"Folders in {work_dir} (LAUNCH_WORK_DIR) vanish as soon as they are made")


def _remove(path: Path) -> None:
    """Delete a folder; what cannot be deleted is told, and tried again at the next start."""
    failed: list[str] = []
    shutil.rmtree(path, onerror=lambda _, name, __: failed.append(name))
    if path.exists():
        _log.warning("source_folder_not_removed", path=str(path), first=failed[:1])
