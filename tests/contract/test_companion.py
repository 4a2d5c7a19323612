"""The companion runs' contract: over HTTP and through the SDK's folders, W&B ends up with the same facts.

The offline adapter is judged by what the real `wandb sync` makes of its folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_wandb_double import drive
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import wandb_api
from worker.errors import Unreachable
from worker.launch.console import CONSOLE_LIMIT, ConsoleLine
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_records import DoubleRun, RunKey
from worker.ops.metrics import Metrics
from worker.tracking.companion import CompanionRuns
from worker.tracking.facts import RunFacts
from worker.tracking.history import Row
from worker.tracking.offline import OfflineRuns, offline_runs
from worker.tracking.port import Companion, RunPath

KEY = "k" * 40
WANDB = Path(sys.executable).with_name("wandb")
TIME = 1_700_000_000_123
RECORD = LaunchRecord(
    launch_id="a" * 26,
    state=LaunchState.ACCEPTED,
    run=RunRef("acme", "demo", "r1"),
    name="first",
    job_name="job-1",
)


def lines(*texts: str) -> list[ConsoleLine]:
    return [ConsoleLine(TIME, "algo-1", text) for text in texts]


class Harness:
    """An adapter, and W&B as it is once everything has been uploaded."""

    def __init__(self, runs: Companion, double: WandbDouble, settle: Callable[[], Any]) -> None:
        self.runs = runs
        self._double = double
        self._settle = settle

    async def result(self, record: LaunchRecord = RECORD) -> DoubleRun:
        """The run in W&B. Nothing may be written afterwards."""
        await self._settle()
        run = self._double.run(*self._key(record))
        assert run is not None
        assert self._double.unknown_operations == {}
        assert (run.overwrites, run.holes()) == ([], {})
        return run

    def _key(self, record: LaunchRecord) -> tuple[str, str, str]:
        path = self.runs.path(record)
        return path.entity, path.project, path.run


async def sync(double: WandbDouble, folder: Path) -> str:
    """`wandb sync` of all runs in a folder; returns what it says."""
    process = await asyncio.create_subprocess_exec(
        *(str(WANDB), "sync", "--yes"),
        cwd=folder,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "WANDB_BASE_URL": double.base_url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@contextlib.asynccontextmanager
async def online(double: WandbDouble, project: str) -> AsyncIterator[Harness]:
    async with wandb_api(double.base_url, ApiKey(KEY), Metrics()) as api:
        yield Harness(CompanionRuns(api, project=project), double, lambda: asyncio.sleep(0))


@contextlib.asynccontextmanager
async def offline(double: WandbDouble, project: str, folder: Path) -> AsyncIterator[Harness]:
    async with offline_runs(folder, project=project) as runs:

        async def settle() -> None:
            await runs.close()
            await sync(double, folder)

        yield Harness(runs, double, settle)


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    async with running_wandb_double(entity="acme") as running:
        yield running


@pytest.fixture(params=["online", "offline"])
async def companion(
    request: pytest.FixtureRequest, double: WandbDouble, tmp_path: Path
) -> AsyncIterator[Harness]:
    adapter = online(double, "") if request.param == "online" else offline(double, "", tmp_path)
    async with adapter as harness:
        yield harness


async def test_a_whole_life(companion: Harness) -> None:
    runs = companion.runs
    facts = RunFacts(
        {"sagemaker/job_name": "job-1", "launch/attempt": 1}, ("sagemaker", "spot"), "Training job job-1"
    )
    await runs.open(RECORD, facts)
    rows = [{"loss": 0.5, "_timestamp": 1_700_000_000.5, "_runtime": 1.0, "_step": 0}]
    await runs.post_lines(RECORD, 0, lines("one", "two"), first_row=0, rows=rows)
    await runs.summarize(RECORD, {"sagemaker/status": "InProgress", "launch/log_lines": 2})
    assert await runs.heartbeat(RECORD) is False
    await runs.post_lines(RECORD, 2, lines("drei: äöü 漢字", "", "five"))
    await runs.upload(RECORD, "logs/algo-1/00001.log", b"whole log\n")
    await runs.finish(RECORD, {"sagemaker/status": "Failed", "launch/log_lines": 5}, 3)
    run = await companion.result()
    texts = [line.removeprefix("2023-11-14T22:13:20.123000Z [algo-1] ") for line in run.console_text()]
    assert texts == ["one", "two", "drei: äöü 漢字", "", "five"]
    assert (run.state, run.exit_code) == ("failed", 3)
    assert run.config["sagemaker/job_name"] == {"value": "job-1"}
    assert run.config["launch/attempt"] == {"value": 1}
    assert {key: run.summary[key] for key in ("sagemaker/status", "launch/log_lines")} == {
        "sagemaker/status": "Failed",
        "launch/log_lines": 5,
    }
    assert run.files["logs/algo-1/00001.log"] == b"whole log\n"
    assert "logs/algo-1/00001.log" in run.uploaded
    assert {key: run.fields[key] for key in ("displayName", "groupName", "jobType", "tags")} == {
        "displayName": "first (SageMaker)",
        "groupName": "r1",
        "jobType": "sagemaker",
        "tags": ["sagemaker", "spot"],
    }
    assert str(run.fields["notes"]).startswith("Training job job-1")
    ((row),) = run.history()
    assert (row["loss"], row["_timestamp"], row["_step"]) == (0.5, 1_700_000_000.5, 0)


async def test_success_is_a_finished_run(companion: Harness) -> None:
    await companion.runs.open(RECORD, RunFacts({}))
    await companion.runs.finish(RECORD, {}, 0)
    run = await companion.result()
    assert (run.state, run.exit_code) == ("finished", 0)


async def test_everything_may_be_said_again(companion: Harness) -> None:
    runs = companion.runs
    await runs.open(RECORD, RunFacts({"a": 1, "b": 1}))
    await runs.open(RECORD, RunFacts({"a": 2}))
    for _ in range(2):
        await runs.post_lines(RECORD, 0, lines("one", "two"))
        await runs.upload(RECORD, "logs/x.log", b"x")
    await runs.post_lines(RECORD, 1, lines("two", "three"))
    await runs.finish(RECORD, {"a": 1}, 0)
    run = await companion.result()
    assert [text[-5:].strip().split(" ")[-1] for text in run.console_text()] == ["one", "two", "three"]
    assert (run.config["a"], run.config["b"]) == ({"value": 2}, {"value": 1})
    assert run.files["logs/x.log"] == b"x"


async def test_several_runs_at_once_are_kept_apart(companion: Harness) -> None:
    records = [replace(RECORD, run=RunRef("acme", "demo", f"m{number}")) for number in range(4)]

    async def live(number: int, record: LaunchRecord) -> None:
        await companion.runs.open(record, RunFacts({"number": number}))
        for first in range(0, 40, 10):
            await companion.runs.post_lines(
                record, first, lines(*(f"{number}:{line}" for line in range(first, first + 10)))
            )
        await companion.runs.finish(record, {}, number)

    async with asyncio.TaskGroup() as tasks:
        for number, record in enumerate(records):
            tasks.create_task(live(number, record))
    await companion.result(records[0])
    for number, record in enumerate(records):
        run = await companion.result(record)
        assert [text.rpartition(" ")[2] for text in run.console_text()] == [
            f"{number}:{n}" for n in range(40)
        ]
        assert run.exit_code == number


async def test_the_console_ends_with_where_the_rest_is(companion: Harness) -> None:
    await companion.runs.open(RECORD, RunFacts({}))
    for first in range(0, CONSOLE_LIMIT - 2, 9_999):
        count = min(9_999, CONSOLE_LIMIT - 2 - first)
        await companion.runs.post_lines(RECORD, first, lines(*["x"] * count))
    await companion.runs.post_lines(RECORD, CONSOLE_LIMIT - 2, lines("last", "cut", "cut"))
    await companion.runs.post_lines(RECORD, CONSOLE_LIMIT + 1, lines("cut"))
    await companion.runs.finish(RECORD, {}, 0)
    run = await companion.result()
    assert len(run.console()) == CONSOLE_LIMIT
    *_, last, notice = run.console_text()
    assert last.endswith("last")
    assert "the whole log is in Files" in notice


@pytest.mark.parametrize(
    ("log_target", "project", "path"),
    [
        ("companion", "", RunPath("acme", "demo", "r1-sagemaker")),
        ("companion", "sm", RunPath("acme", "sm", "r1-sagemaker")),
        ("run", "sm", RunPath("acme", "demo", "r1")),
    ],
)
async def test_both_write_to_the_same_place(
    double: WandbDouble, tmp_path: Path, log_target: str, project: str, path: RunPath
) -> None:
    record = replace(RECORD, log_target=log_target)
    async with online(double, project) as first, offline(double, project, tmp_path) as second:
        assert first.runs.path(record) == second.runs.path(record) == path
        assert first.runs.address(record) == f"{double.base_url}/acme/{path.project}/runs/{path.run}"
        assert second.runs.address(record) == f"{tmp_path}/wandb/offline-run-*-{path.run}"


# Online only.

READ_BACK = """
import json, wandb
run = wandb.Api().run("acme/demo/r1-sagemaker")
rows = run.history(pandas=False)
print("ANSWER " + json.dumps([run.state, run.config["launch/attempt"], run.summary["sagemaker/end"], run.tags, rows]))
"""


async def test_wandbs_own_api_reads_back_what_was_told(double: WandbDouble) -> None:
    rows: list[Row] = [
        {"loss": 0.5, "_timestamp": 1_700_000_000.5, "_runtime": 1.0, "_step": 0},
        {"loss": "NaN", "_timestamp": 1_700_000_001.0, "_runtime": 1.5, "_step": 1},
    ]
    async with online(double, "") as companion:
        await companion.runs.open(RECORD, RunFacts({"launch/attempt": 1}, ["sagemaker", "spot"]))
        for _ in range(2):
            await companion.runs.post_lines(RECORD, 0, lines("one"), first_row=0, rows=rows)
        await companion.runs.alert(RECORD, "title", "text", "WARN")
        await companion.runs.finish(RECORD, {"sagemaker/end": "completed"}, 0)
        run = await companion.result()
    assert [(alert["title"], alert["severity"]) for alert in run.alerts] == [("title", "WARN")]
    answer = json.loads(await drive(double, READ_BACK))
    assert answer == ["finished", 1, "completed", ["sagemaker", "spot"], rows]


async def test_stop_comes_with_the_answer_to_a_post(double: WandbDouble) -> None:
    async with online(double, "") as companion:
        await companion.runs.open(RECORD, RunFacts({}))
        assert await companion.runs.post_lines(RECORD, 0, lines("one")) is False
        double.stop("acme", "demo", "r1-sagemaker")
        assert await companion.runs.post_lines(RECORD, 1, lines("two")) is True


@pytest.mark.parametrize("is_there", [True, False], ids=["the container's run", "no run of a container"])
async def test_files_go_beside_what_the_container_writes(double: WandbDouble, is_there: bool) -> None:
    record = replace(RECORD, log_target="files", facts=JobFacts("Failed", "Failed"))
    key = RunKey("acme", "demo", "r1")
    if is_there:
        double.runs[key] = DoubleRun(key)
    async with online(double, "") as companion:
        runs = companion.runs
        await runs.open(record, RunFacts({"a": 1}))
        assert await runs.post_lines(record, 0, lines("one")) is False
        assert await runs.heartbeat(record) is False
        await runs.summarize(record, {"a": 1})
        for name in ("logs/algo-1/00001.log", "logs/algo-1/00002.log"):
            await runs.upload(record, name, b"x")
        await runs.finish(record, {"a": 1}, 1)
        assert runs.address(record) == f"{double.base_url}/acme/demo/runs/r1"
    assert list(double.runs) == [key]
    run = double.runs[key]
    assert list(run.files) == ["logs/algo-1/00001.log", "logs/algo-1/00002.log"]
    assert (run.config, run.summary, run.lines) == ({}, {}, {})
    assert (run.state, len(run.posts)) == (("running", 0) if is_there else ("failed", 1))


@pytest.mark.parametrize("again", ["logs/algo-1/00001.log", "logs/algo-1/00002.log"])
async def test_a_run_that_was_made_for_files_is_ended_also_by_a_later_try(
    double: WandbDouble, again: str
) -> None:
    record = replace(RECORD, log_target="files", facts=JobFacts("Failed", "Failed"))
    double.fault("file_stream", status=503)
    async with online(double, "") as companion:
        with pytest.raises(Unreachable):
            await companion.runs.upload(record, "logs/algo-1/00001.log", b"x")
        await companion.runs.upload(record, again, b"x")
    run = double.runs[RunKey("acme", "demo", "r1")]
    assert (run.state, len(run.posts)) == ("failed", 1)


# Offline only.

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.contract.test_companion import RECORD, lines
from worker.tracking.facts import RunFacts
from worker.tracking.offline import offline_runs

async def main():
    async with offline_runs(Path(sys.argv[1]), project="") as runs:
        await runs.open(RECORD, RunFacts({"a": 1}))
        await runs.post_lines(RECORD, 0, lines("one", "two"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_lines_survive_a_killed_worker_and_the_next_one_goes_on(
    double: WandbDouble, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(tmp_path)),
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(root)},
    )
    assert await process.wait() == -signal.SIGKILL
    await asyncio.sleep(1.1)  # the SDK names folders by the second
    async with offline(double, "", tmp_path) as second:
        await second.runs.open(RECORD, RunFacts({"a": 2}))
        # The batch that the ledger held is written again: at least once.
        await second.runs.post_lines(RECORD, 0, lines("one", "two"))
        await second.runs.post_lines(RECORD, 2, lines("three"))
        await second.runs.finish(RECORD, {"s": 1}, 0)
        run = await second.result()
    assert [text.rpartition(" ")[2] for text in run.console_text()] == ["one", "two", "one", "two", "three"]
    assert (run.state, run.exit_code, run.summary["s"]) == ("finished", 0, 1)
    assert [state for _, state in run.transitions] == ["running", "failed", "finished"]
    assert run.config["a"] == {"value": 2}


CORE_KILLED = """
import asyncio, pathlib, psutil, sys
from tests.contract.test_companion import RECORD, lines
from worker.tracking import offline
from worker.tracking.facts import RunFacts

