"""moto as our AWS: SQS, S3, STS, DynamoDB, ECR's API and CloudWatch Logs on one port, in a thread of its own.

moto keeps its state process-wide, so one process runs one local AWS at a time. Where moto differs from AWS in a way
that the worker could notice, the difference is mended here and in `logs`, `ecr` and `sagemaker_api`, for as long as
the server runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aioboto3
from moto.core.base_backend import BackendDict
from moto.core.model_instances import reset_model_data
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import BaseWSGIServer, make_server

from worker.errors import SettingsError
from worker.local.ports import LOOPBACK, listening_socket

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

T = TypeVar("T")

ACCOUNT = "123456789012"
REGION = "us-east-1"
ACCESS_KEY = "local"

_running = threading.Lock()  # as process-wide as moto's state, which it guards


def page_of(items: Sequence[T], token: str | None, size: int) -> tuple[Sequence[T], dict[str, str]]:
    """One page of an answer, and its `NextToken` if there are more: where the next page begins."""
    start = int(token or 0)
    more = start + size < len(items)
    return items[start : start + size], {"NextToken": str(start + size)} if more else {}


@contextlib.contextmanager
def replaced(owner: type, **methods: Callable[..., Any]) -> Iterator[None]:
    """Put `methods` into a moto class, and what was there back at the end."""
    missing = object()
    before = {name: vars(owner).get(name, missing) for name in methods}
    for name, method in methods.items():
        setattr(owner, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            if method is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, method)


class _QuietHandler(MotoRequestHandler):
    """moto's handler without a log line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""

    def send_response(self, code: int, message: str | None = None) -> None:
        """The status line alone: moto's own Server header would be the second, which strict clients refuse."""
        self.send_response_only(code, message)


class _OneDynamoDbRequestAtATime:
    """moto checks a condition and writes in two steps, and puts the whole table back when a transaction is cancelled;
    its threads interleave both. DynamoDB's conditional writes are atomic, and the ledger rests on that."""

    def __init__(self, app: DomainDispatcherApplication) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not str(environ.get("HTTP_X_AMZ_TARGET", "")).startswith("DynamoDB_"):
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        with self._lock:
            return list(self._app(environ, start_response))


@dataclass(frozen=True, slots=True)
class LocalAws:
    """Where it listens."""

    endpoint: str
    account: str = ACCOUNT
    region: str = REGION

    def session(self) -> aioboto3.Session:
        """Credentials and Region for clients; give them `endpoint` as `endpoint_url`."""
        return aioboto3.Session(
            region_name=self.region, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY
        )


@contextlib.asynccontextmanager
async def running_aws(port: int = 0) -> AsyncIterator[LocalAws]:
    """An empty AWS on 127.0.0.1.

    Raises `SettingsError` when the port is taken, or when one runs in this process already."""
    if not _running.acquire(blocking=False):
        raise SettingsError("a local AWS runs in this process already; use that one, or a process of its own")
    try:
        _forget_everything()
        with listening_socket(port, "AWS", "--aws-port") as sock:
            bound = sock.getsockname()[1]
            app = _OneDynamoDbRequestAtATime(DomainDispatcherApplication(create_backend_app))
            # werkzeug works on a duplicate of the socket, so that ours may be closed here.
            server = make_server(
                LOOPBACK, bound, app, threaded=True, request_handler=_QuietHandler, fd=sock.fileno()
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="local-aws", daemon=True)
        thread.start()
        try:
            yield LocalAws(f"http://{LOOPBACK}:{bound}")
        finally:
            await asyncio.shield(asyncio.to_thread(_stop, server, thread))
    finally:
        _forget_everything()
        _running.release()


def _stop(server: BaseWSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    thread.join()


def _forget_everything() -> None:
    BackendDict.reset()
    reset_model_data()
