"""moto's DynamoDB on 127.0.0.1, with what DynamoDB has and moto lacks: one write at a time, conflicts, throttling."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from types_aiobotocore_dynamodb import DynamoDBClient


class DynamoDbDouble:
    """A WSGI application before moto's. moto checks a condition and writes in two steps that its threads interleave;
    DynamoDB does not, so requests are served one by one."""

    def __init__(self) -> None:
        self.url = ""
        self.operations: list[str] = []
        """Names of the operations called, oldest first."""
        self.requests: list[dict[str, Any]] = []
        """Their parameters."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_by_one = threading.Lock()
        self._answers: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self._lost: list[str] = []

    def fail_next(self, operation: str, code: str, *, status: int = 400, **members: Any) -> None:
        """Answer the next call of an operation with an error, before moto sees it."""
        body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "made by a test", **members}
        self._answers.setdefault(operation, []).append((status, body))

    def answer_next(self, operation: str, **members: Any) -> None:
        """Answer the next call of an operation with this: an index that lags, or part of what was asked for."""
        self._answers.setdefault(operation, []).append((200, members))

    def lose_next(self, operation: str) -> None:
        """Let the next call of an operation happen, and answer it with a proxy's error: nobody learns that it did."""
        self._lost.append(operation)

    def pending_failures(self) -> int:
        """Errors and answers of a test that nobody has met yet."""
        return sum(map(len, self._answers.values())) + len(self._lost)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        operation = str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]
        with self._one_by_one:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            self.operations.append(operation)
            self.requests.append(json.loads(body or b"{}"))
            if self._answers.get(operation):
                status, body = self._answers[operation].pop(0)
                answer = Response(json.dumps(body), status, content_type="application/x-amz-json-1.0")
                return answer(environ, start_response)
            if operation in self._lost:
                self._lost.remove(operation)
                list(self._moto(environ, lambda *_: lambda _: None))
                return Response("<html>504</html>", 504, content_type="text/html")(environ, start_response)
            return list(self._moto(environ, start_response))


@contextlib.contextmanager
def serve_dynamodb() -> Iterator[DynamoDbDouble]:
    """Run the double on a free port of 127.0.0.1 in a thread."""
    double = DynamoDbDouble()
    server = make_server("127.0.0.1", 0, double, threaded=True, request_handler=MotoRequestHandler)
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="dynamodb double")
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.asynccontextmanager
async def dynamodb_client(url: str) -> AsyncIterator[DynamoDBClient]:
    """A real client that talks to the double; its own retries are off, as the worker's are."""
    session = aioboto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    config = AioConfig(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30)
    async with session.client("dynamodb", endpoint_url=url, config=config) as client:
        yield client
