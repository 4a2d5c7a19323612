"""What we post has the keys and types that the real SDK was seen to post (`sdk_shapes.json`), save what is listed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web

from tests.contract.sdk_shapes import RECORDED, file_stream_shapes, variables_shape
from tests.unit.records import record
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, wandb_api
from worker.launch.console import ConsoleLine
from worker.launch.record import JobFacts
from worker.ops.metrics import Metrics
from worker.tracking.companion import CompanionRuns
from worker.tracking.facts import companion_summary, run_facts

SDK: Mapping[str, Any] = json.loads(RECORDED.read_text())
RECORD = record(name="train", author="ada", queue="gpu", job_arn="arn:aws:sagemaker:::training-job/job-1")

NOT_SENT_BY_US = {"description", "id", "state", "summaryMetrics"}
"""The SDK sends these as null; GraphQL takes a missing variable for the same."""
ONLY_OURS = {"empty"}
"""Heartbeats: `{}`, which the SDK posts only when a run is silent for longer than the recording was."""


class Recorder:
    """Takes every post for good and keeps it."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.operations: list[tuple[str, dict[str, Any]]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.method == "POST" else {}
        if request.path.endswith("/file_stream"):
            self.bodies.append(body)
            return web.json_response({})
        if request.path != "/graphql":
            return web.Response()
        self.operations.append((body["operationName"], body["variables"]))
        features = [{"name": "STRUCTURED_CONSOLE_LOGS", "isEnabled": True}]
        upload = {
            "uploadHeaders": ["X-Test:1"],
            "files": [{"name": "f", "uploadUrl": f"{request.url.origin()}/put"}],
        }
        answers = {
            "ServerFeaturesQuery": {"serverInfo": {"features": features}},
            "CreateRunFiles": {"createRunFiles": upload},
        }
        return web.json_response({"data": answers.get(body["operationName"], {})})


@pytest.fixture
def wandb() -> Recorder:
    return Recorder()


@pytest.fixture
async def api(wandb: Recorder) -> AsyncIterator[WandbApi]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", wandb.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with wandb_api(f"http://127.0.0.1:{runner.addresses[0][1]}", ApiKey("k" * 40), Metrics()) as opened:
        yield opened
    await runner.cleanup()


async def whole_life(api: WandbApi) -> None:
    """Everything the worker ever says about a job."""
    runs = CompanionRuns(api, project="")
    facts = JobFacts("Completed", "Completed", "", 1.0, 2.0, 3.0, 60, 60, (("Starting", 1.0),))
    await runs.open(RECORD, run_facts(RECORD, {"console": "https://c", "cloudwatch": "https://w"}))
    await runs.post_lines(RECORD, 0, [ConsoleLine(1_700_000_000_123, "algo-1", "epoch 1")])
    await runs.heartbeat(RECORD)
    summary = companion_summary(facts, lines=1, instance_count=2, end="completed", reason="done")
    await runs.summarize(RECORD, summary)
    await runs.upload(RECORD, "logs/algo-1/00001.log", b"epoch 1\n")
    await runs.finish(RECORD, summary, 0)


async def test_upsert_variables_are_the_sdks(api: WandbApi, wandb: Recorder) -> None:
    await whole_life(api)
    ((_, variables),) = [call for call in wandb.operations if call[0] == "UpsertBucket"]
    ours, theirs = variables_shape(variables), SDK["UpsertBucket"]
    assert set(theirs) - set(ours) == NOT_SENT_BY_US
    assert ours == {name: shape for name, shape in theirs.items() if name not in NOT_SENT_BY_US}


async def test_file_stream_bodies_are_the_sdks(api: WandbApi, wandb: Recorder) -> None:
    await whole_life(api)
    ours, theirs = file_stream_shapes(wandb.bodies), SDK["file_stream"]
    assert set(ours) - set(theirs) == ONLY_OURS
    assert {part: shape for part, shape in ours.items() if part in theirs} == {
        part: shape for part, shape in theirs.items() if part in ours
    }
    assert set(ours) >= {"files.output.log", "files.wandb-summary.json", "uploaded", "complete", "exitcode"}


async def test_the_comparison_would_notice_a_difference() -> None:
    wrong = file_stream_shapes([{"files": {"output.log": {"offset": "0", "content": ["plain"]}}}])
    assert wrong["files.output.log"] != SDK["file_stream"]["files.output.log"]
