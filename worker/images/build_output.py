"""What the install script of a generated Dockerfile has to say, picked out of a build's output. Pure."""

from __future__ import annotations

from collections.abc import Callable

FAILED = "[launch-worker] not installed: "
WARNING = "[launch-worker] warning: "
"""How lines begin that `install.py` prints for us."""
_MOST = 200
_LONGEST = 200


class BuildOutput:
    """Takes the complete lines of a build, hands them on, and keeps what the submitter should be told.

    Whatever else is built can print such lines, too: they are only shown."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._failed: dict[str, None] = {}
        self._warnings: dict[str, None] = {}

    def add(self, line: str) -> None:
        """One line."""
        self._on_line(line)
        for prefix, found in ((FAILED, self._failed), (WARNING, self._warnings)):
            text = line.partition(prefix)[2].strip()
            if text and len(found) < _MOST:
                found[text[:_LONGEST]] = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Packages that were left out."""
        return tuple(self._failed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Packages that were left out are one warning, in W&B's words."""
        failed = ", ".join(self._failed)
        text = f"Some packages were not successfully installed during the build: {failed}"
        return (*((text,) if failed else ()), *self._warnings)
