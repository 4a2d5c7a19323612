"""`wandb launch -q QUEUE` to the end: image, repo and code jobs, two mirrors, two workers, read back by `wandb.Api`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.contract.test_wandb_double import drive
from tests.e2e.bench import Bench
from tests.e2e.code import CodeBench, code_bench
from tests.e2e.jobs import add_code, add_job
from tests.e2e.launches import PROJECT, LaunchCase, arguments, numbered, script
from tests.e2e.process import until
from tests.e2e.queues import MIRROR, agents_of, case_of, claimed_by_its_run, sagemaker_queue, wandb_launch
from tests.fakes.git_server import make_repository, running_git_server
from worker.local.sagemaker_api import Refusal
from worker.local.stack import ENTITY
from worker.local.wandb_records import Agent, Queue, QueueItem

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

LINES = [*numbered(2), "loss=0.5", "loss=0.25"]
QUOTA = (
    "The account-level service limit 'ml.m5.large for training job usage' is 1 Instances, with current utilization of"
    " 1 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an increase."
)
READ_BACK = """
import json, sys, wandb
api, found = wandb.Api(), {}
for name in %r:
    run = api.run(f"acme/e2e/{name}")
    found[name] = {
        "state": run.state, "group": run.group, "tags": run.tags, "config": dict(run.config),
        "summary": {key: run.summary[key] for key in run.summary.keys()}, "history": run.history(pandas=False),
        "console": [(line.label, line.content) for line in run.console_logs()],
        "files": {file.name: file.download(root=name, replace=True).read() for file in run.files()},
    }
