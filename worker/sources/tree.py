"""Writing foreign files: nothing leaves the checkout, nothing but files, folders and links gets in.

While members are written no symbolic link exists, so no path can lead through one. Links are made at the end, where no
folder may have taken their place, and looked at together, because a chain of harmless-looking links can lead out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from worker.errors import Again, Never, WorkerError
from worker.sources.checkout import Budget
from worker.sources.stoppable import StopCheck

MAX_PATH = 1024
MAX_NAME = 255
"""Bytes of a path and of one of its parts. The part's is Linux' own (NAME_MAX), the path's leaves room for a prefix."""
MAX_DEPTH = 64
MAX_LINK = 4095
CHUNK = 1 << 20

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Readable(Protocol):
    """A member's content."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


def check_path(name: str) -> tuple[str, ...]:
    """The parts of a relative path; raises `ValueError` saying why it is not one that we write."""
    if name.startswith("/"):
        raise ValueError("an absolute path")
    if "\0" in name:
        raise ValueError("a path with a NUL in it")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ValueError("a path with `..` in it")
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        raise ValueError("a path that is no text") from None
    if len(parts) > MAX_DEPTH or sum(sizes) + len(sizes) > MAX_PATH or max(sizes, default=0) > MAX_NAME:
        raise ValueError(
            f"a path too long (at most {MAX_PATH} bytes, {MAX_NAME} a part, {MAX_DEPTH} folders deep)"
        )
    return parts


class TreeWriter:
    """Writes the members of an archive below `root`, which is empty. Blocks; for use in a thread."""

    def __init__(self, root: Path, budget: Budget, *, code: str, check_stop: StopCheck) -> None:
        """`code` of the `Never` that an unsafe member raises."""
        self._root = root
        self._budget = budget
        self._code = code
        self._check_stop = check_stop
        self._links: dict[tuple[str, ...], str] = {}
        self.files = 0

    def refuse(self, name: str, what: str) -> Never:
        """The error that names the member and what is wrong with it."""
        return Never(f"Archive member {name[:200]!r}: {what}; pack it without that", code=self._code)

    def folder(self, name: str) -> None:
        """A folder; one that is there already stays."""
        parts = self._parts(name)
        self._make_folders(name, parts)

    def file(self, name: str, content: Readable, *, size: int, executable: bool) -> None:
        """A file; of its mode only whether it can be executed is kept. A later member of a name replaces it."""
        parts = self._parts(name)
        if not parts:
            raise self.refuse(name, "a file without a name")
        self._budget.take_file()
        self._budget.require(size)
        self._links.pop(parts, None)
        with os.fdopen(self._create(name, parts), "wb") as out:
            while chunk := content.read(CHUNK):
                self._check_stop()
                self._budget.take_bytes(len(chunk))
                out.write(chunk)
            os.fchmod(out.fileno(), 0o755 if executable else 0o644)
        self.files += 1

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link, made by `finish`."""
        parts = self._parts(name)
        self._budget.take_file()
        if not parts or not target or "\0" in target or len(os.fsencode(target)) > MAX_LINK:
            raise self.refuse(name, "a link without a name or target")
        if target.startswith("/"):
            raise self.refuse(name, f"a link to the absolute path {target[:200]!r}")
        self._make_folders(name, parts[:-1])
        self._clear(name, self._root.joinpath(*parts))
        self._links[parts] = target
        self.files += 1

    def hard_link(self, name: str, target: str) -> None:
        """Another name for an earlier file. It counts like a copy: that is what the image's layers make of it."""
        parts = self._parts(name)
        try:
            source = check_path(target)
        except ValueError as error:
            raise self.refuse(name, f"a hard link to {target[:200]!r}, {error}") from None
        self._budget.take_file()
        path, existing = self._root.joinpath(*parts), self._root.joinpath(*source)
        try:
            found = existing.lstat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if not parts or found is None or not stat.S_ISREG(found.st_mode):
            raise self.refuse(
                name, f"a hard link to {target[:200]!r}, which is no earlier file of the archive"
            )
        if parts == source:
            return
        self._budget.take_bytes(found.st_size)
        self._links.pop(parts, None)
        self._make_folders(name, parts[:-1])
        self._clear(name, path)
        os.link(existing, path)
        self.files += 1

    def finish(self) -> None:
        """Make the links, and refuse those that lead out."""
        for parts, target in self._links.items():
            self._check_stop()
            try:
                self._root.joinpath(*parts).symlink_to(target)
            except FileExistsError:
                raise self.refuse("/".join(parts), "a link in the place of a folder") from None
        paths = (self._root.joinpath(*parts) for parts in self._links)
        for path in links_out(self._root, paths):
            name = str(path.relative_to(self._root))
            raise self.refuse(name, f"a link out of the archive, to {str(path.readlink())[:200]!r}")

    def _parts(self, name: str) -> tuple[str, ...]:
        self._check_stop()
        try:
            return check_path(name)
        except ValueError as error:
            raise self.refuse(name, str(error)) from None

    def _create(self, name: str, parts: tuple[str, ...]) -> int:
        """Open a new file for writing; a file that is there is taken away, not written to: it may have links."""
        path = self._root.joinpath(*parts)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._make_folders(name, parts[:-1])
        except FileExistsError:
            self._clear(name, path)
        except NotADirectoryError:
            raise self.refuse(name, "a path beneath a file") from None
        return os.open(path, flags, 0o600)

    def _make_folders(self, name: str, parts: tuple[str, ...]) -> None:
        for end in range(1, len(parts) + 1):
            path = self._root.joinpath(*parts[:end])
            try:
                path.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(path.lstat().st_mode):
                    raise self.refuse(name, "a path beneath a file") from None
            else:
                path.chmod(0o755)  # whatever the worker's umask is
                self._budget.take_file()

    def _clear(self, name: str, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):
            raise self.refuse(name, "a file or link in the place of a folder") from None


def links_out(root: Path, links: Iterable[Path]) -> Iterator[Path]:
    """Those of `links` that lead out of `root`, followed all the way."""
    top = os.path.realpath(root)
    for link in links:
        target = os.path.realpath(link)
        if target != top and not target.startswith(f"{top}/"):
            yield link


def storage_error(error: OSError) -> WorkerError:
    """A full disk is mended by time or by somebody; a name that the file system refuses is not."""
    if error.errno in _NO_ROOM:
        return Again("The worker's disk is full; it needs room in LAUNCH_WORK_DIR")
    return Again(f"Writing the source failed: {error.strerror or error}")
