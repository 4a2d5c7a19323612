"""The worker as a process of its own, its log events, and waiting for something to happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds any wait may take; on a busy machine the usual second becomes ten."""


async def until(condition: Callable[[], Awaitable[T]], what: str, seconds: float = PATIENCE) -> T:
    """Wait until `condition` gives something true; fails the test after `seconds`, saying `what` was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        if found := await condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what} (last: {found!r})"
        await asyncio.sleep(0.05)


class WorkerProcess:
    """`python -m worker run`; what it prints goes to a file, so that nothing blocks it and nothing is lost."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self._output = output

    def printed(self) -> str:
        return self._output.read_text(errors="replace")

    def events(self, name: str = "", **fields: object) -> list[dict[str, Any]]:
        """Its log events so far: those called `name` (all by default) that have these fields."""
        found = []
        for line in self.printed().splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(_parsed(line))
        return [
            event
            for event in found
            if event["event"].startswith(name) and all(event.get(k) == v for k, v in fields.items())
        ]

    async def wait_for(self, name: str, *, seconds: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """The first event called `name` with these fields, once it is there."""

        async def look() -> list[dict[str, Any]]:
            ended = self._process.returncode
            found = self.events(name, **fields)
            assert found or ended is None, f"the worker ended ({ended}) without {name} {fields}"
            return found

        return (await until(look, f"event {name} {fields}", seconds))[0]

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def killed(self) -> bool:
        """It had no time to tidy up."""
        return self._process.returncode == -signal.SIGKILL

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def freeze(self) -> None:
        """SIGSTOP; returns once the kernel has stopped it, and not within a write: a lock of SQLite's would hold all
        other workers up for as long."""
        ledger = next(
            (event["ledger"] for event in self.events("worker_started")), ""
        )  # a mirror alone has none

        async def stopped() -> bool:
            return _process_state(self._process.pid) == "T"

        async def stopped_between_writes() -> bool:
            self.send_signal(signal.SIGSTOP)
            await until(stopped, "the worker is frozen")
            if not ledger.startswith("sqlite://") or _can_write(ledger.removeprefix("sqlite://")):
                return True
            self.wake()
            return False

        await until(stopped_between_writes, "the worker is frozen between two writes")

    def wake(self) -> None:
        self.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)
        assert await self.exit_code() == -signal.SIGKILL

    async def exit_code(self, seconds: float = PATIENCE) -> int:
        """Its exit code once it has ended; negative: the signal that ended it."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def end(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
        await self._process.wait()


def _can_write(path: str) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        file.execute("ROLLBACK")
        return True


def _process_state(pid: int) -> str:
    """The letter of proc(5): T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "not an event", "level": "error", "text": line.rstrip()}


def worker_output(folder: Path) -> str:
    """All that the workers of a test printed."""
    files = sorted(folder.glob("worker-*.log"))
    return "".join(f"--- {file.stem}\n{file.read_text(errors='replace')}\n" for file in files)
