"""The workers: started, killed, frozen, asked to leave, and started again; each process writes a log of its own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.metrics import Life
from tests.chaos.plan import Kind

_LEAVES_WITHIN = 60.0
"""Seconds from SIGTERM to the end of a worker; its grace is 5 s."""
_RESTART = 1.0
"""Seconds until a worker that ended by itself is started again, as its platform would."""


@dataclass(eq=False)
class _Slot:
    """A place for one worker at a time."""

    number: int
    process: asyncio.subprocess.Process | None = None
    expected: Kind | None = None
    """Why the present process is about to end; None: it is not."""
    away: float = _RESTART
    frozen: bool = False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None and self.expected is None


@dataclass
class Fleet:
    """All workers of a run."""

    folder: Path
    environment: Mapping[str, str]
    count: int
    ended_by_themselves: list[str] = field(default_factory=list)
    """Workers that stopped after they had started, and nobody had asked them to."""
    failed_starts: list[str] = field(default_factory=list)
    """Logs of workers that gave up while they started, because a service failed or they were asked to leave."""
    happened: collections.Counter[Kind] = field(default_factory=collections.Counter)
    lives: list[Life] = field(default_factory=list)
    """Of all processes, in the order of their starts."""
    _leaving: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._slots = [_Slot(number) for number in range(self.count)]

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Keep all slots filled, in tasks of `tasks`, until `leave`."""
        for slot in self._slots:
            tasks.create_task(self._keep_filled(slot), name=f"worker {slot.number}")

    async def kill(self, worker: int, away: float) -> None:
        """kill -9; it is started again after `away` seconds."""
        await self._end(worker, away, "kill -9", signal.SIGKILL)

    async def terminate(self, worker: int, away: float) -> None:
        """SIGTERM."""
        await self._end(worker, away, "SIGTERM", signal.SIGTERM)

    async def freeze(self, worker: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds` if it still lives."""
        slot = self._living(worker, frozen=False)
        if slot is None:
            return
        process = slot.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        slot.frozen = True
        self.happened["SIGSTOP"] += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                self._note_interruption(process)
            if slot.process is process:
                slot.frozen = False

    async def leave(self) -> list[str]:
        """SIGTERM for all, nobody is started again; says who did not end as he should."""
        self._leaving = True
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_LEAVES_WITHIN):
                codes = [await process.wait() for process in processes]
        except TimeoutError:
            return [f"a worker had not ended {_LEAVES_WITHIN:.0f} s after SIGTERM"]
        return [f"a worker ended with {code} after SIGTERM" for code in codes if code != 0]

    def living_workers(self) -> set[str]:
        """Ids of the workers that run now, as they are in the ledger."""
        pids = {slot.process.pid for slot in self._slots if slot.process is not None}
        return {
            str(event["worker"])
            for event in self.events("worker_started")
            if int(str(event["worker"]).split("-")[-2]) in pids
        }

    def events(self, *names: str) -> Iterator[dict[str, Any]]:
        """Log events of all workers so far, of these names (all by default), with the file's name as `log`."""
        for file in sorted(self.folder.glob("worker-*.log")):
            for line in file.read_text(errors="replace").splitlines():
                event = _parsed(line)
                if not names or event["event"] in names:
                    yield {**event, "log": file.name}

    async def _end(self, worker: int, away: float, kind: Kind, number: signal.Signals) -> None:
        slot = self._living(worker, frozen=None if number == signal.SIGKILL else False)
        if slot is None:
            return
        assert slot.process is not None
        slot.expected, slot.away = kind, away
        slot.process.send_signal(number)
        self._note_interruption(slot.process)
        self.happened[kind] += 1

    def _note_interruption(self, process: asyncio.subprocess.Process) -> None:
        for life in self.lives:
            if life.pid == process.pid:
                life.interrupted.append(time.monotonic())

    def _living(self, worker: int, *, frozen: bool | None) -> _Slot | None:
        """That worker's slot, or the next one whose worker lives."""
        for step in range(len(self._slots)):
            slot = self._slots[(worker + step) % len(self._slots)]
            if slot.alive and frozen in (None, slot.frozen):
                return slot
        return None

    async def _keep_filled(self, slot: _Slot) -> None:
        try:
            while not self._leaving:
                log = self.folder / f"worker-{slot.number}-{next(self._numbers):04d}.log"
                started_at = time.monotonic()
                slot.process = await self._spawn(log)
                life = Life(log, started_at, pid=slot.process.pid)
                self.lives.append(life)
                slot.expected, slot.away, slot.frozen = None, _RESTART, False
                code = await slot.process.wait()
                life.ended_at = time.monotonic()
                self._note_end(slot, code, log)
                if not self._leaving:
                    await asyncio.sleep(slot.away)
        finally:
            if slot.process is not None and slot.process.returncode is None:
                slot.process.kill()
                await slot.process.wait()

    async def _spawn(self, log: Path) -> asyncio.subprocess.Process:
        with log.open("wb") as file:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "run"),
                cwd=self.folder,
                env=dict(self.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl+C is for the harness, which then ends the workers
            )

    def _note_end(self, slot: _Slot, code: int, log: Path) -> None:
        if self._leaving or slot.expected == "kill -9":
            return
        lines = log.read_text(errors="replace").splitlines()
        if not any('"worker_started"' in line for line in lines):
            self.failed_starts.append(log.name)
        elif slot.expected is None:
            last = lines[-1][:500]
            self.ended_by_themselves.append(f"{log.name} ended by itself with {code}; its last words: {last}")
        elif code != 0:
            self.ended_by_themselves.append(f"{log.name} ended with {code} after SIGTERM")


def _parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "not an event", "level": "error", "text": line}
