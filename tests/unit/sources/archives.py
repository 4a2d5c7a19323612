"""Archives for tests, good and evil, made member by member."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

_BLOCK = 16 << 20

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> Member:
    """A tar member of any kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = len(content)
    return info, content


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, link=target)


def folder(name: str, mode: int = 0o755) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def tar_bytes(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def targz_bytes(*members: Member) -> bytes:
    return gzip.compress(tar_bytes(*members))


ZipMember = tuple[zipfile.ZipInfo, bytes]


def zip_member(name: str, content: bytes = b"", *, mode: int = 0o100644, system: int = 3) -> ZipMember:
    """A zip member; `mode` as `stat` has it, `system` 0 for DOS and 3 for Unix."""
    info = zipfile.ZipInfo(name)
    info.filename = name
    info.external_attr = mode << 16
    info.create_system = system
    return info, content


def zip_bytes(*members: ZipMember, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, content in members:
            archive.writestr(info, content, compress_type=method)
    return buffer.getvalue()


def zeros_targz(path: Path, size: int) -> None:
    """A file of `size` zeros in a gzipped tar, small on disk."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    block = gzip.compress(bytes(_BLOCK))
    with path.open("wb") as file:
        file.write(gzip.compress(info.tobuf(tarfile.PAX_FORMAT)))
        for _ in range(size // _BLOCK):
            file.write(block)  # gzip files can be put one behind the other


def zeros_zip(path: Path, size: int) -> None:
    """The same in a zip."""
    bundle = zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    with bundle, bundle.open("zeros", "w", force_zip64=True) as file:
        for _ in range(size // _BLOCK):
            file.write(bytes(_BLOCK))


def holes_tar(path: Path, size: int) -> None:
    """What GNU tar writes for a file that is one hole of `size` bytes (old GNU format: GNU tar manual, "Storing Sparse
    Files"): a header with a map, and no data."""

    def number(value: int) -> bytes:
        return b"\x80" + value.to_bytes(11, "big")

    header = bytearray(tarfile.TarInfo("holes").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = number(size) + number(0)  # the only block of data: at the end, empty
    header[483:495] = number(size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(1024))
