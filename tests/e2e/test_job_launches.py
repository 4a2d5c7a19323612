"""W&B jobs of each kind, through the double's artifacts and the real `wandb.Api`, to a finished job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from moto.sagemaker.models import sagemaker_backends

from tests.e2e.audit import audit, ended, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.code import Files, code_bench
from tests.e2e.conftest import STATE, Stack
from tests.e2e.jobs import add_code, add_job, launch_job
from tests.e2e.launches import LaunchCase, arguments, numbered, script
from tests.e2e.together import Outcomes, Scenarios, run_together
from tests.fakes.git_server import make_repository, running_git_server
from tests.integration.python_images import python_image, wheel
from worker.launch.record import LaunchRecord, LaunchState
from worker.local.aws import ACCOUNT, REGION
from worker.local.stack import ENTITY, WANDB_KEY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


def request(case: LaunchCase) -> dict[str, Any]:
    """What SageMaker was asked for."""
    job = sagemaker_backends[ACCOUNT][REGION].training_jobs[case.job_name]
    found: dict[str, Any] = job.response_object
    return found


async def image(bench: Bench) -> None:
    """A worker that builds nothing runs it; its command is the job's own."""
    job = add_job(bench, "image", {"image": bench.image, "entrypoint": ["sh", "-c"]})
    lines = numbered(3)
    case = launch_job(bench, job, lines, overrides={"args": arguments(script(lines, 0.1))})
    worker = await bench.start(builder="none")
    await bench.send(case)
    (record,) = await audit(bench, case)
    worker.terminate()
    assert await worker.exit_code() == 0, "wandb-core ends with the worker"
    assert record.image == bench.image
    environment = request(case)["Environment"]
    assert environment["WANDB_DOCKER"] == bench.image
    assert json.loads(environment["WANDB_ARTIFACTS"]) == {"_wandb_job": job}


async def repo(bench: Bench) -> None:
    """A commit with the job's patch, which is not left in the image; an override wins over the job's command."""
    async with running_git_server(bench.folder) as server, code_bench(bench) as code:
        bench.environment["GIT_SSL_CAINFO"] = str(server.certificate)
        lines, unwanted = numbered(2, "patched"), numbered(2, "pushed")
        old, new = (str(code.script(text)["train.sh"]).rstrip("\n") for text in (unwanted, lines))
        commit = make_repository(server.root / "train.git", {"train.sh": f"{old}\n"})
        patch = (
            "diff --git a/train.sh b/train.sh\n--- a/train.sh\n+++ b/train.sh\n@@ -1 +1 @@\n"
            f"-{old}\n+ls -a | grep -c diff.patch; {new}\n"
        )
        source = {
            "git": {"remote": server.url("train.git"), "commit": commit},
            "entrypoint": ["sh", "missing.sh"],
            "notebook": False,
        }
        job = add_job(bench, "repo", source, {"diff.patch": patch.encode()})
        case = launch_job(bench, job, ["0", *lines], overrides={"entry_point": ["sh", "train.sh"]})
        await bench.start()
        await bench.send(case)
        (record,) = await code.audit(case)
        assert record.commit == commit
        assert "WANDB_DOCKER" not in request(case)["Environment"]


async def artifact(bench: Bench) -> None:
    """Code on the job's base image, with frozen requirements of which one cannot be had: a warning of the item."""
    async with code_bench(bench) as code:
        label = f"launch-worker.deployment={bench.deployment}"
        base = await python_image(
            code.docker, STATE, f"launch-worker/build:base-{bench.deployment}", label=label, uv=True
        )
        files: Files = {
            "wheelhouse/greeting-1.0-py3-none-any.whl": wheel(
                "greeting", "print('the wheel was installed')\n"
            ),
            "train.py": "import greeting\n",
        }
        source = {
            "artifact": add_code(bench, files),
            "entrypoint": ["python", "train.py"],
            "notebook": False,
            "base_image": base,
        }
        job = add_job(
            bench, "artifact", source, {"requirements.frozen.txt": b"greeting==1.0\nmissing==2.0\n"}
        )
        item = bench.services.wandb.push(ENTITY, "jobs", {})
        case = launch_job(bench, job, ["the wheel was installed"], item_id=item.id)
        worker = await bench.start()
        await bench.send(case)
        await worker.wait_for("image_ready", seconds=120)  # three installations, in a build
        await code.audit(case)
        told = [warning["message"] for warning in item.warnings]
        missing = "Some packages were not successfully installed during the build: missing==2.0"
        assert f"LW-BUILD-WARNING: {missing}" in told
        _no_key_in(bench.folder)


