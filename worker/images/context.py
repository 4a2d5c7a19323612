"""The build context as a tar that is the same wherever and whenever it is made.

Names are sorted; times, owners and modes are fixed (a file is executable or not); what a daemon cannot use (`.git`,
links that lead out of the context, sockets, devices) is left out. `.dockerignore` is applied here: the daemon does
not apply it to a tar.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from worker.errors import Never, Stage
from worker.images.dockerfile import Recipe
from worker.images.dockerignore import DockerIgnore
from worker.images.generated import RESERVED

DOCKERFILE = f"{RESERVED}/Dockerfile"
"""Where the Dockerfile stands in every context: the `dockerfile` parameter of a build."""
_MTIME = 315_532_800
"""1980-01-01: zip, and so wheels that a build makes from these files, know no earlier time."""
_MAX_TEXT = 1 << 20
_NEVER_SENT = frozenset({".git"})


@dataclass(frozen=True, slots=True)
class ContextFacts:
    """What a context is made of."""

    digest: str
    """`sha256:…` of the tar; the same source and recipe give the same one."""
    files: int
    """Files and links in it; folders not counted."""
    bytes: int
    """Size of the tar."""
    left_out: tuple[str, ...] = ()
    """Links that lead out, sockets, devices: not sent, to be told to the submitter."""


class SourceFolder:
    """A fetched source as `SourceFiles`. It reads files: call `plan_recipe` with it in a thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def text(self, path: str) -> str | None:
        """A file's text; None for what is no file, or lies outside by way of a link.

        Raises `Never` (LW-SOURCE-FILE) for more than 1 MiB, which no Dockerfile or list of requirements has."""
        found = self._resolve(path)
        if found is None or not found.is_file():
            return None
        if found.stat().st_size > _MAX_TEXT:
            raise Never(
                f"{path} is larger than 1 MiB; it cannot be what its name says",
                code="LW-SOURCE-FILE",
                stage=Stage.BUILD,
            )
        return found.read_text("utf-8-sig", errors="replace")

    def is_folder(self, path: str) -> bool:
        """There is such a folder."""
        found = self._resolve(path)
        return found is not None and found.is_dir()

    def _resolve(self, path: str) -> Path | None:
        try:
            found = (self._root / path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # missing; a name too long, a NUL in it, a loop of links
            return None
        return found if found.is_relative_to(self._root.resolve()) else None


@functools.cache
def installer() -> str:
    """The text of `install.py`, which generated Dockerfiles run. Reads a file at its first call."""
    return Path(__file__).with_name("install.py").read_text("utf-8")


async def write_context(root: Path, recipe: Recipe, target: Path) -> ContextFacts:
    """Write the context of `recipe`, from the source at `root`, as a tar to `target`, in a thread.

    Raises `Never` (LW-DOCKERIGNORE) for ignore patterns that Docker would refuse, OSError when the disk does."""
    return await asyncio.to_thread(_write, root / recipe.context, recipe, target)


def _write(folder: Path, recipe: Recipe, target: Path) -> ContextFacts:
    added = {DOCKERFILE: recipe.dockerfile.encode(), **{path: text.encode() for path, text in recipe.added}}
    walk = _Walk(folder, recipe)
    files = 0
    with target.open("wb") as raw:
        hashed = _Hashed(raw)
        with tarfile.open(fileobj=cast("BinaryIO", hashed), mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for path, content in sorted(added.items()):
                archive.addfile(_member(path, size=len(content)), BytesIO(content))
                files += 1
            for path, entry in walk.entries():
                if path not in added:
                    _add(archive, path, entry)
                    files += not entry.is_dir(follow_symlinks=False)
    return ContextFacts(f"sha256:{hashed.digest.hexdigest()}", files, hashed.size, tuple(walk.left_out))


class _Hashed:
    """A file that knows the digest and size of what was written to it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._raw.write(data)


class _Walk:
    """Everything beneath a folder that belongs into the context, in one order everywhere."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder = folder
        self._real = os.path.realpath(folder)
        self._ignore = DockerIgnore(recipe.ignore)
        self._always = recipe.needed | {".dockerignore"}
        self.left_out: list[str] = []

    def entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """(path, entry); a folder comes before what is in it, an ignored one only if something in it is sent."""
        return self._beneath("", sent=False)

    def _beneath(self, prefix: str, *, sent: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(self._folder / prefix) as listing:
            found = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        for entry in found:
            path = f"{prefix}{entry.name}"
            if entry.name in _NEVER_SENT or path == RESERVED:
                continue
            needed = sent or path in self._always
            wanted = needed or not self._ignore.ignores(path)
            if entry.is_dir(follow_symlinks=False):
                yield from self._folder_entries(path, entry, wanted=wanted, sent=needed)
            elif wanted and self._is_sendable(path, entry):
                yield path, entry

    def _folder_entries(
        self, path: str, entry: os.DirEntry[str], *, wanted: bool, sent: bool
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        if wanted:
            yield path, entry
            yield from self._beneath(f"{path}/", sent=sent)
            return
        saved = any(always.startswith(f"{path}/") for always in self._always)
        if saved or not self._ignore.ignores_all_beneath(path):
            for number, item in enumerate(self._beneath(f"{path}/", sent=False)):
                if number == 0:
                    yield path, entry
                yield item

    def _is_sendable(self, path: str, entry: os.DirEntry[str]) -> bool:
        if entry.is_file(follow_symlinks=False):
            return True
        if entry.is_symlink() and not Path(entry.path).readlink().is_absolute():
            real = os.path.realpath(entry.path)
            if real == self._real or real.startswith(f"{self._real}{os.sep}"):
                return True
        self.left_out.append(path)
        return False


def _add(archive: tarfile.TarFile, path: str, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        archive.addfile(_member(path, kind=tarfile.SYMTYPE, link=os.readlink(entry.path)))  # noqa: PTH115  # as it is, not cleaned
    elif entry.is_dir(follow_symlinks=False):
        archive.addfile(_member(path, kind=tarfile.DIRTYPE))
    else:
        # The name was no link a moment ago; if it is one now, do not follow it.
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            executable = bool(facts.st_mode & 0o100)
            archive.addfile(_member(path, size=facts.st_size, executable=executable), file)


def _member(
    path: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, executable: bool = False, link: str = ""
) -> tarfile.TarInfo:
    modes: Mapping[bytes, int] = {tarfile.SYMTYPE: 0o777, tarfile.DIRTYPE: 0o755}
    member = tarfile.TarInfo(path)
    member.type, member.size, member.linkname, member.mtime = kind, size, link, _MTIME
    member.mode = modes.get(kind, 0o755 if executable else 0o644)
    return member
