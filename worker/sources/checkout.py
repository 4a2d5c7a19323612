"""What a source becomes, and how much of this machine it may take for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.errors import Never


@dataclass(frozen=True, slots=True)
class Checkout:
    """A source's files, without `.git`. They are gone when the context that gave it out ends."""

    path: Path
    content_id: str
    """What was really fetched: `git:<full commit id>`, `sha256:<hex of the archive>` or `artifact:<digest>`; of a job
    also what it adds."""
    origin: str
    """Where it came from, `scheme://host/path`, without login: the same content of two projects differs in it."""
    commit: str = ""
    """Full id of the git commit, storage id of the code artifact; empty for an archive."""
    warnings: tuple[str, ...] = ()
    """What the submitter should know of what was fetched."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """The defaults are those of the settings that carry these names (`LAUNCH_…`)."""

    source_max_bytes: int = 5 * 1024**3
    source_max_files: int = 200_000
    fetch_timeout: float = 900.0
    """Seconds."""


class Budget:
    """What one source may still take up, submodules included. Counted as it is read: headers may lie."""

    def __init__(self, limits: SourceLimits, *, code: str) -> None:
        """`code` of the `Never` that an overdrawn budget raises."""
        self._limits = limits
        self._code = code
        self.bytes_left = limits.source_max_bytes
        self._files_left = limits.source_max_files

    def take_file(self) -> None:
        """One more file, folder or link; raises `Never` when there are too many."""
        self._files_left -= 1
        if self._files_left < 0:
            raise Never(
                f"The source has more than {self._limits.source_max_files} files, folders and links; "
                "leave out what the job does not need, or raise LAUNCH_SOURCE_MAX_FILES",
                code=self._code,
            )

    def require(self, size: int) -> None:
        """Raise `Never` when `size` bytes are more than is left."""
        if size > self.bytes_left:
            raise Never(
                f"The source is larger than {self._limits.source_max_bytes} bytes; "
                "leave data out of the code, or raise LAUNCH_SOURCE_MAX_BYTES",
                code=self._code,
            )

    def take_bytes(self, size: int) -> None:
        """`size` bytes more; raises `Never` when that is too much."""
        self.require(size)
        self.bytes_left -= size
