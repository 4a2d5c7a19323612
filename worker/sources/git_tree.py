"""What a commit holds, looked at before it is written: `git ls-tree`, and `.gitmodules` as git reads it.

A tree can name itself many times over and unfold to more files than any disk has; the listing is counted as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.errors import Never
from worker.sources.checkout import Budget
from worker.sources.git_errors import UNSAFE_CODE
from worker.sources.tree import check_path

LIST_TREE = ("ls-tree", "-r", "-t", "-l", "-z", "--full-tree")
"""Arguments whose output `TreeListing` reads; the tree follows."""

SUBMODULE_CODE = "LW-GIT-SUBMODULE"
MODULES = ".gitmodules"
_MAX_MODULES = 1 << 20
_MAX_RECORD = 1 << 16
_RECORD = re.compile(
    r"(?P<mode>\d{6}) (?P<type>\w+) (?P<id>[0-9a-f]+) +(?P<size>\d+|-)\t(?P<path>.+)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Submodule:
    """A submodule, as `.gitmodules` describes it."""

    path: str
    url: str
    update: str = ""


class TreeListing:
    """Reads the output of `LIST_TREE` as it comes and charges what it names to the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._rest = b""
        self.submodules: dict[str, str] = {}
        """Path → commit."""
        self.has_modules = False

    def feed(self, chunk: bytes) -> None:
        """Raises `Never` when the tree is too large, or names a path that is not written."""
        *records, self._rest = (self._rest + chunk).split(b"\0")
        for record in records:
            self._take(record.decode(errors="surrogateescape"))
        if len(self._rest) > _MAX_RECORD:
            raise Never("The commit holds a path too long to be written", code=UNSAFE_CODE)

    def _take(self, record: str) -> None:
        match = _RECORD.fullmatch(record)
        if match is None:
            raise Never("git's list of the commit cannot be read", code=UNSAFE_CODE)
        path = match["path"]
        try:
            check_path(path)
        except ValueError as error:
            raise Never(f"The commit holds {path[:200]!r}, {error}", code=UNSAFE_CODE) from None
        self._budget.take_file()
        if match["type"] == "commit":
            self.submodules[path] = match["id"]
        elif match["type"] == "blob":
            size = int(match["size"])
            self._budget.take_bytes(size)
            if path == MODULES:
                self.has_modules = match["mode"].startswith("100") and size <= _MAX_MODULES


def read_modules(listing: bytes) -> Mapping[str, Submodule]:
    """Path → submodule, from `git config --list -z` of `.gitmodules`. Later values win, as git has it."""
    sections: dict[str, dict[str, str]] = {}
    for entry in listing.decode(errors="surrogateescape").split("\0"):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, _, variable = rest.rpartition(".")
        if section == "submodule" and name:
            sections.setdefault(name, {})[variable] = value
    found = (
        Submodule(values["path"].rstrip("/"), values.get("url", ""), values.get("update", ""))
        for values in sections.values()
        if "path" in values
    )
    return {submodule.path: submodule for submodule in found}
