"""Training jobs as docker containers, one an instance, with /opt/ml as SageMaker lays it out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from worker.errors import WorkerError
from worker.local.executor import FOLDERS, EntrypointNotStarted, ImageNotAvailable, InstanceSpec

_LABEL = "launch-worker.local"
_PROCESSES = f"{_LABEL}.processes"
_REFERENCE = re.compile(r"(?P<repo>.+?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")


class DockerNotRunning(WorkerError):
    """No docker daemon answers."""


@contextlib.asynccontextmanager
async def docker_engine() -> AsyncIterator[aiodocker.Docker]:
    """A client of the daemon that DOCKER_HOST or the usual socket names. Raises `DockerNotRunning`."""
    try:
        first = aiodocker.Docker()
    except (AssertionError, ValueError) as error:
        raise DockerNotRunning("no docker socket found; start dockerd or set DOCKER_HOST") from error
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(first)
        docker = first
        if isinstance(first.connector, aiohttp.UnixConnector):
            # Each container holds two connections; aiodocker's own connector stops at 100.
            connector = aiohttp.UnixConnector(first.connector.path, limit=0)
            stack.push_async_callback(connector.close)
            docker = aiodocker.Docker(url="unix://localhost", connector=connector)
            await stack.enter_async_context(docker)
        try:
            await docker.version()
        except (DockerError, aiohttp.ClientError, OSError) as error:
            raise DockerNotRunning(f"the docker daemon does not answer: {error}") from error
        yield docker


class DockerInstance:
    """A container."""

    def __init__(self, container: DockerContainer) -> None:
        self._container = container
        self._removed = False

    async def start(self) -> None:
        """Start it; a wrong entrypoint shows here."""
        try:
            await self._container.start()
        except DockerError as error:
            raise EntrypointNotStarted(error.message) from error

    async def lines(self) -> AsyncIterator[str]:
        """stdout and stderr; a `\\r` before the end of a line is dropped, others stay."""
        rest = ""
        output = cast("AsyncGenerator[str, None]", self._container.log(stdout=True, stderr=True, follow=True))
        async with contextlib.aclosing(output) as pieces:
            async for piece in pieces:
                *complete, rest = (rest + piece).split("\n")
                for line in complete:
                    yield line.removesuffix("\r")
        if rest:
            yield rest

    async def wait(self) -> int:
        """Exit code."""
        return int((await self._container.wait())["StatusCode"])

    async def stop(self, grace: float) -> None:
        """`docker stop`; harmless when it has ended or is gone."""
        with contextlib.suppress(DockerError):
            await self._container.stop(t=round(grace))

    async def failure(self) -> str:
        """Read /opt/ml/output/failure out of the stopped container."""
        try:
            archive = await self._container.get_archive("/opt/ml/output/failure")
        except DockerError:
            return ""
        with archive:
            member = archive.next()
            file = archive.extractfile(member) if member else None
            return file.read(4096).decode(errors="replace").strip()[:1024] if file else ""

    async def remove(self) -> None:
        """`docker rm -f`, with its anonymous volumes."""
        if not self._removed:
            with contextlib.suppress(DockerError):
                await self._container.delete(force=True, v=True)
            self._removed = True


class DockerExecutor:
    """Runs each instance as a container on the host's network, so that it reaches the stack on loopback."""

    name = "docker"

    def __init__(
        self, docker: aiodocker.Docker, *, registry: str, registry_password: Callable[[], str]
    ) -> None:
        self._docker = docker
        self.registries = {registry} if registry else set()
        """`host:port` of the local ECR and of proxies before it: images from there are pulled, with a fresh token."""
        self._registry_password = registry_password
        self._pulled: set[str] = set()

    async def remove_leftovers(self) -> None:
        """Remove containers of stacks on this host that were killed before they could do so."""
        for container in await self._labelled(_LABEL):
            labels = container["Labels"]
            host, _, pid = labels[_LABEL].rpartition("/")
            # Of another container on this host we cannot know which processes live.
            seen = (host, labels.get(_PROCESSES)) == (socket.gethostname(), _processes())
            if seen and not _is_alive(int(pid)):
                await DockerInstance(container).remove()

    async def _labelled(self, label: str) -> list[DockerContainer]:
        return await self._docker.containers.list(all=True, filters=json.dumps({"label": [label]}))

    async def prepare(self, image: str) -> None:
        """Pull from the local ECR; any other image has to be on the daemon."""
        host = image.partition("/")[0] if "/" in image else ""
        if host in self.registries:
            await self._pull(image, host)
            return
        try:
            await self._docker.images.inspect(image)
        except DockerError as error:
            raise ImageNotAvailable(
                f"Cannot find image {image}: it is neither in the local registry nor on the docker daemon"
            ) from error

    async def _pull(self, image: str, host: str) -> None:
        match = _REFERENCE.fullmatch(image)
        if match is None:
            raise ImageNotAvailable(f"{image} is not an image reference")
        source = f"{match['repo']}@{match['digest']}" if match["digest"] else match["repo"]
        auth = {"username": "AWS", "password": self._registry_password(), "serveraddress": host}
        tag = None if match["digest"] else match["tag"] or "latest"
        try:
            await self._docker.images.pull(source, tag=tag, auth=auth)
        except (DockerError, aiohttp.ClientError) as error:
            raise ImageNotAvailable(f"Cannot pull {image}: {getattr(error, 'message', error)}") from error
        self._pulled.add(f"{source}:{tag}" if tag else source)

    async def create(self, spec: InstanceSpec) -> DockerInstance:
        """Create the container and fill its /opt/ml."""
        try:
            container = await self._docker.containers.create(_container_config(spec))
        except DockerError as error:
            raise ImageNotAvailable(error.message) from error
        await container.put_archive("/", _opt_ml(spec))  # type: ignore[no-untyped-call]
        return DockerInstance(container)

    async def close(self) -> None:
        """Remove the containers, and the names of pulled images: their registry is going away."""
        # By label, not from a list of our own: a creation that was cancelled half-way may have made one too.
        for container in await self._labelled(f"{_LABEL}={_owner()}"):
            await DockerInstance(container).remove()
        for name in self._pulled:
            with contextlib.suppress(DockerError):
                await self._docker.images.delete(name, noprune=True)
        self._pulled.clear()


def _container_config(spec: InstanceSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in spec.variables("/opt/ml").items()],
        "Labels": {_LABEL: _owner(), _PROCESSES: _processes(), f"{_LABEL}.job": spec.job_name},
        "HostConfig": {"Init": True, "NetworkMode": "none" if spec.network_isolation else "host"},
    }
    if spec.entrypoint:
        return {**config, "Entrypoint": list(spec.entrypoint), "Cmd": list(spec.arguments)}
    return {**config, "Cmd": ["train", *spec.arguments]}


def _owner() -> str:
    """This process; one process has one local stack (`running_aws`)."""
    return f"{socket.gethostname()}/{os.getpid()}"


def _processes() -> str:
    """What our process ids are of (pid_namespaces(7)); empty where there is no such thing."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # no path: it names an inode
    except OSError:
        return ""


def _opt_ml(spec: InstanceSpec) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in FOLDERS:
            folder = tarfile.TarInfo(f"opt/ml/{name}")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(folder)
        for name, content in spec.config_files().items():
            file = tarfile.TarInfo(f"opt/ml/input/config/{name}")
            file.size = len(content)
            archive.addfile(file, io.BytesIO(content))
    return buffer.getvalue()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
