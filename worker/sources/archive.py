"""Unpacking archives that somebody else made: tar, gzipped tar, zip.

Members are read in order from a stream and written by `TreeWriter`. What is counted is what is read, for sizes in
headers may lie; what the readers themselves keep in memory is bounded too.
"""

from __future__ import annotations

import errno
import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from worker.errors import Never
from worker.sources.checkout import Budget, SourceLimits
from worker.sources.stoppable import StopCheck, run_stoppable
from worker.sources.tree import CHUNK, MAX_LINK, Readable, TreeWriter, storage_error

KIND_CODE = "LW-ARCHIVE-KIND"
UNSAFE_CODE = "LW-ARCHIVE-UNSAFE"
BAD_CODE = "LW-ARCHIVE-BAD"
TOO_LARGE_CODE = "LW-ARCHIVE-TOO-LARGE"
ENCRYPTED_CODE = "LW-ARCHIVE-ENCRYPTED"

_HEADER_LIMIT = 1 << 20
"""Bytes of headers before one member (long names, pax records, maps of holes), which tarfile reads into memory."""
_DIRECTORY_LIMIT = 64 << 20
"""Bytes of a zip's central directory, which zipfile reads into memory."""
_DIRECTORY_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1
_MADE_ON_DOS = 0

# What the readers raise for broken input. Some of it comes from parsing numbers and text, some from nested headers.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    NotImplementedError,
    RecursionError,
)

Reader = Callable[[Path, TreeWriter, SourceLimits], None]


def archive_kind(name: str) -> str:
    """`.tar`, `.tar.gz`, `.tgz` or `.zip`: how the archive called `name` is read.

    Raises `Never` (`LW-ARCHIVE-KIND`) for any other ending."""
    ending = next((ending for ending in _READERS if name.lower().endswith(ending)), None)
    if ending is None:
        raise Never(
            f"{name!r} is no archive that can be read; pack it as .tar.gz, .tar or .zip", code=KIND_CODE
        )
    return ending


async def unpack(archive: Path, kind: str, root: Path, limits: SourceLimits) -> None:
    """Write the members of `archive` into the empty folder `root`; top-level folders are kept as they are.

    Raises `Never` (`LW-ARCHIVE-UNSAFE` naming the member, `-TOO-LARGE`, `-BAD`, `-ENCRYPTED`), or `Again` when the disk
    is full. When cancelled, nothing is written any more once it has returned."""
    await run_stoppable(lambda check_stop: _unpack(archive, kind, root, limits, check_stop))


def _unpack(archive: Path, kind: str, root: Path, limits: SourceLimits, check_stop: StopCheck) -> None:
    budget = Budget(limits, code=TOO_LARGE_CODE)
    tree = TreeWriter(root, budget, code=UNSAFE_CODE, check_stop=check_stop)
    try:
        _READERS[kind](archive, tree, limits)
        tree.finish()
    except _BROKEN as error:
        raise Never(f"The archive cannot be read as {kind}: {error}; pack it again", code=BAD_CODE) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset that no file has
            raise Never(f"The archive cannot be read as {kind}; pack it again", code=BAD_CODE) from error
        raise storage_error(error) from error
    if not tree.files:
        raise Never("The archive holds no file; pack the code into it", code=BAD_CODE)


