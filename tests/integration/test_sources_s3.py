"""Sources from S3: the real client against moto, and against a server that breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from tests.unit.sources.archives import (
    holes_tar,
    member,
    symlink,
    tar_bytes,
    targz_bytes,
    zip_bytes,
    zip_member,
)
from worker.clients.aws import AwsDenied
from worker.errors import Again, Never, Stage, Throttled, Unreachable
from worker.launch.message import CodeSource
from worker.local.aws import running_aws
from worker.sources.checkout import Checkout, SourceLimits
from worker.sources.fetch import Sources
from worker.sources.git import GitClient

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

BUCKET = "launch-dev"
SMALL = SourceLimits(source_max_bytes=1_000_000, source_max_files=100)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@dataclass(frozen=True)
class Bench:
    """A bucket, and sources that read from it."""

    s3: S3Client
    work_dir: Path

    def sources(self, limits: SourceLimits = SMALL) -> Sources:
        return Sources(s3=self.s3, git=GitClient(environ={}), work_dir=self.work_dir, limits=limits)

    async def put(self, key: str, data: bytes) -> str:
        await self.s3.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    async def fetch(self, uri: str, limits: SourceLimits = SMALL) -> tuple[Checkout, dict[str, str]]:
        async with self.sources(limits).checkout(CodeSource(uri)) as checkout:
            files = sorted(path for path in checkout.path.rglob("*") if path.is_file())
            return checkout, {str(path.relative_to(checkout.path)): path.read_text() for path in files}

    async def refusal(self, uri: str) -> Never:
        with pytest.raises(Never) as caught:
            await self.fetch(uri)
        assert caught.value.stage is Stage.AGENT
        return caught.value


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running_aws() as aws, aws.session().client("s3", endpoint_url=aws.endpoint) as s3:
        await s3.create_bucket(Bucket=BUCKET)
        yield Bench(s3, tmp_path)
        assert names(tmp_path) == [], "something was left in the work folder"


CODE = {"train.py": "print()", "pkg/model.py": "1"}


def archive(kind: str) -> bytes:
    members = {name: text.encode() for name, text in CODE.items()}
    if kind == ".zip":
        return zip_bytes(*(zip_member(name, content) for name, content in members.items()))
    make = tar_bytes if kind == ".tar" else targz_bytes
    return make(*(member(name, content) for name, content in members.items()))


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".tgz", ".zip"])
async def test_archives(bench: Bench, kind: str) -> None:
    data = archive(kind)
    uri = await bench.put(f"some folder/job{kind}", data)
    checkout, files = await bench.fetch(uri)
    assert files == CODE
    assert checkout.content_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (checkout.origin, checkout.commit) == (uri, "")


async def test_while_a_checkout_is_lent_nothing_else_is_kept_of_it(bench: Bench) -> None:
    uri = await bench.put("job.tar", archive(".tar"))
    async with bench.sources().checkout(CodeSource(uri)) as checkout:
        kept = set(names(checkout.path.parent))
        assert kept == {"tree", "owner.lock"}


async def test_an_archive_of_many_chunks(bench: Bench) -> None:
    content = os.urandom(5_000_000).hex()
    uri = await bench.put("big.tar", tar_bytes(member("data", content.encode())))
    _, files = await bench.fetch(uri, SourceLimits())
    assert files == {"data": content}


@pytest.mark.parametrize(
    ("key", "data", "code"),
    [
        ("gone.tar.gz", None, "LW-S3-NOT-FOUND"),
        ("job.rar", b"Rar!", "LW-ARCHIVE-KIND"),
        ("job", b"x", "LW-ARCHIVE-KIND"),
        ("evil.tar", tar_bytes(member("../x", b"1")), "LW-ARCHIVE-UNSAFE"),
        ("links.tar.gz", targz_bytes(symlink("x", "/etc")), "LW-ARCHIVE-UNSAFE"),
        ("broken.tar.gz", b"nothing", "LW-ARCHIVE-BAD"),
        ("empty.zip", zip_bytes(), "LW-ARCHIVE-BAD"),
        ("large.tar.gz", targz_bytes(member("zeros", bytes(2_000_000))), "LW-ARCHIVE-TOO-LARGE"),
        ("large.zip", os.urandom(1_500_000), "LW-ARCHIVE-TOO-LARGE"),
        ("many.zip", zip_bytes(*(zip_member(str(n)) for n in range(101))), "LW-ARCHIVE-TOO-LARGE"),
    ],
    ids=[
        "missing",
        "rar",
        "no kind",
        "path",
        "link",
        "no gzip",
        "no file",
        "long tar",
        "long zip",
        "many files",
    ],
)
async def test_what_is_refused(bench: Bench, key: str, data: bytes | None, code: str) -> None:
    if data is not None:
        await bench.put(key, data)
    error = await bench.refusal(f"s3://{BUCKET}/{key}")
    assert error.code == code


async def test_ten_gigabytes_of_nothing(bench: Bench, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    holes_tar(bomb, 10 << 30)
    data = bomb.read_bytes()
    bomb.unlink()
    assert len(data) < 10_000
    assert (await bench.refusal(await bench.put("bomb.tar", data))).code == "LW-ARCHIVE-TOO-LARGE"


async def test_a_bucket_that_is_not_there(bench: Bench) -> None:
    error = await bench.refusal("s3://no-such-bucket-here/job.zip")
    assert error.code == "LW-S3-NOT-FOUND"
    assert "NoSuchBucket" in str(error)


async def test_a_cancelled_download_leaves_nothing(bench: Bench) -> None:
    uri = await bench.put("job.tar", tar_bytes(member("data", bytes(50_000_000))))
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(bench.fetch(uri, SourceLimits()))
        while not list(bench.work_dir.rglob("archive")):  # noqa: ASYNC110  # a file appears; nobody tells
            await asyncio.sleep(0.001)
        fetching.cancel()
    assert fetching.cancelled()
    assert names(bench.work_dir) == []


# --- S3 in trouble, which moto never is


@contextlib.asynccontextmanager
async def answering(status: int, body: bytes, headers: dict[str, str], cut: int = 0) -> AsyncIterator[str]:
    """An endpoint that answers everything alike; with `cut`, it breaks off after so many bytes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        if "Transfer-Encoding" not in headers:
            response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: cut or None])
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>because</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", AwsDenied),
        (403, "ExpiredToken", AwsDenied),
        (500, "InternalError", Unreachable),
        (503, "SlowDown", Throttled),
        (403, "InvalidObjectState", Again),
        (400, "InvalidRequest", Never),
    ],
)
async def test_errors_of_s3(tmp_path: Path, status: int, code: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="because"):
        await fetch_from(tmp_path, status, error_body(code), {"Content-Type": "application/xml"})
    assert names(tmp_path) == []