offline._WRITTEN_WITHIN = 1.0

async def main():
    try:
        async with offline.offline_runs(pathlib.Path(sys.argv[1]), project="") as runs:
            await runs.open(RECORD, RunFacts({}))
            (core,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
            core.kill()
            core.wait()
            await runs.post_lines(RECORD, 0, lines("one"))
    except offline.WandbCoreGone:
        print("gone")

asyncio.run(main())
"""


async def test_a_dead_wandb_core_ends_the_worker_instead_of_losing_lines(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CORE_KILLED, str(tmp_path)),
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,  # the SDK complains at exit
    )
    said, _ = await process.communicate()
    assert said.decode().splitlines()[-1] == "gone"


async def test_nothing_of_the_sdk_runs_on(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    async with offline_runs(tmp_path, project="") as runs:
        await runs.open(RECORD, RunFacts({}))
        assert any(thread.name.startswith("wandb-sdk") for thread in threading.enumerate())
    assert set(threading.enumerate()) <= before


async def test_the_sdk_is_not_started_without_a_run(tmp_path: Path) -> None:
    async with offline_runs(tmp_path, project="") as runs:
        assert await runs.heartbeat(RECORD) is False
    assert not (tmp_path / "wandb").exists()


async def test_what_the_sdk_raises_is_a_reason_to_try_again(tmp_path: Path) -> None:
    async with offline_runs(tmp_path, project="") as runs:
        bad = replace(RECORD, run=RunRef("acme", "demo", "not/valid"))
        with pytest.raises(Unreachable, match="the wandb SDK failed"):
            await runs.open(bad, RunFacts({}))
        await runs.open(RECORD, RunFacts({}))
        assert isinstance(runs, OfflineRuns)