class _Header(tarfile.TarInfo):
    """A tar header. tarfile takes a broken one in the middle for the end of the archive; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the block of zeros that ends an archive
            raise ValueError(f"a broken or missing header ({error})") from error


class _TarFile(tarfile.TarFile):
    members: list[tarfile.TarInfo]


class _Stream(io.RawIOBase):
    """The bytes of a tar, as far as they are allowed to be read for the next header or member."""

    def __init__(self, source: Readable) -> None:
        super().__init__()
        self._source = source
        self._allowed = _HEADER_LIMIT

    def allow(self, size: int = 0) -> None:
        """Content of `size` bytes may come now, and headers."""
        self._allowed = size + _HEADER_LIMIT

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._allowed -= len(data)
        if self._allowed < 0:
            raise ValueError(f"more than {_HEADER_LIMIT} bytes of headers or padding in one place")
        return data


def _read_tar(archive: Path, tree: TreeWriter, _: SourceLimits) -> None:
    with archive.open("rb") as file:
        _read_tar_stream(_Stream(file), tree)


def _read_gzipped_tar(archive: Path, tree: TreeWriter, _: SourceLimits) -> None:
    with gzip.open(archive) as file:
        _read_tar_stream(_Stream(file), tree)


def _read_tar_stream(stream: _Stream, tree: TreeWriter) -> None:
    with _TarFile.open(mode="r|", fileobj=stream, tarinfo=_Header, encoding="utf-8", bufsize=1 << 16) as tar:
        while (member := tar.next()) is not None:
            stream.allow(member.size if member.isreg() else 0)
            _write_tar_member(tar, member, tree)
            stream.allow()
            tar.members = []  # tarfile would keep every header it has seen
    while stream.read(CHUNK):  # to the end, where gzip's checksum is
        pass


def _write_tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: TreeWriter) -> None:
    if member.isdir():
        tree.folder(member.name)
    elif member.issym():
        tree.symlink(member.name, member.linkname)
    elif member.islnk():
        tree.hard_link(member.name, member.linkname)
    elif member.isreg() and (content := tar.extractfile(member)) is not None:
        with content:
            tree.file(member.name, content, size=member.size, executable=bool(member.mode & 0o111))
    else:
        kind = "a device" if member.isdev() else f"of the unknown kind {member.type!r}"
        raise tree.refuse(member.name, f"is {kind}, not a file, folder or link")


class _ZipFile(io.FileIO):
    """A zip on disk that refuses to hand out a central directory too large to be kept in memory."""

    def __init__(self, path: Path, max_entries: int) -> None:
        super().__init__(path, "rb")
        self._max_entries = max_entries

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY_LIMIT:
            raise Never("The zip's list of members is too large; pack fewer files", code=TOO_LARGE_CODE)
        data = super().read(-1 if size is None else size)
        if len(data) > CHUNK and data.count(_DIRECTORY_ENTRY) > self._max_entries:
            raise Never(
                f"The zip has more than {self._max_entries} members; pack fewer (LAUNCH_SOURCE_MAX_FILES)",
                code=TOO_LARGE_CODE,
            )
        return data


def _read_zip(archive: Path, tree: TreeWriter, limits: SourceLimits) -> None:
    with _ZipFile(archive, limits.source_max_files) as file, zipfile.ZipFile(file) as bundle:
        for member in bundle.infolist():
            _write_zip_member(bundle, member, tree)


def _write_zip_member(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, tree: TreeWriter) -> None:
    name = member.orig_filename
    if member.create_system == _MADE_ON_DOS:
        name = name.replace("\\", "/")
    if member.flag_bits & _ENCRYPTED:
        raise Never(
            f"Zip member {name[:200]!r} is encrypted; pack it without a password", code=ENCRYPTED_CODE
        )
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"member {name[:200]!r} is compressed in a way other than deflate")
    mode = 0 if member.create_system == _MADE_ON_DOS else member.external_attr >> 16
    if name.endswith("/") or stat.S_ISDIR(mode):
        tree.folder(name)
        return
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise tree.refuse(name, "is a device, not a file, folder or link")
    with bundle.open(member) as content:
        if stat.S_ISLNK(mode):
            tree.symlink(name, content.read(MAX_LINK + 1).decode(errors="surrogateescape"))
        else:
            tree.file(name, content, size=member.file_size, executable=bool(mode & 0o111))


_READERS: dict[str, Reader] = {
    ".tar": _read_tar,
    ".tar.gz": _read_gzipped_tar,
    ".tgz": _read_gzipped_tar,
    ".zip": _read_zip,
}
