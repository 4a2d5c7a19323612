"""What was measured on, and how much else went on there meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from worker import __version__


def machine() -> dict[str, Any]:
    """Facts about this machine and what runs on it."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory() / (1 << 30)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "launch-worker": __version__,
        "commit": _commit(),
    }


@dataclass(frozen=True, slots=True)
class Clock:
    """CPU seconds of the whole machine, at a moment."""

    busy: float
    total: float

    @classmethod
    def now(cls) -> Clock:
        """Read it."""
        times = psutil.cpu_times()  # type: ignore[no-untyped-call]
        idle = times.idle + times.iowait
        return cls(sum(times) - idle, sum(times))

    def busy_cores_until(self, later: Clock) -> float:
        """How many cores were busy on average since then."""
        passed = later.total - self.total
        cores = os.cpu_count() or 1
        return (later.busy - self.busy) / passed * cores if passed else 0.0


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()
