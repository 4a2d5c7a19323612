"""Code from S3 and git becomes an image in ECR, a job, and a log; each image is made once."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio

from tests.contract.test_companion import sync
from tests.e2e.audit import ended, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.code import Files, code_bench
from tests.e2e.conftest import STATE, Stack
from tests.e2e.launches import numbered
from tests.e2e.together import Outcomes, Scenarios, run_together
from tests.fakes.git_server import commit, make_repository, running_git_server
from tests.integration.python_images import python_image, wheel
from worker.local.stack import ENTITY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

GREETING = "print('the wheel was installed')\n"


async def from_s3(bench: Bench) -> None:
    """Generated: nothing but a script. A second launch of the same finds the image; W&B hears of what is missing."""
    async with code_bench(bench) as code:
        item = bench.services.wandb.push(ENTITY, "code", {})
        uri = await code.upload(code.script(lines := numbered(3)))
        worker = await bench.started()
        first = code.launch(uri, lines, item_id=item.id)
        await bench.send(first)
        await code.audit(first)
        log = code.build_log(first)
        assert any("COPY" in line for line in log)
        assert any("digest: sha256:" in line for line in log)
        assert any("no packages are installed" in json.dumps(warning) for warning in item.warnings)
        again = code.launch(uri, lines)
        await bench.send(again)
        await code.audit(first, again)
        assert [event["built"] for event in worker.events("image_ready")] == [True, False]
        assert code.builds == 1
        companion = bench.companion(again)
        assert companion is not None
        assert "logs/build.log" not in companion.files


async def own_dockerfile(bench: Bench) -> None:
    """Its entry point is the image's own; what the build prints is no line of the job's."""
    async with code_bench(bench) as code:
        steps = (
            "RUN echo printed by the build; chmod +x train.sh",
            'CMD ["true"]',
            'ENTRYPOINT ["sh", "train.sh"]',
        )
        files = {**code.script(lines := numbered(3)), "docker/Dockerfile": code.dockerfile(*steps)}
        case = code.launch(await code.upload(files), lines, command=(), dockerfile="docker/Dockerfile")
        await bench.start()
        await bench.send(case)
        await code.audit(case)
        assert "printed by the build" in code.build_log(case)


async def buildkit(bench: Bench) -> None:
    """The other builder, by the same Dockerfile."""
    async with code_bench(bench) as code:
        lines = numbered(2)
        files = {**code.script(lines), "Dockerfile": code.dockerfile("RUN echo printed by the build")}
        case = code.launch(await code.upload(files), lines, dockerfile="Dockerfile")
        await bench.start(builder="buildkit")
        await bench.send(case)
        await code.audit(case)
        assert "printed by the build" in code.build_log(case)


async def from_git(bench: Bench) -> None:
    """A branch, by its commit: what is pushed on it meanwhile is another image; the same tree of a tag is not."""
    async with running_git_server(bench.folder) as server, code_bench(bench) as code:
        bench.environment["GIT_SSL_CAINFO"] = str(server.certificate)
        repository = server.root / "train.git"
        lines, later = numbered(2, "first"), numbered(2, "second")
        make_repository(repository, {"train.sh": str(code.script(lines)["train.sh"])})
        url = server.url("train.git")
        worker = await bench.start()
        first = code.launch(url, lines, git={"version": "main"})
        await bench.send(first)
        await code.audit(first)
        assert "/.git" not in "".join(code.build_log(first))
        head = commit(repository, {"train.sh": str(code.script(later)["train.sh"])})
        second, pinned = (
            code.launch(url, later, git={"version": version}) for version in ("main", head[:10])
        )
        await bench.send(second)
        await code.audit(first, second, images=2)
        await bench.send(pinned)
        await code.audit(second, pinned, first, images=2)
        fetched = worker.events("source_fetched")
        assert [event["content_id"] for event in fetched[1:]] == [f"git:{head}"] * 2
        assert [event["built"] for event in worker.events("image_ready")] == [True, True, False]


async def requirements(bench: Bench) -> None:
    """pip installs from the wheels that the source brings; there is no network."""
    async with code_bench(bench) as code:
        tag, label = (
            f"launch-worker/build:base-{bench.deployment}",
            f"launch-worker.deployment={bench.deployment}",
        )
        bench.environment["LAUNCH_BASE_IMAGE"] = await python_image(code.docker, STATE, tag, label=label)
        files: Files = {
            "requirements.txt": "greeting==1.0\n",
            "wheelhouse/greeting-1.0-py3-none-any.whl": wheel("greeting", GREETING),
            "train.py": "import greeting\n",
        }
        case = code.launch(
            await code.upload(files), ["the wheel was installed"], command=("python", "train.py")
        )
        await bench.start()
        await bench.send(case)
        await code.audit(case)
        assert any("Successfully installed greeting-1.0" in line for line in code.build_log(case))


async def offline(bench: Bench) -> None:
    """Without W&B the companion is a folder; synced later, it says the same."""
    async with code_bench(bench) as code:
        folder = bench.folder / "offline"
        bench.environment |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
        lines = numbered(3)
        case = code.launch(await code.upload(code.script(lines)), lines)
        worker = await bench.started()
        await bench.send(case)
        await ended(bench, case)
        await queue_empty(bench)
        worker.terminate()
        assert await worker.exit_code() == 0
        assert bench.companion(case) is None
        await sync(bench.services.wandb, folder)
        run = bench.companion(case)
        assert run is not None
        texts = [text.partition("] ")[2] for text in run.console_text()]
        assert texts == [line.replace("{host}", "algo-1") for line in lines]
        assert (run.state, run.summary["sagemaker/end"]) == ("finished", "completed")
        assert any("COPY" in line for line in code.build_log(case))
        await code.nothing_left()


LAUNCHES: Scenarios = {
    scenario.__name__: ("sqlite", scenario)
    for scenario in (from_s3, own_dockerfile, buildkit, from_git, requirements, offline)
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each launch that is asked for."""
    return await run_together(LAUNCHES, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("launch", LAUNCHES)
async def test_code_launch(outcomes: Outcomes, launch: str) -> None:
    if (error := outcomes[launch]) is not None:
        raise error
