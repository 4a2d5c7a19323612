"""Programs under test, as processes on a core of their own, and what they and their children use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SAMPLE_EVERY = 0.5
PROGRAM_CORE = 0
SIMULATOR_CORE = 1
"""Also the bench's own."""
_CORES = sorted(os.sched_getaffinity(0))
"""As they are before the bench keeps itself on one."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program and its children used in a window."""

    seconds: float
    cpu_seconds: float
    rss_max: int
    """Most bytes of resident memory, shared pages counted in each process."""
    pss_max: int
    """Most bytes of resident memory, shared pages divided among those that share them."""
    waited: float
    """Seconds that the program's first thread was ready to run and had to wait for its core: others had it."""
    processes: int
    threads: int
    descriptors: int

    @property
    def cpu_share(self) -> float:
        """Of one core."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def waited_share(self) -> float:
        """Of the window."""
        return self.waited / self.seconds if self.seconds else 0.0


class Program:
    """A running process. Its output goes to a file, so that nothing blocks it."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self.output = output
        self.started_at = time.monotonic()
        self._window = _Window(self.started_at)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.returncode is None

    def begin_window(self) -> None:
        """Count from now on."""
        self._window = _Window(time.monotonic(), _cpu_seconds(self._family()), _waited(self.pid))

    def usage(self) -> Usage:
        """What was used since the window began."""
        self.sample()
        window, family = self._window, self._family()
        return Usage(
            seconds=time.monotonic() - window.began_at,
            cpu_seconds=_cpu_seconds(family) - window.cpu_before,
            rss_max=window.rss,
            pss_max=window.pss,
            waited=_waited(self.pid) - window.waited_before,
            processes=len(family),
            threads=sum(_number(process, "num_threads") for process in family),
            descriptors=sum(_number(process, "num_fds") for process in family),
        )

    def sample(self) -> None:
        """Look at the memory now."""
        rss = pss = 0
        for process in self._family():
            with contextlib.suppress(OSError):
                fields = _rollup(process.pid)
                rss += fields.get("Rss", 0)
                pss += fields.get("Pss", 0)
        self._window.rss = max(self._window.rss, rss)
        self._window.pss = max(self._window.pss, pss)

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        """Look at the memory again and again, in a thread: reading it takes the kernel milliseconds."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SAMPLE_EVERY):
                self.sample()

        thread = threading.Thread(target=watch, name="sample memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing meanwhile."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def end(self, number: signal.Signals = signal.SIGTERM, patience: float = 30.0) -> float:
        """End it; returns the seconds it took. It is killed when it takes longer than `patience`."""
        began = time.monotonic()
        if self.alive:
            family = self._family()
            self._process.send_signal(number)
            try:
                async with asyncio.timeout(patience):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
            for child in family[1:]:  # W&B's core outlives a client that was killed
                with contextlib.suppress(psutil.Error):
                    child.kill()  # type: ignore[no-untyped-call]
        await self._process.wait()
        return time.monotonic() - began

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)  # type: ignore[no-untyped-call]
            return [process, *process.children(recursive=True)]  # type: ignore[no-untyped-call]
        except psutil.Error:
            return []


@dataclass(slots=True)
class _Window:
    began_at: float
    cpu_before: float = 0.0
    waited_before: float = 0.0
    rss: int = 0
    pss: int = 0


@contextlib.asynccontextmanager
async def running_program(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, name: str, core: int
) -> AsyncIterator[Program]:
    """Start a program on one core; it is killed at the end if it has not ended by then."""
    output = folder / f"{name}.log"
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    pin(process.pid, core)
    program = Program(process, output)
    try:
        with program.sampled():
            yield program
    finally:
        await program.end(signal.SIGKILL)


def pin(pid: int, core: int) -> None:
    """Keep a process, and the children it will have, on one core; a machine with one core has no choice."""
    os.sched_setaffinity(pid, {_CORES[core % len(_CORES)]})


def _cpu_seconds(family: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _waited(pid: int) -> float:
    """Seconds in the run queue (proc(5), schedstat: the second number, ns)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or a kernel without it
        return 0.0


def _number(process: psutil.Process, what: str) -> int:
    try:
        return int(getattr(process, what)())
    except psutil.Error:
        return 0


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by name, from the kernel's sum over all mappings (proc(5), smaps_rollup)."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    return fields
