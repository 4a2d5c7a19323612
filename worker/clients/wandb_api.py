"""W&B over HTTP: GraphQL, the file stream and file uploads, in one session for the process.

The worker speaks the wire protocol of W&B's own clients (`wandb-core`, wandb 0.31) instead of holding SDK runs:
it needs an acknowledgement for each post and CloudWatch's own time on each line, which the SDK does not give.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from worker.clients.api_key import ApiKey
from worker.clients.wandb_pace import QueryLine, StreamPace
from worker.errors import Never, Throttled, Unreachable, WorkerError
from worker.ops.metrics import Metrics

T = TypeVar("T")

GZIP = "FILESTREAM_GZIP"
"""Server feature: bodies of the file stream may be compressed."""
_LARGE = 32 << 10
"""Bytes from which compressing is worth a thread's turn."""
_POSTS_A_SECOND = 430.0
"""To one project: W&B's own limit is 500 (W&B documentation, rate limits)."""
_MADE_UP = 0.05
"""Seconds whose posts may come at once after a pause: 21 more than 430 in a second. The network may bring closer
together what was sent apart, so both stay well below."""
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)


class WandbRefused(Never):
    """W&B understood the request and said no; `status` is the HTTP status, 200 for a GraphQL error."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message, code="LW-WANDB-REFUSED")
        self.status = status


class WandbApi:
    """W&B's HTTP API for one key and server. A request that is refused for its key is sent once more with a new key,
    if there is one."""

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, api_key: ApiKey, metrics: Metrics
    ) -> None:
        self._session = session
        self._api_key = api_key
        self.base_url = base_url.rstrip("/")
        self._metrics = metrics
        self._features: frozenset[str] | None = None
        self._asking_features = asyncio.Lock()
        self._pace = StreamPace()
        self._queries = QueryLine()
        self._turns: dict[str, float] = {}

    async def graphql(self, operation: str, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """POST /graphql; returns `data`. Raises `WandbRefused` for GraphQL errors (HTTP 200 with `errors`)."""
        body = _encode({"operationName": operation, "query": query, "variables": variables})
        answer = await self._queries.ask(
            operation, lambda: self._post(f"{self.base_url}/graphql", operation, body)
        )
        if errors := answer.get("errors"):
            messages = "; ".join(str(error.get("message", error)) for error in errors)
            raise WandbRefused(f"{operation}: {messages}", status=200)
        data: dict[str, Any] = answer.get("data") or {}
        return data

    async def file_stream(
        self, entity: str, project: str, run: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Post to a run's file stream, at the pace W&B allows; a return is W&B's acknowledgement. `{}` as body is a
        heartbeat."""
        path = "/".join(quote(part, safe="") for part in (entity, project, run))
        url = f"{self.base_url}/files/{path}/file_stream"
        # Before its turn: those of many runs come in one moment, and the milliseconds of large bodies would add up.
        data = _encode(body)
        async with self._pace.turn(path):
            await self._turn(f"{entity}/{project}")
            return await self._post(url, "file_stream", data, may_compress=True)

    async def _turn(self, project: str) -> None:
        """Wait until a project may be posted to: its quota is shared by all its runs."""
        now = time.monotonic()
        # What was not used just before may be made up for, within W&B's limit.
        at = max(self._turns.get(project, 0.0), now - _MADE_UP)
        self._turns[project] = at + 1.0 / _POSTS_A_SECOND
        if at > now:
            await self._pace.sleep_until(at)

    async def put_file(self, url: str, content: bytes, headers: Mapping[str, str]) -> None:
        """Upload a run file to the address that CreateRunFiles gave. Writing the same content again is harmless."""
        # Signed storage addresses refuse a second kind of credentials; W&B's own want ours.
        same_server = URL(url).origin() == URL(self.base_url).origin()

        async def send(key: str) -> None:
            given = {**headers, **(_authorization(key) if same_server else {})}
            # As a stream it is written in pieces; megabytes at once would hold the event loop up.
            put = self._session.put(url, data=io.BytesIO(content), headers=given, timeout=_TIMEOUT)
            async with self._translated("upload"), put as response:
                await self._check("upload", response)

        await (self._with_key(send) if same_server else send(""))

    async def features(self) -> frozenset[str]:
        """The server's feature flags that are on; asked once a process."""
        if self._features is None:
            async with self._asking_features:  # a thousand jobs are taken over at once, and all want to know
                if self._features is None:
                    self._features = await self._ask_features()
        return self._features

    async def _ask_features(self) -> frozenset[str]:
        query = "query ServerFeaturesQuery { serverInfo { features { name isEnabled } } }"
        try:
            data = await self.graphql("ServerFeaturesQuery", query, {})
        except WandbRefused as error:
            if error.status != 200:
                raise
            data = {}  # servers older than the query have none of the features
        listed = (data.get("serverInfo") or {}).get("features") or []
        return frozenset(flag["name"] for flag in listed if flag["isEnabled"])

    async def _post(self, url: str, what: str, data: bytes, *, may_compress: bool = False) -> dict[str, Any]:
        encoding = {}
        if may_compress and len(data) >= _LARGE and GZIP in await self.features():
            # In a thread: zlib lets the event loop run on meanwhile.
            data = await asyncio.to_thread(gzip.compress, data, 1)
            encoding = {"Content-Encoding": "gzip"}

        async def send(key: str) -> dict[str, Any]:
            headers = {**_authorization(key), "Content-Type": "application/json", **encoding}
            post = self._session.post(url, data=io.BytesIO(data), headers=headers, timeout=_TIMEOUT)
            async with self._translated(what), post as response:
                await self._check(what, response)
                answer = await response.json(content_type=None)
                return answer if isinstance(answer, dict) else {}

        return await self._with_key(send)

    async def _with_key(self, send: Callable[[str], Awaitable[T]]) -> T:
        key = self._api_key.value
        try:
            return await send(key)
        except WandbRefused as error:
            if error.status not in (401, 403) or not await self._api_key.replaced(key):
                raise
        return await send(self._api_key.value)

    async def _check(self, what: str, response: aiohttp.ClientResponse) -> None:
        self._metrics.wandb_posts.labels(str(response.status)).inc()
        if response.status < 300:
            return
        text = (await response.text(errors="replace"))[:500]
        message = f"{what}: W&B answered {response.status}: {text}"
        if response.status == 429:
            raise Throttled(message, retry_after=_retry_after(response))
        if response.status >= 500 or response.status == 408:
            raise Unreachable(message)
        raise WandbRefused(message, status=response.status)

    @contextlib.asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        try:
            yield
        except WorkerError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._metrics.wandb_posts.labels(type(error).__name__).inc()
            raise Unreachable(f"{what}: no answer from W&B: {type(error).__name__}: {error}") from error


def _authorization(api_key: str) -> dict[str, str]:
    return {"Authorization": aiohttp.encode_basic_auth("api", api_key)}


def _encode(body: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8: escaping every other script would make its logs several times as large."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds; the header has those or a date (RFC 9110, 10.2.3), by the server's own clock in its `Date`."""
    asked = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        until, now = (parsedate_to_datetime(text) for text in (asked, response.headers.get("Date", "")))
    except ValueError:
        return None
    return max(0.0, (until - now).total_seconds())


@contextlib.asynccontextmanager
async def wandb_api(base_url: str, api_key: ApiKey, metrics: Metrics) -> AsyncIterator[WandbApi]:
    """Open the one HTTP session to W&B."""
    session = aiohttp.ClientSession(
        headers={"User-Agent": "launch-worker"},
        connector=aiohttp.TCPConnector(limit=50),
    )
    async with session:
        yield WandbApi(session, base_url, api_key, metrics)
