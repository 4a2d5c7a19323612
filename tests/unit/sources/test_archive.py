"""Archives: what comes out of good ones, and that evil ones get nothing out of the checkout."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import stat
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.sources.archives import (
    folder,
    hard_link,
    holes_tar,
    member,
    symlink,
    tar_bytes,
    targz_bytes,
    zeros_targz,
    zeros_zip,
    zip_bytes,
    zip_member,
)
from worker.errors import Again, Never, WorkerError
from worker.sources.archive import archive_kind, unpack
from worker.sources.checkout import SourceLimits

LIMITS = SourceLimits(source_max_bytes=1_000_000, source_max_files=100)
TEN_GB = 10 << 30


async def unpacked(tmp_path: Path, data: bytes, kind: str, limits: SourceLimits = LIMITS) -> Path:
    """Unpack `data`; nothing but the archive and the checkout may have changed."""
    archive, root = tmp_path / "archive", tmp_path / "checkout"
    archive.write_bytes(data)
    root.mkdir()
    before = snapshot(tmp_path)
    try:
        await unpack(archive, kind, root, limits)
    finally:
        assert snapshot(tmp_path) == before, "something was written outside of the checkout"
    return root


def snapshot(folder: Path) -> dict[str, bytes]:
    inside = folder / "checkout"
    files = (path for path in folder.rglob("*") if not path.is_relative_to(inside) and path.is_file())
    return {str(path): path.read_bytes() for path in files}


async def refusal(tmp_path: Path, data: bytes, kind: str, limits: SourceLimits = LIMITS) -> Never:
    with pytest.raises(Never) as caught:
        await unpacked(tmp_path, data, kind, limits)
    return caught.value


def read_tree(root: Path) -> dict[str, str]:
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        str(path.relative_to(root)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in paths
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.tar", ".tar"),
        ("b.tar.gz", ".tar.gz"),
        ("b.TGZ", ".tgz"),
        ("b.zip", ".zip"),
        ("v1.2.tar.gz", ".tar.gz"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert archive_kind(name) == kind


@pytest.mark.parametrize("name", ["code", "code.tar.bz2", "code.tar.xz", "code.7z", "code.gz", "tar.gz/code"])
def test_other_kinds_are_refused_saying_which_are_not(name: str) -> None:
    with pytest.raises(Never, match=r"\.tar\.gz, \.tar or \.zip") as caught:
        archive_kind(name)
    assert caught.value.code == "LW-ARCHIVE-KIND"


GOOD = [
    folder("./"),
    member("./train.py", b"print()"),
    member("run.sh", b"#!/bin/sh", mode=0o6755),
    folder("pkg", mode=0o000),
    member("pkg/deep/er/mod.py", b"1"),
    symlink("latest", "pkg/deep"),
    symlink("pkg/up", "../train.py"),
    symlink("dangling", "nowhere"),
    hard_link("copy.py", "train.py"),
    member("träin-\udcff.py", b"bytes"),
]


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
async def test_a_good_tar(tmp_path: Path, kind: str, umask: int) -> None:
    data = tar_bytes(*GOOD) if kind == ".tar" else targz_bytes(*GOOD)
    before = os.umask(umask)
    try:
        root = await unpacked(tmp_path, data, kind)
    finally:
        os.umask(before)
    assert read_tree(root) == {
        "train.py": "print()",
        "run.sh": "#!/bin/sh",
        "pkg/deep/er/mod.py": "1",
        "latest": "-> pkg/deep",
        "pkg/up": "-> ../train.py",
        "dangling": "-> nowhere",
        "copy.py": "print()",
        "träin-\udcff.py": "bytes",
    }
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root / "run.sh", root / "train.py")}
    assert modes == {"run.sh": 0o755, "train.py": 0o644}, "set-user-id, group and other bits are not kept"
    assert stat.S_IMODE((root / "pkg").stat().st_mode) == 0o755


async def test_a_good_zip(tmp_path: Path) -> None:
    data = zip_bytes(
        zip_member("app/", mode=0o040755),
        zip_member("app/train.py", b"print()"),
        zip_member("app/run.sh", b"#!/bin/sh", mode=0o100755),
        zip_member("app/latest", b"train.py", mode=0o120777),
        zip_member("dos\\made\\x.py", b"dos", system=0),
        zip_member("back\\slash", b"unix"),
    )
    root = await unpacked(tmp_path, data, ".zip")
    assert read_tree(root) == {
        "app/train.py": "print()",
        "app/run.sh": "#!/bin/sh",
        "app/latest": "-> train.py",
        "dos/made/x.py": "dos",
        "back\\slash": "unix",
    }
    assert os.access(root / "app/run.sh", os.X_OK)


async def test_a_top_level_folder_is_kept(tmp_path: Path) -> None:
    root = await unpacked(tmp_path, tar_bytes(member("project/train.py", b"1")), ".tar")
    assert read_tree(root) == {"project/train.py": "1"}


async def test_the_last_member_of_a_name_wins_and_does_not_write_through_hard_links(tmp_path: Path) -> None:
    members = (
        member("a", b"old"),
        hard_link("b", "a"),
        member("a", b"new"),
        member("c", b"x"),
        symlink("c", "a"),
        symlink("d", "a"),
        member("d", b"file"),
        hard_link("a", "a"),
        member("e", b"old"),
        hard_link("e", "a"),
    )
    root = await unpacked(tmp_path, tar_bytes(*members), ".tar")
    assert read_tree(root) == {"a": "new", "b": "old", "c": "-> a", "d": "file", "e": "new"}


EVIL_TARS = {
    "absolute": [member("/etc/cron.d/x", b"1")],
    "parent": [member("../x", b"1")],
    "parent inside": [member("a/../../x", b"1")],
    "parent that stays": [member("a/../x", b"1")],
    "parent folder": [folder("../x")],
    "link to root": [symlink("l", "/etc/passwd")],
    "link out": [symlink("l", "../outside")],
    "link out, deeper": [symlink("a/b/l", "../../../outside")],
    "link out by way of a link": [symlink("here", "."), symlink("l", "here/../outside")],
    "link out by way of a later link": [symlink("l", "zz/../outside"), symlink("zz", ".")],
    "write through a link": [symlink("l", "sub"), member("l/x", b"1")],
    "write through a deep link": [symlink("a/l", "."), member("a/l/b/x", b"1")],
    "folder through a link": [symlink("l", "sub"), folder("l/x")],
    "link over a folder": [folder("l"), symlink("l", "x")],
    "file over a folder": [folder("l"), member("l", b"1")],
    "file beneath a file": [member("f", b"1"), member("f/x", b"1")],
    "link beneath a file": [member("f", b"1"), symlink("f/x", "y")],
    "link without a target": [symlink("l", "")],
    "link with a long target": [symlink("l", "x/" * 3000)],
    "link in the place of the root": [symlink(".", "x")],
    "file in the place of the root": [member(".", b"1")],
    "hard link to root": [hard_link("l", "/etc/passwd")],
    "hard link out": [hard_link("l", "../archive")],
    "hard link to nothing": [hard_link("l", "later"), member("later", b"1")],
    "hard link to a link": [symlink("s", "x"), hard_link("l", "s")],
    "hard link through a link": [symlink("s", "."), member("x", b"1"), hard_link("l", "s/x")],
    "hard link to a folder": [folder("d"), hard_link("l", "d")],
    "hard link beneath a file": [member("f", b"1"), hard_link("l", "f/x")],
    "character device": [member("d", kind=tarfile.CHRTYPE)],
    "block device": [member("d", kind=tarfile.BLKTYPE)],
    "pipe": [member("d", kind=tarfile.FIFOTYPE)],
    "unknown kind": [member("d", b"1", kind=b"Z")],
    "long name": [member("n" * 256, b"1")],
    "long path": [member("/".join(["n" * 100] * 11), b"1")],
    "deep path": [member("d/" * 64 + "f", b"1")],
}


@pytest.mark.parametrize("case", EVIL_TARS)
async def test_evil_tars_are_refused_by_the_name_of_the_member(tmp_path: Path, case: str) -> None:
    (tmp_path / "outside").write_text("untouched")
    members = [member("ok.py", b"1"), *EVIL_TARS[case]]
    error = await refusal(tmp_path, tar_bytes(*members), ".tar")
    assert error.code == "LW-ARCHIVE-UNSAFE"
    guilty = [info.name[:100].rstrip("/") for info, _ in EVIL_TARS[case]]
    assert any(repr(name)[1:-1] in str(error) for name in guilty), str(error)


EVIL_ZIPS = {
    "absolute": zip_member("/etc/x", b"1"),
    "parent": zip_member("../x", b"1"),
    "parent, as DOS has it": zip_member("..\\x", b"1", system=0),
    "parent folder": zip_member("../x/", mode=0o040755),
    "NUL": zip_member("a\0b", b"1"),
    "link out": zip_member("l", b"../outside", mode=0o120777),
    "link to root": zip_member("l", b"/etc/passwd", mode=0o120777),
    "long link": zip_member("l", b"x" * 5000, mode=0o120777),
    "device": zip_member("d", b"", mode=0o020644),
    "pipe": zip_member("d", b"", mode=0o010644),
    "socket": zip_member("d", b"", mode=0o140644),
}


@pytest.mark.parametrize("case", EVIL_ZIPS)
async def test_evil_zips_are_refused_by_the_name_of_the_member(tmp_path: Path, case: str) -> None:
    error = await refusal(tmp_path, zip_bytes(zip_member("ok.py", b"1"), EVIL_ZIPS[case]), ".zip")
    assert error.code == "LW-ARCHIVE-UNSAFE"
    assert "Archive member" in str(error)


async def test_encrypted_zips_are_refused(tmp_path: Path) -> None:
    data = bytearray(zip_bytes(zip_member("secret.py", b"1")))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    error = await refusal(tmp_path, bytes(data), ".zip")
    assert error.code == "LW-ARCHIVE-ENCRYPTED"
    assert "'secret.py'" in str(error)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_rare_compressions_are_refused(tmp_path: Path, method: int) -> None:
    error = await refusal(tmp_path, zip_bytes(zip_member("a", b"1"), method=method), ".zip")
    assert error.code == "LW-ARCHIVE-BAD"
    assert "deflate" in str(error)


# --- too large


@pytest.mark.parametrize(
    ("make", "kind"), [(zeros_targz, ".tar.gz"), (zeros_zip, ".zip"), (holes_tar, ".tar")]
)
async def test_bombs_of_ten_gigabytes(tmp_path: Path, make: Callable[[Path, int], None], kind: str) -> None:
    archive = tmp_path / "bomb"
    make(archive, 1 << 30 if make is zeros_zip else TEN_GB)
    assert archive.stat().st_size < 16 << 20
    root = tmp_path / "checkout"
    root.mkdir()
    with pytest.raises(Never, match="LAUNCH_SOURCE_MAX_BYTES") as caught:
        await unpack(archive, kind, root, LIMITS)
    assert caught.value.code == "LW-ARCHIVE-TOO-LARGE"
    assert written(root) <= LIMITS.source_max_bytes


def written(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", [".tar", ".zip"])
async def test_a_header_that_lies_about_the_size_helps_nobody(tmp_path: Path, kind: str) -> None:
    """What counts is what is read; a tar has no other size than its header's, a zip has two."""
    if kind == ".tar":
        first, second = member("a", b"1" * 600_000), member("b", b"2" * 600_000)
        data = tar_bytes(first, second)
    else:
        data = zip_bytes(zip_member("a", bytes(5_000_000)))
        data = data.replace(struct.pack("<I", 5_000_000), struct.pack("<I", 10))
    error = await refusal(tmp_path, data, kind)
    assert error.code in {"LW-ARCHIVE-TOO-LARGE", "LW-ARCHIVE-BAD"}
    assert written(tmp_path / "checkout") <= LIMITS.source_max_bytes


