"""What the tests against a real docker daemon share: contexts, a proxy that cuts, and order afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiodocker

from worker.clients.docker import DockerEngine, docker_engine
from worker.local.images import BUSYBOX_IMAGE, ensure_busybox_image

STATE = Path(__file__).parents[2] / ".state"
"""Debian packages for the test image, kept between runs."""


def write_context(path: Path, dockerfile: str, **files: bytes) -> Path:
    """A build context."""
    with tarfile.open(path, "w") as archive:
        for name, content in {"Dockerfile": dockerfile.encode(), **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@dataclass
class DockerBench:
    """A daemon with the busybox image, and names that nobody else uses."""

    engine: DockerEngine
    folder: Path
    mark: str = field(default_factory=lambda: f"launch-test-{uuid.uuid4().hex[:12]}")
    """Label and prefix of all images of this test."""
    base: str = BUSYBOX_IMAGE

    def tag(self, name: str = "image") -> str:
        """A tag of this test's own."""
        return f"{self.mark}/{name}:1"

    def context(self, *steps: str, base: str = "", **files: bytes) -> Path:
        """A context: FROM busybox, then `steps`; none of them comes from the cache."""
        name = uuid.uuid4().hex
        # The label lets us find what a failed build leaves on the daemon; the variable makes each step a new one.
        lines = (f"FROM {base or self.base}", f"LABEL {self.mark}=", f"ENV UNIQUE={name}", *steps)
        return write_context(self.folder / f"{name}.tar", "\n".join(lines) + "\n", **files)


@contextlib.asynccontextmanager
async def docker_bench(folder: Path) -> AsyncIterator[DockerBench]:
    """Nothing of the test is left on the daemon afterwards."""
    async with aiodocker.Docker() as docker, docker_engine() as engine:
        await ensure_busybox_image(docker, STATE)
        bench = DockerBench(engine, folder)
        try:
            yield bench
        finally:
            await _remove_images(docker, bench.mark)


async def _remove_images(docker: aiodocker.Docker, label: str) -> None:
    """A build that was just given up holds its image for a moment yet."""
    async with asyncio.timeout(10):
        while images := await docker.images.list(filters={"label": [label]}):
            for image in images:
                for name in (*(image["RepoTags"] or ()), image["Id"]):
                    with contextlib.suppress(aiodocker.DockerError):
                        # Its parents may be another test process's cache just now.
                        await docker.images.delete(name, force=True, noprune=True)
            await asyncio.sleep(0.05)


def processes(argument: str) -> list[str]:
    """Process ids of the machine whose command line has this argument: RUN steps of either builder are among them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if argument.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(folder.name)
    return found


async def eventually(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether `condition` comes true within `timeout` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110  # other processes set no event
                await asyncio.sleep(0.02)
            return True
    return False


class CuttingProxy:
    """Passes bytes to another address until it is cut; then it takes no connections at all, until mended."""

    def __init__(self, connect: Callable[[], object]) -> None:
        self._connect = connect
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.sent = 0
        """Bytes from clients so far."""
        self.on_sent: Callable[[int], None] = lambda sent: None
        """Called with `sent` as it grows."""
        self.flowing = asyncio.Event()
        """While it is not set, what clients send stays here."""
        self.flowing.set()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    async def mend(self) -> None:
        """Listen (again), always at the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await self._connect()  # type: ignore[misc]
        self._writers |= {writer, upstream}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, upstream, count=True))
                group.create_task(self._pipe(upstream_reader, writer, count=False))
        finally:
            self._writers -= {writer, upstream}
            writer.close()
            upstream.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if count:
                    self.sent += len(data)
                    self.on_sent(self.sent)
                    await self.flowing.wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


@contextlib.asynccontextmanager
async def cutting_proxy(host: str = "", port: int = 0, *, unix: str = "") -> AsyncIterator[CuttingProxy]:
    """A proxy before `host:port` or the socket `unix`."""
    if unix:
        proxy = CuttingProxy(lambda: asyncio.open_unix_connection(unix))
    else:
        proxy = CuttingProxy(lambda: asyncio.open_connection(host, port))
    await proxy.mend()
    try:
        yield proxy
    finally:
        proxy.cut()
        await eventually(lambda: not proxy._writers, 2)
