"""What W&B is told of a job beside its log, and what is heard there: metrics, states, facts, alerts, stops."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.audit import audit, ended
from tests.e2e.bench import Bench
from tests.e2e.launches import PROJECT, LaunchCase, numbered
from tests.e2e.process import until
from worker.local.stack import ENTITY
from worker.local.wandb_records import DoubleRun, RunKey

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

METRICS = [{"Name": "train:loss", "Regex": r"loss=(\S+)"}, {"Name": "acc", "Regex": r"acc=([0-9.]+)"}]


def measured(bench: Bench, steps: int, **spec: Any) -> LaunchCase:
    """Prints two metrics a line, and lines without any between them."""
    lines = [
        line
        for step in range(steps)
        for line in (f"step {step} loss={1 / (step + 1):.4f} acc=0.{step}", "--")
    ]
    case = bench.launch(lines, **spec)
    sagemaker = case.message["runSpec"]["resource_args"]["sagemaker"]
    sagemaker["AlgorithmSpecification"] = {"MetricDefinitions": METRICS}
    return case


def history(run: DoubleRun) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows with metrics, and those with states of the job."""
    rows = run.history()
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert run.overwrites == []
    return [row for row in rows if "train:loss" in row], [row for row in rows if "train:loss" not in row]


def check_history(run: DoubleRun, steps: int) -> None:
    metrics, states = history(run)
    assert [(row["train:loss"], row["acc"]) for row in metrics] == [
        (round(1 / (step + 1), 4), step / 10) for step in range(steps)
    ]
    console = [json.loads(line) for line in run.console()]
    times = [line["ts"] for line in console if "loss=" in line["content"]]
    assert [row["_timestamp"] for row in metrics] == [_seconds(text) for text in times]
    told = Counter(row["sagemaker/secondary_status"] for row in states)
    assert set(told.values()) == {1}
    assert {"Starting", "Downloading", "Training", "Completed"} <= set(told)
    transitions = dict(run.summary["sagemaker/transitions"])
    assert {row["sagemaker/secondary_status"]: row["_timestamp"] for row in states} == transitions


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


async def test_each_metric_and_state_once_although_the_worker_is_killed(bench: Bench) -> None:
    case = measured(bench, 6, pause=0.2)
    first = await bench.started()
    await bench.send(case)
    await bench.lines_in_wandb(case, 4)
    await first.kill()
    await bench.start(prices="ml.m5.large=3600")
    await audit(bench, case)
    run = bench.companion(case)
    assert run is not None
    check_history(run, 6)
    summary = run.summary
    assert summary["sagemaker/cost_usd"] == summary["sagemaker/billable_seconds"]
    assert summary["sagemaker/download_seconds"] >= 0
    request = run.config["sagemaker/request"]["value"]
    assert request["AlgorithmSpecification"]["MetricDefinitions"] == METRICS
    assert "WANDB_API_KEY" not in request["Environment"]
    assert run.fields["tags"] == ["sagemaker", "ml.m5.large"]
    assert "s3://launch-dev/out" in run.fields["notes"]
    assert f"/{ENTITY}/{PROJECT}/runs/{case.run_id})" in run.fields["notes"]
    assert run.alerts == []


async def test_a_stop_of_the_run_gives_it_time_and_then_ends_the_job(bench: Bench) -> None:
    case = bench.launch(numbered(2), tail="sleep 60")
    key = RunKey(ENTITY, PROJECT, case.run_id)
    bench.services.wandb.runs[key] = DoubleRun(key)  # the container's
    worker = await bench.started(stopped_run_timeout="1")
    await bench.send(case)
    await bench.lines_in_wandb(case, 2)
    bench.services.wandb.stop(*key)
    reason = f"Stop was pressed in W&B, in the run {ENTITY}/{PROJECT}/{case.run_id}."
    await audit(bench, case, end="stopped by this worker", reason=reason, exit_code=1)
    (done,) = worker.events("run_stop_done")
    assert done["seconds"] >= 1
    assert len(worker.events("job_stopping")) == 1