async def test_hard_links_count_like_copies(tmp_path: Path) -> None:
    members = [member("a", b"1" * 300_000), *(hard_link(f"l{n}", "a") for n in range(4))]
    assert (await refusal(tmp_path, tar_bytes(*members), ".tar")).code == "LW-ARCHIVE-TOO-LARGE"


MANY = {
    "files": [member(f"f{n}") for n in range(101)],
    "folders": [folder(f"d{n}") for n in range(101)],
    "folders that are not listed": [member(f"{n}/a/b/c/d/e/f/g/h/i", b"") for n in range(20)],
    "links": [symlink(f"l{n}", "x") for n in range(101)],
    "the same file over and over": [member("f")] * 101,
}


@pytest.mark.parametrize("case", MANY)
async def test_too_many_members(tmp_path: Path, case: str) -> None:
    error = await refusal(tmp_path, tar_bytes(*MANY[case]), ".tar")
    assert error.code == "LW-ARCHIVE-TOO-LARGE"
    assert "LAUNCH_SOURCE_MAX_FILES" in str(error)


async def test_too_many_members_of_a_zip_are_counted_before_they_are_kept_in_memory(tmp_path: Path) -> None:
    data = zip_bytes(*(zip_member(f"{n}/{'x' * 200}") for n in range(6000)))
    error = await refusal(tmp_path, data, ".zip")
    assert error.code == "LW-ARCHIVE-TOO-LARGE"
    assert "more than 100 members" in str(error)
    assert list((tmp_path / "checkout").iterdir()) == []


