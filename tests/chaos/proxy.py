"""Wire faults: an HTTP proxy between the workers and AWS, or W&B, that the workers' real clients talk to.

A request's name is the service and the operation: `dynamodb PutItem`, `wandb UpsertBucket`, `wandb file_stream`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from tests.chaos.plan import Kind
from worker.local.ports import listening_socket

_SERVICES = {
    "AmazonSQS": "sqs",
    "DynamoDB_20120810": "dynamodb",
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
}
_THROTTLED = {
    "sqs": "com.amazonaws.sqs#RequestThrottled",
    "dynamodb": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
}
_CUT_BEFORE: frozenset[Kind] = frozenset({"AWS cut before", "W&B down"})
_CUT_AFTER: frozenset[Kind] = frozenset({"AWS cut after", "W&B cut after"})
_DELAYED: frozenset[Kind] = frozenset({"AWS slow", "W&B slow"})
_OPERATION = re.compile(rb'"operationName":\s*"(\w+)"')
# aiohttp has undone any encoding of what it has read, so it must not be announced any more.
_NOT_PASSED_ON = {
    "host",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
}
_THROTTLED_BY_US = "x-chaos-throttled"
_SLOW = 1.2
"""Seconds by which an answer is late."""

Duplicate = Callable[[list[str]], Awaitable[None]]
"""Told the receipt handles of messages that have just been received."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a worker, and how it went. Times are monotonic seconds."""

    name: str
    received_at: float
    answered_at: float
    status: int
    """Of the answer."""
    whole: bool
    """Nothing of the answer was held back, and the worker was still there to take it."""
    throttled: bool = False
    lines: int = 0
    """Console lines that it posted."""


@dataclass(eq=False, slots=True)
class Rule:
    """A fault while it lasts: each `every`-th request whose name begins with `target` is hit."""

    kind: Kind
    target: str
    every: int
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def hits(self, name: str) -> bool:
        """This request is one of them."""
        return name.startswith(self.target) and next(self._count) % self.every == 0


