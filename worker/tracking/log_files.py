"""The full record of a host's log as numbered files, `logs/algo-1/00001.log`: pure.

The same events make the same files, so uploading them again after a crash is harmless."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.tracking.file_stream import console_time

MAX_FILE_BYTES = 8 << 20
"""A new file is begun behind this size: small enough to hold in memory and to open in a browser."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One finished file."""

    name: str
    content: bytes


@dataclass(slots=True)
class NumberedFiles:
    """Collects a host's lines in order and cuts them into files."""

    label: str
    number: int = 1
    _lines: list[bytes] = field(default_factory=list)
    _size: int = 0

    def add(self, timestamp: int, text: str) -> LogFile | None:
        """Append a line (time in ms since the epoch); returns a file when one is full."""
        line = f"{console_time(timestamp)}Z {text}\n".encode("utf-8", "replace")
        self._lines.append(line)
        self._size += len(line)
        return self.rest() if self._size >= MAX_FILE_BYTES else None

    def rest(self) -> LogFile | None:
        """What has not been cut yet, as the next file."""
        if not self._lines:
            return None
        file = LogFile(f"logs/{self.label}/{self.number:05d}.log", b"".join(self._lines))
        self.number += 1
        self._lines, self._size = [], 0
        return file