async def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    members = [member("a", b"1" * 1_000_000), *(member(f"f{n}") for n in range(99))]
    root = await unpacked(tmp_path, tar_bytes(*members), ".tar")
    assert len(list(root.iterdir())) == 100


# --- broken


def with_pax_header(size: int) -> bytes:
    """A pax header of `size` bytes, which tarfile reads into memory at once."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT) + bytes(size) + tar_bytes(member("a", b"1"))


def nested_headers(count: int) -> bytes:
    record = b"12 path=abc\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return (info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")) * count + tar_bytes(
        member("a", b"1")
    )


TAR = tar_bytes(member("a.py", b"1" * 2000), member("b.py", b"2" * 2000))
BROKEN = {
    "empty": (b"", ".tar"),
    "text": (b"hello " * 500, ".tar"),
    "no member": (tar_bytes(), ".tar"),
    "folders only": (tar_bytes(folder("a")), ".tar"),
    "cut in a member": (TAR[:1000], ".tar"),
    "cut between members": (TAR[: 512 + 2048], ".tar"),
    "a header broken in the middle": (TAR[:2600] + b"\xff" + TAR[2601:], ".tar"),
    "a pax header of 3 MB": (with_pax_header(3_000_000), ".tar"),
    "headers of headers": (nested_headers(1500), ".tar"),
    "gzip, empty": (b"", ".tar.gz"),
    "a tar that is not gzipped": (TAR, ".tar.gz"),
    "gzip, cut": (gzip.compress(TAR)[:-20], ".tar.gz"),
    "gzip, wrong checksum": (gzip.compress(TAR)[:-8] + bytes(8), ".tar.gz"),
    "gzip, broken inside": (gzip.compress(TAR)[:30] + b"\xff" * 20 + gzip.compress(TAR)[50:], ".tar.gz"),
    "a gzipped tar called tar": (gzip.compress(TAR), ".tar"),
    "zip, empty": (b"", ".zip"),
    "zip, no member": (zip_bytes(), ".zip"),
    "zip, cut": (zip_bytes(zip_member("a", b"1" * 500))[:-30], ".zip"),
    "zip, wrong checksum": (
        zip_bytes(zip_member("a", b"abc"), method=zipfile.ZIP_STORED).replace(b"abc", b"abd"),
        ".zip",
    ),
    "a tar called zip": (TAR, ".zip"),
}


async def test_a_checksum_behind_the_last_block_is_looked_at(tmp_path: Path) -> None:
    block = 1 << 16  # what is read at once; padded to it, nothing reads on by itself
    tar = tar_bytes(member("a", b"1" * 50_000))
    data = bytearray(gzip.compress(tar.ljust(-(-len(tar) // block) * block, b"\0")))
    data[-5] ^= 1
    assert (await refusal(tmp_path, bytes(data), ".tar.gz")).code == "LW-ARCHIVE-BAD"


async def test_a_file_of_holes_makes_no_room_for_long_headers(tmp_path: Path) -> None:
    holes = tmp_path / "holes"
    holes_tar(holes, 8_000_000)
    data = holes.read_bytes()[:512] + with_pax_header(3_000_000)
    error = await refusal(tmp_path, data, ".tar", SourceLimits())
    assert error.code == "LW-ARCHIVE-BAD"


async def test_members_are_not_kept_in_memory(tmp_path: Path) -> None:
    data = targz_bytes(*(hard_link("f", "f") if n else member("f") for n in range(20_000)))
    tracemalloc.start()
    try:
        await unpacked(tmp_path, data, ".tar.gz", SourceLimits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000, f"{peak} bytes for 20,000 members"


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_archives(tmp_path: Path, case: str) -> None:
    data, kind = BROKEN[case]
    error = await refusal(tmp_path, data, kind)
    assert error.code == "LW-ARCHIVE-BAD"
    assert "pack" in str(error)


def links_out(root: Path) -> list[Path]:
    """Links that lead out, as the kernel follows them."""
    links = [path for path in root.rglob("*") if path.is_symlink()]
    return [link for link in links if not link.resolve().is_relative_to(root)]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_broken_is_an_answer_and_stays_inside(tmp_path: Path, seed: int) -> None:
    """Archives with bytes changed at random: unpacked or refused, never another error, never a file outside."""
    dice = random.Random(seed)
    tar = tar_bytes(*GOOD, member("x/" * 80 + "y", b"long"), form=dice.choice([0, 1, 2]))
    bundle = zip_bytes(zip_member("a/b", b"1" * 300), zip_member("l", b"a", mode=0o120777))
    for n in range(40):
        kind = dice.choice([".tar", ".tar.gz", ".zip"])
        data = bytearray(gzip.compress(tar) if kind == ".tar.gz" else tar if kind == ".tar" else bundle)
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        case = tmp_path / str(n)
        case.mkdir()
        try:
            root = await unpacked(case, bytes(data), kind)
        except WorkerError as error:
            assert isinstance(error, Never), error
        else:
            assert links_out(root) == []


# --- the worker's own troubles


async def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_on_full_disk(path: str | Path, flags: int, mode: int = 0o777) -> int:
        return opened("/dev/full", os.O_WRONLY) if flags & os.O_EXCL else opened(path, flags, mode)

    monkeypatch.setattr("worker.sources.tree.os.open", open_on_full_disk)
    with pytest.raises(Again, match="disk is full"):
        await unpacked(tmp_path, tar_bytes(member("a", b"1" * 100_000)), ".tar")


async def test_a_cancelled_unpacking_writes_nothing_any_more(tmp_path: Path) -> None:
    archive, root = tmp_path / "a.tar.gz", tmp_path / "checkout"
    zeros_targz(archive, 512 << 20)
    root.mkdir()
    threads = set(threading.enumerate())
    async with asyncio.TaskGroup() as group:
        unpacking = group.create_task(unpack(archive, ".tar.gz", root, SourceLimits()))
        while not written(root):  # noqa: ASYNC110  # a file grows; nobody tells
            await asyncio.sleep(0.001)
        unpacking.cancel()
    size = written(root)
    assert 0 < size < 512 << 20
    await asyncio.sleep(0.1)
    assert written(root) == size
    assert unpacking.cancelled()
    assert all(thread.name.startswith("asyncio_") for thread in set(threading.enumerate()) - threads)