class FaultProxy:
    """Passes everything on but for what the rules hit."""

    def __init__(self, session: aiohttp.ClientSession, upstream: str, *, wandb: bool = False) -> None:
        self.url = ""
        self.rules: list[Rule] = []
        self.hits: collections.Counter[Kind] = collections.Counter()
        """How many requests each kind of fault has hit."""
        self.requests: list[Request] = []
        """All that have come, in the order of their answers."""
        self.on_received: Duplicate | None = None
        self._session = session
        self._upstream = upstream
        self._name_of = _name_at_wandb if wandb else _name_at_aws

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request and what becomes of it."""
        received_at = time.monotonic()
        body = await request.read()
        name = self._name_of(request, body)
        answer = await self._answered(request, name, body)
        self.requests.append(
            Request(
                name=name,
                received_at=received_at,
                answered_at=time.monotonic(),
                status=answer.status,
                whole=request.transport is not None and not request.transport.is_closing(),
                throttled=answer.headers.get(_THROTTLED_BY_US) is not None,
                lines=_console_lines(body) if name == "wandb file_stream" else 0,
            )
        )
        return answer

    async def _answered(self, request: web.Request, name: str, body: bytes) -> web.StreamResponse:
        rule = next((rule for rule in self.rules if rule.hits(name)), None)
        if rule is None:
            return await self._forward(request, body)
        self.hits[rule.kind] += 1
        second_form = self.hits[rule.kind] % 2 == 0  # some faults have two, in turn
        if refusal := _refusal(rule.kind, name, second_form=second_form):
            return refusal
        if rule.kind in _CUT_BEFORE:
            return _cut(request)
        if rule.kind in _DELAYED:
            await asyncio.sleep(_SLOW)
        answer = await self._forward(request, body)
        if rule.kind in _CUT_AFTER:
            return await _cut_within(request, answer) if second_form else _cut(request)
        if rule.kind == "duplicate delivery" and self.on_received is not None:
            assert isinstance(answer.body, bytes)
            received = json.loads(answer.body).get("Messages", [])
            await self.on_received([message["ReceiptHandle"] for message in received])
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = [
            (name, value) for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON
        ]
        url = f"{self._upstream}{request.raw_path}"
        try:
            async with self._session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            return _cut(request)  # as if there were no proxy
        # What the upstream says of itself (where to upload a file, the URL of a queue) shall lead here, too.
        content = content.replace(self._upstream.encode(), self.url.encode())
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON]
        return web.Response(status=answer.status, body=content, headers=kept)


def _name_at_aws(request: web.Request, body: bytes) -> str:
    if target := request.headers.get("X-Amz-Target"):
        service, _, operation = target.partition(".")
        return f"{_SERVICES.get(service, service)} {operation}"
    if request.content_type == "application/x-www-form-urlencoded":
        return f"sts {parse_qs(body.decode()).get('Action', ['?'])[0]}"
    return f"other {request.method}"


def _name_at_wandb(request: web.Request, body: bytes) -> str:
    if request.path == "/graphql":
        found = _OPERATION.search(body)
        return f"wandb {found[1].decode() if found else '?'}"
    return f"wandb {request.path.rpartition('/')[2]}" if request.method == "POST" else "wandb upload"


def _console_lines(body: bytes) -> int:
    """Lines of the console in a post to `file_stream`."""
    files = json.loads(body).get("files") or {}
    return len(files.get("output.log", {}).get("content", ()))


def _refusal(kind: Kind, name: str, *, second_form: bool) -> web.Response | None:
    """What the service says in place of an answer."""
    refusal: web.Response | None = None
    match kind:
        case "AWS throttles":
            code = _THROTTLED.get(name.split(maxsplit=1)[0], "ThrottlingException")
            refusal = _aws_error(name, code, "Rate exceeded")
            refusal.headers[_THROTTLED_BY_US] = "yes"
        case "no quota left":
            refusal = _aws_error(name, "ResourceLimitExceeded", "The account-level service limit is reached.")
        case "AWS 5xx" if second_form:  # not from the service but from what stands before it
            page = "<html>Service Unavailable</html>"
            refusal = web.Response(status=503, text=page, content_type="text/html")
        case "AWS 5xx":
            refusal = _aws_error(name, "InternalFailure", "We encountered an internal error.", status=500)
        case "W&B 429":
            retry_after = {"Retry-After": "1"}
            refusal = web.json_response({"error": "rate limit"}, status=429, headers=retry_after)
        case "W&B 5xx":
            refusal = web.Response(status=502, text="<html>bad gateway</html>")
    return refusal


def _aws_error(name: str, code: str, message: str, status: int = 400) -> web.Response:
    body = json.dumps({"__type": code, "message": message, "Message": message})
    return web.Response(
        status=status,
        text=body,
        content_type="application/x-amz-json-1.1",
        headers={"x-amzn-RequestId": f"chaos-{name.replace(' ', '-')}"},
    )


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)  # nobody gets it


async def _cut_within(request: web.Request, answer: web.Response) -> web.StreamResponse:
    """Half of an answer."""
    assert isinstance(answer.body, bytes)
    half = web.StreamResponse(status=answer.status, headers=answer.headers)
    half.content_length = len(answer.body)
    with contextlib.suppress(ConnectionError):  # the client may have gone first
        await half.prepare(request)
        await half.write(answer.body[: len(answer.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return half


@contextlib.asynccontextmanager
async def running_proxy(upstream: str, *, wandb: bool = False) -> AsyncIterator[FaultProxy]:
    """A proxy before `upstream` on a free port of loopback; `url` says where."""
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        proxy = FaultProxy(session, upstream, wandb=wandb)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            sock = listening_socket(0, "the proxy", "")
            await web.SockSite(runner, sock).start()
            proxy.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            yield proxy
        finally:
            await runner.cleanup()
