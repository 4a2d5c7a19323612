"""The docker daemon: builds, pushes and pulls that stop when the caller stops.

aiodocker's own streams leave the build running on the daemon when their task is cancelled, and end without an error
when the daemon goes away (both seen with 0.27). Here the connection is closed in a `finally`, which stops the work on
the daemon, and success needs proof: an image id, a digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

from worker.clients.docker_errors import (
    CONNECTION_LOST,
    build_error,
    daemon_error,
    pull_error,
    push_error,
)
from worker.clients.docker_output import BuildOutput
from worker.clients.docker_types import DaemonFacts, DiskUsage, ImageFacts, RegistryAuth
from worker.clients.docker_wire import auth_header, chunks, header, read_messages
from worker.errors import Unreachable, WorkerError

_ASK = aiohttp.ClientTimeout(total=60)
"""For questions that the daemon answers at once."""
_WORK = aiohttp.ClientTimeout(total=None, sock_connect=10)
"""For builds: a step may be silent for an hour, the caller bounds it."""
_TRANSFER = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
"""For pulls and pushes: the daemon tells their progress all the time."""

_Translate = Callable[[int, str], WorkerError]


@contextlib.asynccontextmanager
async def docker_engine(host: str = "") -> AsyncIterator[DockerEngine]:
    """A client of the daemon at `host`, by default the one that DOCKER_HOST, docker's context or the usual socket
    names. Raises `Unreachable` when none answers."""
    try:
        first = aiodocker.Docker(url=host or None)
    except (AssertionError, ValueError, OSError) as error:
        raise Unreachable(f"no docker daemon found: start one or set DOCKER_HOST ({error})") from error
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(first)
        docker = first
        # A build or push holds its connection; aiohttp's own limit of 100 would make the next wait without a word.
        connector = _unlimited(first)
        if connector is not None:
            stack.push_async_callback(connector.close)
            docker = await stack.enter_async_context(
                aiodocker.Docker(url=first.docker_host, connector=connector)
            )
        yield DockerEngine(docker, await _daemon_facts(docker))


def _unlimited(docker: aiodocker.Docker) -> aiohttp.BaseConnector | None:
    if isinstance(docker.connector, aiohttp.UnixConnector):
        return aiohttp.UnixConnector(docker.connector.path, limit=0)
    if docker.docker_host.startswith(("tcp://", "http://")):
        return aiohttp.TCPConnector(limit=0)
    return None  # TLS and ssh: aiodocker has put keys into its connector


async def _daemon_facts(docker: aiodocker.Docker) -> DaemonFacts:
    try:
        async with asyncio.timeout(10):
            version = await docker.version()
            info = await docker.system.info()
    except (DockerError, aiohttp.ClientError, OSError) as error:
        raise Unreachable(f"the docker daemon does not answer: {error}") from error
    return DaemonFacts(
        version=str(version["Version"]),
        platform=f"{version['Os']}/{version['Arch']}",
        root=Path(str(info["DockerRootDir"])),
    )


class DockerEngine:
    """The daemon's API, as far as the worker needs it. Get one from `docker_engine`."""

    def __init__(self, docker: aiodocker.Docker, daemon: DaemonFacts) -> None:
        self._docker = docker
        self.daemon = daemon

    async def build(
        self,
        context: Path,
        *,
        tag: str,
        buildkit: bool,
        labels: Mapping[str, str],
        network: str | None,
        platform: str | None,
        registry_auths: Mapping[str, RegistryAuth],
        on_line: Callable[[str], None],
        dockerfile: str = "Dockerfile",
        cached: bool = True,
    ) -> str:
        """Build the tar file `context`; returns the image id. Cancelling stops it on the daemon.

        `dockerfile`: its path in the context. `network`, `platform`: None leaves them to the daemon. BuildKit cannot
        use `registry_auths` over the API: pull private base images before. Raises `BuildFailed` or another `Never`
        (LW-DOCKERFILE, LW-BASE-IMAGE, LW-ARCHITECTURE), `DiskFull`, `RegistryAuthFailed`, `RegistryDenied`,
        `Unreachable`."""
        options = {
            "t": tag,
            "dockerfile": dockerfile,
            "rm": "1",
            "forcerm": "1",
            "labels": json.dumps(dict(labels)),
            "networkmode": network,
            "platform": platform,
            "version": "2" if buildkit else None,
            "nocache": None if cached else "1",
        }
        auths = {
            host: {"username": auth.username, "password": auth.password}
            for host, auth in registry_auths.items()
        }
        headers = {"Content-Type": "application/x-tar", "X-Registry-Config": header(auths)}
        output = BuildOutput(on_line)

        def translate(status: int, text: str) -> WorkerError:
            output.close()
            return build_error(status, text, output.step, list(output.last_lines))

        params = {name: value for name, value in options.items() if value}
        stream = self._stream(
            "build", translate, params=params, headers=headers, data=chunks(context), timeout=_WORK
        )
        async with contextlib.aclosing(stream) as messages:
            async for message in messages:
                output.feed(message)
        output.close()
        if not output.image_id:
            raise Unreachable("the build ended without an image id: the docker daemon was stopped")
        return output.image_id

    async def push(
        self,
        repository: str,
        tag: str,
        *,
        auth: RegistryAuth | None,
        on_line: Callable[[str], None],
        deadline: float,
    ) -> str:
        """Push `repository:tag` within `deadline` seconds; returns the manifest's digest as the registry took it.

        Raises `RegistryAuthFailed`, `RegistryDenied`, `RepositoryUnknown`, `TagExists`, `Unreachable`."""
        target, digest, told = f"{repository}:{tag}", "", ""
        stream = self._stream(
            f"images/{repository}/push",
            lambda status, text: push_error(target, status, text),
            params={"tag": tag},
            headers={"X-Registry-Auth": auth_header(auth)},
            timeout=_TRANSFER,
        )
        try:
            async with asyncio.timeout(deadline), contextlib.aclosing(stream) as messages:
                async for message in messages:
                    digest = str((message.get("aux") or {}).get("Digest", digest))
                    told = _tell_status(message, on_line) or told
        except TimeoutError as error:
            raise Unreachable(f"push of {target}: not done after {deadline:g} s; last: {told}") from error
        if not digest:
            raise Unreachable(f"push of {target}: ended without a digest: the docker daemon was stopped")
        return digest

    async def pull(self, reference: str, auth: RegistryAuth | None, platform: str | None = None) -> None:
        """Pull an image, or learn that the daemon has its newest version.

        Raises `ImageUnknown`, `RegistryAuthFailed`, `RegistryDenied`, `DiskFull`, `Unreachable`."""
        params = {"fromImage": reference}
        if not {":", "@"} & set(reference.rpartition("/")[2]):
            params["tag"] = "latest"  # without one the daemon pulls all tags
        if platform:
            params["platform"] = platform
        stream = self._stream(
            "images/create",
            lambda status, text: pull_error(reference, status, text),
            params=params,
            headers={"X-Registry-Auth": auth_header(auth)},
            timeout=_TRANSFER,
        )
        async with contextlib.aclosing(stream) as messages:
            async for _ in messages:
                pass

    async def inspect_image(self, reference: str) -> ImageFacts | None:
        """Facts of an image on the daemon; None if it is not there. Raises `Unreachable`."""
        answer = await self._ask(f"images/{reference}/json")
        if answer is None:
            return None
        return ImageFacts(
            id=str(answer["Id"]),
            repo_digests=tuple(answer.get("RepoDigests") or ()),
            architecture=str(answer.get("Architecture", "")),
            os=str(answer.get("Os", "")),
            size=int(answer.get("Size", 0)),
        )

    async def tag_image(self, image: str, repository: str, tag: str) -> bool:
        """Give an image one more name; False if the image is not there. Raises `Unreachable`."""
        params = {"repo": repository, "tag": tag}
        return await self._ask(f"images/{image}/tag", "POST", params=params) is not None

    async def remove_image(self, reference: str, *, keep_parents: bool = False) -> bool:
        """Take away a tag, and the image with its last one; False if it is not there. Raises `Unreachable`."""
        params = {"noprune": "1"} if keep_parents else {}
        return await self._ask(f"images/{reference}", "DELETE", params=params) is not None

    async def prune(self, labels: Sequence[str], older_than: float, *, untagged: bool = False) -> int:
        """Delete unused images that carry all `labels` and are older than `older_than` seconds, with their untagged
        parents; `untagged`: only such as have lost their name. Returns the bytes gained. Raises `Unreachable`."""
        filters = {
            "dangling": [json.dumps(untagged)],
            "label": list(labels),
            "until": [f"{int(older_than)}s"],
        }
        params = {"filters": json.dumps(filters)}
        answer = await self._ask("images/prune", "POST", params=params, timeout=_WORK)
        return int((answer or {}).get("SpaceReclaimed", 0))

    async def prune_build_cache(self, older_than: float) -> int:
        """Delete what BuildKit has not used for `older_than` seconds; returns the bytes gained. Raises
        `Unreachable`."""
        params = {"filters": json.dumps({"until": [f"{int(older_than)}s"]})}
        answer = await self._ask("build/prune", "POST", params=params, timeout=_WORK)
        return int((answer or {}).get("SpaceReclaimed", 0))

    async def disk_usage(self) -> DiskUsage:
        """What the daemon keeps. It counts files: seconds on a full disk. Raises `Unreachable`."""
        answer = await self._ask("system/df", timeout=_WORK)
        cache = (answer or {}).get("BuildCache") or ()
        return DiskUsage(
            images=int((answer or {}).get("LayersSize") or 0),
            build_cache=sum(int(entry.get("Size") or 0) for entry in cache),
        )

    async def ensure_network(self, name: str, *, options: Mapping[str, str], label: str) -> None:
        """Create a bridge network unless there is one of that name. Raises `Unreachable`."""
        if await self._ask(f"networks/{name}") is not None:
            return
        body = {
            "Name": name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Options": dict(options),
            "Labels": {label: ""},
        }
        try:
            await self._ask("networks/create", "POST", data=json.dumps(body))
        except Unreachable:
            if await self._ask(f"networks/{name}") is None:  # else: another worker was quicker
                raise

    async def remove_network(self, name: str) -> bool:
        """Remove a network; False if it is not there. Raises `Unreachable`."""
        return await self._ask(f"networks/{name}", "DELETE") is not None

    async def _ask(self, path: str, method: str = "GET", **options: Any) -> Any:
        """One question: the JSON answer (`{}` if empty), None for 404."""
        options.setdefault("timeout", _ASK)
        try:
            async with self._docker._query(path, method, **options) as response, response:
                text = await response.text()
        except DockerError as error:
            if error.status == 404:
                return None
            raise daemon_error(f"{method} {path}", error.status, error.message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{method} {path}: the docker daemon does not answer: {error}") from error
        return json.loads(text) if text.strip() else {}

    async def _stream(
        self, path: str, translate: _Translate, **options: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """The messages of a long answer; any end of this generator ends the work on the daemon."""
        try:
            async with self._docker._query(path, "POST", **options) as response:
                try:
                    async for message in read_messages(response):
                        if "errorDetail" in message or "error" in message:
                            detail = message.get("errorDetail") or {}
                            raise translate(0, str(detail.get("message") or message.get("error")))
                        yield message
                finally:
                    response.close()  # not release(): only a dropped connection tells the daemon to stop
        except DockerError as error:
            raise translate(error.status, error.message) from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise translate(CONNECTION_LOST, f"{type(error).__name__}: {error}") from error


def _tell_status(message: Mapping[str, Any], on_line: Callable[[str], None]) -> str:
    """Tell what is not a progress bar; returns the line."""
    status = str(message.get("status", ""))
    if not status or message.get("progressDetail"):
        return ""
    line = f"{message['id']}: {status}" if message.get("id") else status
    on_line(line)
    return line
