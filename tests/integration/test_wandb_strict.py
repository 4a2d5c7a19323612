"""The W&B double in its strict mood: what it refuses, what it lets pass, and the real clients under it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.contract.test_wandb_double import AUTHORIZATION, WHOLE_LIFE, drive
from tests.unit.records import record
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.clients.wandb_runs import MARK_UPLOADED, RunAddress, upload_run_file
from worker.errors import Throttled
from worker.launch.console import ConsoleLine
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_records import CONSOLE, HISTORY, DoubleRun, RunKey
from worker.local.wandb_strict import STRICT, RateLimits, Strictness, refusal
from worker.ops.metrics import Metrics
from worker.tracking.companion import CompanionRuns

LAUNCH = record()
KEY = RunKey("acme", "vision", "run-launch-1-sagemaker")


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    async with running_wandb_double(entity="acme") as running:
        running.strict = STRICT
        yield running
    assert running.unknown_operations == {}


@pytest.fixture
async def api(double: WandbDouble) -> AsyncIterator[WandbApi]:
    async with wandb_api(double.base_url, ApiKey("k" * 40), Metrics()) as opened:
        yield opened


def lines(*contents: str) -> list[ConsoleLine]:
    return [ConsoleLine(1_700_000_000_000, "algo-1", content) for content in contents]


async def test_the_same_again_is_taken_and_what_clashes_is_not(double: WandbDouble, api: WandbApi) -> None:
    run = double.run_by_hand(*KEY)
    runs = CompanionRuns(api, project="")
    for _ in range(2):
        await runs.post_lines(LAUNCH, 0, lines("a", "b"))
    await runs.post_lines(LAUNCH, 1, lines("b", "c"))
    for first, line, why in ((1, "other", "line 1 is"), (5, "far", "a gap: line 5 follows line 2")):
        with pytest.raises(WandbRefused, match=why) as caught:
            await runs.post_lines(LAUNCH, first, lines(line))
        assert caught.value.status == 409
    assert run.console_text() == ["a", "b", "c"]
    assert len(run.refused) == 2


async def test_two_kinds_of_clients_in_one_run_clash(double: WandbDouble, api: WandbApi) -> None:
    """The container's SDK writes the run; the worker's lines in it are refused, its companion is its own."""
    await drive(double, WHOLE_LIFE)
    theirs = double.run("acme", "demo", "r1")
    assert theirs is not None
    assert (theirs.refused, theirs.clients) == ([], {"wandb-core"})
    before = theirs.console()
    body = {"files": {CONSOLE: {"offset": len(before), "content": ["mine"]}}}
    with pytest.raises(WandbRefused, match="launch-worker writes where wandb-core has written"):
        await api.file_stream("acme", "demo", "r1", body)
    assert theirs.console() == before


async def test_lines_beyond_the_limit_are_refused_and_the_worker_sends_none(
    double: WandbDouble, api: WandbApi
) -> None:
    run = double.run_by_hand(*KEY)
    runs = CompanionRuns(api, project="")
    for first in range(0, 100_500, 20_100):
        await runs.post_lines(LAUNCH, first, lines(*["x"] * 20_100))
    assert (len(run.console()), run.refused) == (100_000, [])
    assert sum("the whole log is in Files" in line for line in run.console_text()) == 1
    body = {"files": {CONSOLE: {"offset": 100_000, "content": ["beyond"]}}}
    with pytest.raises(WandbRefused, match="100000 are kept"):
        await api.file_stream(*KEY, body)


async def test_limits_are_answered_with_the_time_to_wait(double: WandbDouble) -> None:
    double.run_by_hand(*KEY)
    url = f"{double.base_url}/files/{'/'.join(KEY)}/file_stream"
    control = f"{double.base_url}/_double/strict"
    async with aiohttp.ClientSession(headers=AUTHORIZATION) as http:

        async def statuses(count: int, address: str, body: dict[str, Any]) -> list[tuple[int, bool]]:
            answers = []
            for _ in range(count):
                async with http.post(address, json=body) as answer:
                    answers.append((answer.status, "Retry-After" in answer.headers))
            return answers

        assert await statuses(6, url, {}) == [*[(200, False)] * 4, *[(429, True)] * 2]
        async with http.post(control, json={"queries": 0.5}) as answer:
            assert answer.status == 200
        assert await statuses(2, url, {}) == [(200, False)] * 2, "nothing else is strict any more"
        query = {"query": "query Viewer { viewer { id } }", "variables": {}}
        assert await statuses(2, f"{double.base_url}/graphql", query) == [(200, False), (429, True)]
    assert double.counts["limited:file_stream"] == 2


async def test_the_worker_keeps_the_limit_of_a_run(double: WandbDouble, api: WandbApi) -> None:
    """Posts come in bursts; by its own pace none of them is one too many."""
    run = double.run_by_hand(*KEY)
    runs = CompanionRuns(api, project="")
    for number in range(7):
        await runs.post_lines(LAUNCH, number, lines(str(number)))
    assert run.console_text() == [str(number) for number in range(7)]
    assert double.counts["limited:file_stream"] == 0


async def test_a_limit_of_somebody_else_s_making_is_ridden_out(double: WandbDouble, api: WandbApi) -> None:
    """Another worker has used the run's posts up: the answer is `again`, with the time to wait."""
    double.run_by_hand(*KEY)
    double.limits.clock = lambda: 0.0  # no allowance comes back, however slow this machine is
    for _ in range(4):
        assert double.limits.of_post(STRICT, KEY) == 0
    with pytest.raises(Throttled) as caught:
        await CompanionRuns(api, project="").post_lines(LAUNCH, 0, lines("a"))
    assert caught.value.retry_after == 0.5


async def test_a_post_after_the_end_revives_a_run(double: WandbDouble, api: WandbApi) -> None:
    run = double.run_by_hand(*KEY)
    runs = CompanionRuns(api, project="")
    await runs.finish(LAUNCH, {"sagemaker/end": "completed"}, 0)
    assert run.state == "finished"
    await runs.heartbeat(LAUNCH)
    assert run.state == "running"


def test_nothing_is_refused_by_default() -> None:
    run = DoubleRun(KEY)
    body = {
        "files": {CONSOLE: {"offset": 200_000, "content": ["x"]}, HISTORY: {"offset": 9, "content": ["{}"]}}
    }
    assert refusal(Strictness(), run, "", "a", body) == (0, "")
    assert RateLimits().of_post(Strictness(), KEY) == 0


@pytest.mark.parametrize("knows", [True, False], ids=["the mutation", "an older server"])
async def test_files_of_a_run_that_is_over_leave_it_over(
    double: WandbDouble, api: WandbApi, knows: bool
) -> None:
    """A failure's file goes to the run of an agent whose mirror may have ended; only an older server is told of it
    through the file stream, and never in a run whose writer is somebody else."""
    double.features[MARK_UPLOADED] = knows
    ours, theirs = double.run_by_hand(*KEY), double.run_by_hand("acme", "vision", "theirs")
    for run in (ours, theirs):
        run.move("finished")
    await upload_run_file(api, RunAddress(*KEY), "a.log", b"a")
    await upload_run_file(api, RunAddress(*theirs.key), "b.log", b"b", announce=False)
    assert (ours.files, theirs.files) == ({"a.log": b"a"}, {"b.log": b"b"})
    assert (ours.uploaded, theirs.uploaded) == (["a.log"], ["b.log"] if knows else [])
    assert (ours.state, theirs.state) == ("finished" if knows else "running", "finished")
    assert theirs.posts == []
