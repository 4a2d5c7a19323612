"""An AWS endpoint on loopback that answers what a test says: the real client, the real wire, no service behind it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.aws_errors import AwsError as AwsError  # noqa: PLC0414  # told to importers
from tests.fakes.cloudwatch import CloudWatch
from worker.ops.metrics import Metrics
from worker.ops.rates import QUOTAS, Rates

_JSON = "application/x-amz-json-1.1"
_XML = "<ErrorResponse><Error><Code>{}</Code><Message>{}</Message></Error></ErrorResponse>"
Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request's parameters to the answer's; raises `AwsError`."""


class HangUp(Exception):
    """The connection is closed without an answer, or after the first bytes of one."""

    def __init__(self, first: bytes = b"") -> None:
        super().__init__()
        self.first = first


@dataclass
class AwsServer:
    """Operations by name; what nobody has defined is answered with an error that no code expects."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    failures: dict[str, list[Exception | web.Response]] = field(default_factory=dict)
    """Operation → errors or raw responses for its next calls, oldest first; `*` for any operation."""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def requests(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of each call of an operation."""
        return [parameters for name, parameters in self.calls if name == operation]

    def fail_next(self, operation: str, *failures: Exception | web.Response) -> None:
        """Let the next calls fail, one after the other."""
        self.failures.setdefault(operation, []).extend(failures)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """All of AWS's JSON services look alike; STS, which speaks XML, is told by its lack of a target."""
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        raw = await request.read()
        parameters = json.loads(raw) if operation and raw else {}
        self.calls.append((operation, parameters))
        try:
            answer = self._answer(operation, parameters)
        except HangUp as torn:
            response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": _JSON})
            if torn.first:
                await response.prepare(request)
                await response.write(torn.first)
            assert request.transport is not None
            request.transport.close()
            return response
        except AwsError as error:
            if not operation:
                return web.Response(status=error.status, text=_XML.format(error.code, error))
            body = {"__type": f"com.amazonaws.service#{error.code}", "message": str(error)}
            return web.json_response(body, status=error.status, content_type=_JSON)
        return answer if isinstance(answer, web.Response) else web.json_response(answer, content_type=_JSON)

    def _answer(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any] | web.Response:
        failing = self.failures.get(operation) or self.failures.get("*")
        if failing:
            failure = failing.pop(0)
            if isinstance(failure, web.Response):
                return failure
            raise failure
        if operation not in self.answers:
            raise AwsError("TestForgotThisOperation", operation)
        return self.answers[operation](parameters)


@contextlib.asynccontextmanager
async def serving_aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsServer]:
    """Serve on a free port of 127.0.0.1, and point AWS's own variables there."""
    server = AwsServer()
    app = web.Application()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await server.handle(request)  # looked up each time: a test may put something before it

    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
    finally:
        await runner.cleanup()


@dataclass
class LogsService:
    """FilterLogEvents and DescribeLogStreams over an in-memory CloudWatch."""

    cloud: CloudWatch
    listing_page: int = 50
    group_exists: bool = True

    def answers(self) -> Mapping[str, Answer]:
        """To be put into `AwsServer.answers`."""
        return {"FilterLogEvents": self.filter_log_events, "DescribeLogStreams": self.describe_log_streams}

    def filter_log_events(self, parameters: dict[str, Any]) -> dict[str, Any]:
        streams = parameters["logStreamNames"]
        assert 1 <= len(streams) <= 100
        if not self.group_exists or any(stream not in self.cloud.streams for stream in streams):
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        pages = self.cloud.pages(streams, parameters["startTime"], parameters.get("endTime"))
        number = int(parameters.get("nextToken", 0))
        answer: dict[str, Any] = {
            "events": [
                {
                    "logStreamName": event.stream,
                    "timestamp": event.timestamp,
                    "ingestionTime": event.ingested,
                    "message": event.message,
                    "eventId": f"{event.stream}{event.timestamp}",
                }
                for event in pages[number]
            ],
            "searchedLogStreams": [],
        }
        return answer if number + 1 == len(pages) else {**answer, "nextToken": str(number + 1)}

    def describe_log_streams(self, parameters: dict[str, Any]) -> dict[str, Any]:
        if not self.group_exists:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        names = sorted(
            name for name in self.cloud.streams if name.startswith(parameters["logStreamNamePrefix"])
        )
        start = int(parameters.get("nextToken", 0))
        answer: dict[str, Any] = {
            "logStreams": [{"logStreamName": name} for name in names[start : start + self.listing_page]]
        }
        end = start + self.listing_page
        return answer if end >= len(names) else {**answer, "nextToken": str(end)}


def quick_rates(metrics: Metrics | None = None) -> Rates:
    """Rates that no test has to wait for."""
    return Rates(metrics or Metrics(), dict.fromkeys(QUOTAS, 10_000.0))