def _no_key_in(folder: Path) -> None:
    """Neither the SDK's logs nor anything else that the worker has written holds the W&B key."""
    for path in folder.rglob("*"):
        assert not path.is_file() or WANDB_KEY.encode() not in path.read_bytes(), path


async def _refused(bench: Bench, case: LaunchCase) -> LaunchRecord:
    await bench.send(case)
    await ended(bench, case)
    await bench.dead_letters(1)
    await queue_empty(bench)
    record = await bench.record(case)
    assert record is not None
    assert record.state is LaunchState.REFUSED
    assert bench.jobs(case) == []
    return record


async def never(bench: Bench) -> None:
    """What cannot be run is refused with its own code."""
    command = {"entrypoint": ["sh", "train.sh"], "notebook": False}
    git = {"remote": "https://elsewhere.example.com/x.git", "commit": "a" * 40}
    jobs = {
        "LW-JOB-NOT-FOUND": f"{ENTITY}/e2e/nope:latest",
        "LW-JOB-NOTEBOOK": add_job(bench, "repo", {"git": git, "notebook": True, "entrypoint": ["x.ipynb"]}),
        "LW-JOB-BAD": add_job(bench, "folder", {}),
        "LW-NO-BUILDER": add_job(bench, "artifact", {"artifact": "wandb-artifact://_id/eA==", **command}),
        "LW-POLICY": add_job(bench, "image", {"image": "999999999999.dkr.ecr.us-east-1.amazonaws.com/x:1"}),
    }
    await bench.start(allowed_images="123456789012.*", builder="none")
    for code, job in jobs.items():
        record = await _refused(bench, launch_job(bench, job, []))
        assert record.failure is not None
        assert record.failure.code == code, record.failure


async def offline(bench: Bench) -> None:
    """Without W&B there are no jobs to be had."""
    bench.environment |= {"WANDB_MODE": "offline", "WANDB_DIR": str(bench.folder / "offline")}
    await bench.start()
    record = await _refused(bench, launch_job(bench, f"{ENTITY}/e2e/some-job:v1", []))
    assert record.failure is not None
    assert record.failure.code == "LW-JOB-OFFLINE"


async def wandb_away(bench: Bench) -> None:
    """W&B that does not give the job's file is asked again."""
    job = add_job(bench, "image", {"image": bench.image, "entrypoint": ["sh", "-c"]})
    found = bench.services.wandb.artifacts
    (artifact,) = (one for one in found.values() if one.collection in job)
    bench.services.wandb.fault(f"download {artifact.id}", status=503, times=1)
    lines = numbered(2)
    case = launch_job(bench, job, lines, overrides={"args": arguments(script(lines, 0.1))})
    worker = await bench.start()
    await bench.send(case)
    await audit(bench, case)
    assert len(worker.events("launch_again")) == 1


LAUNCHES: Scenarios = {
    scenario.__name__: ("sqlite", scenario)
    for scenario in (image, repo, artifact, never, offline, wandb_away)
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each launch that is asked for."""
    return await run_together(LAUNCHES, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("launch", LAUNCHES)
async def test_job_launch(outcomes: Outcomes, launch: str) -> None:
    if (error := outcomes[launch]) is not None:
        raise error
