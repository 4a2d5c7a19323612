"""A local ECR: moto answers the ECR API, a proxy with ECR's manners stands before a real registry.

Kept of the real thing: tokens for user AWS that expire, pushes refused for unknown repositories, expired tokens and
immutable tags, and DescribeImages that agrees with the registry. moto knows an image before its push returns.
Texts of refusals are ECR's own, as docker shows them; the one for a foreign token is a guess.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiodocker
import aiohttp
from aiohttp import web
from moto.core.responses import ActionResult
from moto.ecr.models import Image, Repository, ecr_backends
from moto.ecr.responses import ECRResponse
from multidict import CIMultiDict

from worker.local.aws import ACCOUNT, REGION, replaced
from worker.local.ports import LOOPBACK, listening_socket
from worker.local.registry_process import running_registry

_TOKEN_LIFETIME = 12 * 3600.0
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs|manifests|tags|referrers)/(?P<reference>.*)")
_MAX_MANIFEST = 64 << 20
# Host is passed on: the registry puts it into Location, which must name the proxy.
_NOT_UPSTREAM = frozenset({"authorization", "transfer-encoding", "connection"})
_NOT_DOWNSTREAM = frozenset({"transfer-encoding", "connection", "keep-alive"})


@dataclass(frozen=True, slots=True)
class _Refused(Exception):
    status: int
    code: str
    message: str

    def response(self, address: str) -> web.Response:
        headers = {"Docker-Distribution-Api-Version": "registry/2.0"}
        if self.status == 401:
            headers["WWW-Authenticate"] = f'Basic realm="http://{address}/",service="ecr.amazonaws.com"'
        errors = {"errors": [{"code": self.code, "message": self.message}]}
        return web.json_response(errors, status=self.status, headers=headers)


class LocalEcr:
    """Tokens, repositories and the proxy."""

    def __init__(self, upstream: str, http: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._http = http
        self._tokens: dict[str, float] = {}
        self.token_lifetime = _TOKEN_LIFETIME
        """Seconds that tokens issued from now on stay valid; 12 h as on AWS."""
        self.address = ""
        """`host:port`, as in image names."""

    def issue_token(self) -> str:
        """A password for user AWS."""
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.time() + self.token_lifetime
        return token

    def expire_tokens(self) -> None:
        """Let every token issued so far be too old."""
        self._tokens = dict.fromkeys(self._tokens, 0.0)

    async def seed_image(self, docker: aiodocker.Docker, image: str, name: str, tag: str) -> str:
        """Push a local image as `name:tag`, creating the repository if needed; returns `repository@digest`."""
        backend = ecr_backends[ACCOUNT][REGION]
        if name not in backend.repositories:
            backend.create_repository(name, None, None, None, None, None)  # type: ignore[arg-type]
        repository = f"{self.address}/{name}"
        await docker.images.tag(image, repository, tag=tag)
        auth = {"username": "AWS", "password": self.issue_token(), "serveraddress": self.address}
        try:
            messages = await docker.images.push(repository, tag=tag, auth=auth)
        finally:
            await docker.images.delete(f"{repository}:{tag}", noprune=True)
        digests = [message["aux"]["Digest"] for message in messages if "Digest" in message.get("aux", {})]
        return f"{repository}@{digests[-1]}"

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Let moto's ECR hand out our tokens and addresses while the context is open."""
        ecr, init = self, Repository.__init__

        def get_authorization_token(_: ECRResponse) -> ActionResult:
            token = ecr.issue_token()
            data = {
                "authorizationToken": base64.b64encode(f"AWS:{token}".encode()).decode(),
                "expiresAt": datetime.fromtimestamp(ecr._tokens[token], UTC),
                "proxyEndpoint": f"http://{ecr.address}",
            }
            return ActionResult({"authorizationData": [data]})

        def repository_init(self: Repository, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.uri = f"{ecr.address}/{self.name}"

        with (
            replaced(ECRResponse, get_authorization_token=get_authorization_token),
            replaced(Repository, __init__=repository_init),
        ):
            yield

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Every request of a docker client."""
        try:
            self._check_token(request.headers.get("Authorization", ""))
            match = _PATH.fullmatch(request.path)
            repository = _find_repository(match["name"]) if match else None
            if repository and match and request.method == "PUT" and match["kind"] == "manifests":
                return await self._put_manifest(request, repository, match["reference"])
            body = request.content.iter_any() if request.body_exists else None
            async with self._send(request, body) as answer:
                return await _relay(request, answer)
        except _Refused as refused:
            return refused.response(self.address)

    def _check_token(self, authorization: str) -> None:
        if not authorization:
            raise _Refused(401, "UNAUTHORIZED", "authentication required")
        try:
            user, _, token = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            user = token = ""
        if user != "AWS" or token not in self._tokens:
            raise _Refused(403, "DENIED", "Not Authorized")
        if self._tokens[token] < time.time():
            raise _Refused(
                403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."
            )

    async def _put_manifest(
        self, request: web.Request, repository: Repository, reference: str
    ) -> web.StreamResponse:
        manifest = await request.read()
        tagged = any(reference in image.image_tags for image in repository.images)
        if tagged and repository.image_tag_mutability == "IMMUTABLE":
            raise _Refused(
                400,
                "TAG_INVALID",
                f"The image tag '{reference}' already exists in the '{repository.name}' repository"
                " and cannot be overwritten because the tag is immutable.",
            )
        async with self._send(request, manifest) as answer:
            if answer.status == 201:
                digest = answer.headers["Docker-Content-Digest"]
                _record_image(repository, reference, manifest.decode(), digest, request.content_type)
            return await _relay(request, answer)

    def _send(self, request: web.Request, body: Any) -> Any:
        # docker sends one Accept header a media type: all of them have to arrive.
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in _NOT_UPSTREAM)
        url = self._upstream + request.raw_path
        return self._http.request(request.method, url, headers=headers, data=body, allow_redirects=False)


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_DOWNSTREAM}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    await response.write_eof()
    return response


def _find_repository(name: str) -> Repository:
    repository: Repository | None = ecr_backends[ACCOUNT][REGION].repositories.get(name)
    if repository is None:
        raise _Refused(
            404,
            "NAME_UNKNOWN",
            f"The repository with name '{name}' does not exist in the registry with id '{ACCOUNT}'",
        )
    return repository


def _record_image(
    repository: Repository, reference: str, manifest: str, digest: str, media_type: str
) -> None:
    """Tell moto of a pushed manifest: a tag moves to it, its size is the sum of its layers."""
    tag = None if reference.startswith("sha256:") else reference
    for image in repository.images:
        if tag in image.image_tags and image.image_digest != digest:
            image.remove_tag(tag)
    known = next((image for image in repository.images if image.image_digest == digest), None)
    if known is None:
        repository.images.append(_SizedImage(manifest, repository.name, media_type, digest, tag))
    elif tag:
        known.update_tag(tag)


class _SizedImage(Image):
    """moto's image with the true size: moto takes the config blob's."""

    def __init__(self, manifest: str, repository: str, media_type: str, digest: str, tag: str | None) -> None:
        super().__init__(ACCOUNT, tag, manifest, repository, media_type, digest)  # type: ignore[arg-type]

    def get_image_size_in_bytes(self) -> int:
        """Sum of the layers, as the registry stores them."""
        return sum(layer["size"] for layer in json.loads(self.image_manifest).get("layers", ()))


@contextlib.asynccontextmanager
async def running_ecr(port: int = 0) -> AsyncIterator[LocalEcr]:
    """Registry and proxy. Raises `RegistryNotRunning`, and `SettingsError` when the port is taken."""
    async with contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(listening_socket(port, "the registry", "--registry-port"))
        upstream = await stack.enter_async_context(running_registry())
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        )
        ecr = LocalEcr(upstream, http)
        ecr.address = f"{LOOPBACK}:{sock.getsockname()[1]}"
        app = web.Application(client_max_size=_MAX_MANIFEST)
        app.router.add_route("*", "/{path:.*}", ecr.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, sock).start()
        with ecr.answering():
            yield ecr