async def test_a_stop_that_the_container_obeys_by_itself_is_told_although_the_worker_dies(
    bench: Bench,
) -> None:
    case = bench.launch(numbered(2), tail="sleep 5; exit 1")
    key = RunKey(ENTITY, PROJECT, case.run_id)
    bench.services.wandb.runs[key] = DoubleRun(key)  # the container's
    worker = await bench.started()
    await bench.send(case)
    await bench.lines_in_wandb(case, 2)
    bench.services.wandb.stop(*key)
    await worker.wait_for("run_stop_seen", launch_id=case.launch_id)

    async def noted() -> bool:
        record = await bench.record(case)
        return record is not None and bool(record.stop_asked)

    await until(noted, "the stop is in the ledger")
    await worker.kill()
    await bench.container_ended(case)
    bench.services.wandb.runs[key].stopped = False  # the next worker has only the ledger to know it from
    second = await bench.start()
    pressed = f"Stop was pressed in W&B, in the run {ENTITY}/{PROJECT}/{case.run_id}."
    reason = f"the job ended by itself before it took effect: {pressed}"
    await audit(bench, case, end="failed", reason=reason, exit_code=1)
    assert second.events("job_stopping") == []


async def test_a_stop_of_the_companion_comes_with_the_answer_to_a_post(bench: Bench) -> None:
    case = bench.launch(numbered(40), pause=0.1, tail="sleep 60")
    worker = await bench.started(companion_heartbeat="600")
    await bench.send(case)
    await bench.lines_in_wandb(case, 2)
    bench.press_stop(case)
    stopping = await worker.wait_for("companion_stop_done", launch_id=case.launch_id)
    assert stopping["seconds"] < 5
    await ended(bench, case)
    run = bench.companion(case)
    assert run is not None
    assert "in the companion run" in run.summary["sagemaker/reason"]


async def test_the_run_is_the_workers_own_where_the_image_has_none(bench: Bench) -> None:
    config = {"lr": 0.1, "layers": [1, 2], "note": "x" * 600}
    case = measured(bench, 3, log_target="run", name="my launch", tail="exit 4")
    case.message["runSpec"]["overrides"]["run_config"] = config
    await bench.started()
    await bench.send(case)
    await ended(bench, case)
    run = bench.services.wandb.run(ENTITY, PROJECT, case.run_id)
    assert run is not None
    assert (run.state, run.exit_code, run.fields["displayName"]) == ("failed", 4, "my launch")
    assert {name: run.config[name]["value"] for name in config} == config
    assert [row["acc"] for row in history(run)[0]] == [0.0, 0.1, 0.2]
    assert run.console_text() == list(case.printed)
    assert bench.companion(case) is None
    (alert,) = run.alerts
    assert alert["severity"] == "ERROR"
    assert "exit code: 4" in alert["text"]


async def test_files_are_put_beside_what_the_container_writes(bench: Bench) -> None:
    case = bench.launch(numbered(2), log_target="files")
    key = RunKey(ENTITY, PROJECT, case.run_id)
    bench.services.wandb.runs[key] = theirs = DoubleRun(key)  # the container's
    await bench.started()
    await bench.send(case)
    await ended(bench, case)
    assert list(theirs.files) == ["logs/algo-1/00001.log"]
    assert (theirs.posts, theirs.state, theirs.config, theirs.summary) == ([], "running", {}, {})
    assert bench.companion(case) is None


async def test_a_job_that_does_not_start_is_stopped_and_says_what_it_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = bench.services.executor
    prepare = executor.prepare

    async def slow(image: str) -> None:
        await asyncio.sleep(4)
        await prepare(image)

    monkeypatch.setattr(executor, "prepare", slow)
    item = bench.services.wandb.push(ENTITY, "slow", {})
    case = bench.launch(numbered(1), item_id=item.id)
    await bench.started(start_timeout="1.5", alert_after="0.7", init_grace="0")
    await bench.send(case)
    await ended(bench, case)
    run = bench.companion(case)
    assert run is not None
    reason = run.summary["sagemaker/reason"]
    assert "LAUNCH_START_TIMEOUT" in reason
    assert "SageMaker says Downloading (" in reason
    assert "1 x ml.m5.large" in reason
    assert (run.state, run.summary["sagemaker/end"]) == ("failed", "stopped by this worker")
    assert [alert["severity"] for alert in run.alerts] == ["WARN", "ERROR"]
    assert any("LAUNCH_START_TIMEOUT" in warning["message"] for warning in item.warnings)
    assert item.state == "FAILED"