async def test_a_download_that_breaks_off_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=f"s3://{BUCKET}/job.tar"):
        await fetch_from(tmp_path, 200, tar_bytes(member("a", bytes(200_000))), {}, cut=100_000)
    assert names(tmp_path) == []


async def test_a_large_object_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(Never) as caught:
        await fetch_from(tmp_path, 200, bytes(2_000_000), {}, cut=100_000)
    assert caught.value.code == "LW-ARCHIVE-TOO-LARGE"


async def test_an_object_of_untold_size_is_counted_as_it_comes(tmp_path: Path) -> None:
    with pytest.raises(Never) as caught:
        await fetch_from(tmp_path, 200, bytes(20_000_000), {"Transfer-Encoding": "chunked"})
    assert caught.value.code == "LW-ARCHIVE-TOO-LARGE"


async def test_nobody_there_is_tried_again(tmp_path: Path) -> None:
    async with running_client("http://127.0.0.1:1") as s3:
        with pytest.raises(Unreachable):
            await Bench(s3, tmp_path).fetch(f"s3://{BUCKET}/job.tar")


async def fetch_from(tmp_path: Path, status: int, body: bytes, headers: dict[str, str], cut: int = 0) -> None:
    async with answering(status, body, headers, cut) as endpoint, running_client(endpoint) as s3:
        await Bench(s3, tmp_path).fetch(f"s3://{BUCKET}/job.tar")


@contextlib.asynccontextmanager
async def running_client(endpoint: str) -> AsyncIterator[S3Client]:
    """A client configured as the worker's own."""
    import aioboto3

    from worker.clients.aws import client_config

    session = aioboto3.Session("key", "secret", region_name="us-east-1")
    async with session.client("s3", endpoint_url=endpoint, config=client_config()) as s3:
        yield s3