print("ANSWER", json.dumps(found))
"""


class Pushed:
    """Items by what they are of."""

    def __init__(self, bench: Bench, queue: Queue, jobs: Mapping[str, str]) -> None:
        kinds = {job: kind for kind, job in jobs.items()}
        self.items = {kinds.get(item.spec.get("job") or "", "image"): item for item in queue.items}
        self.cases = {kind: case_of(bench, item, LINES) for kind, item in self.items.items()}

    def item(self, kind: str) -> QueueItem:
        return self.items[kind]


async def jobs_of(bench: Bench, code: CodeBench, remote: str, commit: str) -> dict[str, str]:
    """Kind → job: a ready image, a git commit, a code artifact, and code that does not build."""
    command = {"entrypoint": ["sh", "train.sh"], "notebook": False}
    files = code.script(LINES, 0.05)
    broken = {**files, "Dockerfile.wandb": code.dockerfile("RUN echo no compiler here; exit 3")}
    return {
        "image job": add_job(bench, "image", {"image": bench.image}),
        "repo": add_job(bench, "repo", {"git": {"remote": remote, "commit": commit}, **command}),
        "code": add_job(bench, "artifact", {"artifact": add_code(bench, files), **command}),
        "broken": add_job(bench, "artifact", {"artifact": add_code(bench, broken), **command}),
    }


async def push_all(bench: Bench, queue: Queue, jobs: Mapping[str, str]) -> Pushed:
    ready = {"overrides": {"entry_point": ["sh", "-c"], "args": arguments(script(LINES, 0.05))}}
    await asyncio.gather(
        wandb_launch(bench, queue, ready, "-d", bench.image, "-P", "high"),
        *(
            wandb_launch(bench, queue, ready if kind == "image job" else {}, "-j", job)
            for kind, job in jobs.items()
        ),
    )
    return Pushed(bench, queue, jobs)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("ledger", ["dynamodb"], indirect=True)
async def test_from_the_command_line_to_the_end(shared_bench: Bench) -> None:
    bench, wandb = shared_bench, shared_bench.services.wandb
    queue = sagemaker_queue(bench)
    queue.config["AlgorithmSpecification"] = {
        "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}]
    }
    async with running_git_server(bench.folder) as server, code_bench(bench) as code:
        bench.environment["GIT_SSL_CAINFO"] = str(server.certificate)
        commit = make_repository(server.root / "train.git", {"train.sh": str(code.script(LINES)["train.sh"])})
        jobs = await jobs_of(bench, code, server.url("train.git"), commit)
        pushed = await push_all(bench, queue, jobs)
        assert pushed.item("image").priority == 1
        finished = {kind: case for kind, case in pushed.cases.items() if kind != "broken"}
        for case in finished.values():
            wandb.run_by_hand(ENTITY, PROJECT, case.run_id)
        bench.services.sagemaker.jobs.refusals.append(Refusal("ResourceLimitExceeded", QUOTA))
        mirrors = [await bench.start("mirror", wandb_queues=queue.name, **MIRROR) for _ in range(2)]
        workers = [await bench.start() for _ in range(2)]
        await _all_ended(bench, pushed)
        _check_items(bench, queue, pushed)
        for process in (*mirrors, *workers):
            process.terminate()
        assert [await process.exit_code() for process in (*mirrors, *workers)] == [0, 0, 0, 0]
    _check_agents(bench, queue)
    names = {kind: f"{case.run_id}-sagemaker" for kind, case in finished.items()}
    found = json.loads(await drive(wandb, READ_BACK % [*names.values()]))
    for kind, name in names.items():
        _check_read_back(found[name], finished[kind], queue)
    assert found[names["repo"]]["config"]["launch/commit"] == commit
    assert {"logs/build.log"} <= found[names["code"]]["files"].keys()
    assert wandb.unknown_operations == {}


async def _all_ended(bench: Bench, pushed: Pushed) -> None:
    async def look() -> bool:
        records = [await bench.record(case) for case in pushed.cases.values()]
        return all(record is not None and not record.is_open for record in records)

    await until(look, "all launches have ended", 150)


def _check_items(bench: Bench, queue: Queue, pushed: Pushed) -> None:
    for kind, item in pushed.items.items():
        if kind != "broken":
            assert claimed_by_its_run(item, pushed.cases[kind])
            assert item.error is None
            assert bench.jobs(pushed.cases[kind]) == [pushed.cases[kind].job_name]
    failed, (path, warned) = pushed.item("broken"), _of_broken(pushed)
    assert (failed.state, failed.run_name) == ("FAILED", pushed.cases["broken"].run_id)
    assert failed.error is not None
    assert (failed.error["stage"], failed.error["filePaths"]) == ("build", [path])
    agents = [bench.services.wandb.run(ENTITY, "model-registry", a.name) for a in agents_of(bench, queue)]
    (log,) = [run.files[path].decode() for run in agents if run is not None and path in run.files]
    assert "no compiler here" in log
    assert any("service limit" in text for text in warned), "what waits for quota says so"


def _of_broken(pushed: Pushed) -> tuple[str, list[str]]:
    """Where its log is, and what all items were warned of."""
    warnings = [warning["message"] for item in pushed.items.values() for warning in item.warnings]
    return f"{pushed.item('broken').id}/error/error.log", warnings


def _check_agents(bench: Bench, queue: Queue) -> None:
    agents: list[Agent] = agents_of(bench, queue)
    assert len(agents) == 2
    for agent in agents:
        statuses = [status for _, status in agent.statuses]
        assert (statuses[0], statuses[-1]) == ("POLLING", "KILLED")
        assert len(statuses) > 3, "it has beaten"
        assert set(statuses[1:-1]) <= {"POLLING", "RUNNING"}
        run = bench.services.wandb.run(ENTITY, "model-registry", agent.name)
        assert run is not None
        assert (run.state, run.refused) == ("finished", [])


def _check_read_back(run: dict[str, Any], case: LaunchCase, queue: Queue) -> None:
    printed = [line.replace("{host}", "algo-1") for line in case.printed]
    config, summary = run["config"], run["summary"]
    assert (run["state"], run["group"]) == ("finished", case.run_id)
    assert {"sagemaker", "ml.m5.large", queue.name} <= set(run["tags"])
    assert (config["sagemaker/job_name"], config["launch/queue"]) == (case.job_name, queue.name)
    assert "@sha256:" in config["sagemaker/image"]
    assert "WANDB_API_KEY" not in config["sagemaker/request"]["Environment"]
    assert (summary["sagemaker/status"], summary["sagemaker/end"]) == ("Completed", "completed")
    assert summary["launch/log_lines"] == len(printed)
    assert [row["loss"] for row in run["history"] if "loss" in row] == [0.5, 0.25]
    states = [row["sagemaker/secondary_status"] for row in run["history"] if "loss" not in row]
    assert states[-1] == "Completed"
    assert run["console"] == [["algo-1", line] for line in printed]
    log = run["files"]["logs/algo-1/00001.log"]
    assert [line.partition(" ")[2] for line in log.splitlines()] == printed
