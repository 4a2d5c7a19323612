"""Recognisable secrets go through success and through every kind of failure, and are found nowhere afterwards.

What is searched: all that the workers printed at debug level, the ledger's files and tables, the DLQ, W&B's runs, files
and queue items, the training jobs but for the variable that carries the key, and the images with their history.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from moto.sagemaker.models import sagemaker_backends

from tests.e2e.audit import ended, queue_empty
from tests.e2e.bench import Bench, LedgerKind
from tests.e2e.code import SCRIPT, CodeBench, code_bench
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered
from tests.fakes.git_server import GitServer, make_repository, running_git_server
from worker.launch.record import LaunchState
from worker.local.aws import ACCOUNT, REGION, replaced
from worker.local.ecr import LocalEcr, _Refused
from worker.local.sagemaker_api import Refusal
from worker.local.stack import ENTITY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(200)]

WORKER_KEY = "ca11ab1e" * 5
OWN_KEY = "5eed1e55" * 5
GIT_PASSWORD = "canary:git@pass/word"
WRONG_PASSWORD = "canary-wrong-password"
LINES = numbered(2)


def spellings(secret: str) -> list[bytes]:
    """As it is, in a URL, in a basic login and in JSON."""
    texts = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
    logins = {f"{user}:{secret}" for user in ("api", "AWS", "ada")}
    encoded = {base64.b64encode(login.encode()) for login in logins}
    return [*(text.encode() for text in texts), *encoded]


@dataclass
class Played:
    """What became of everything, as bytes by place."""

    bench: Bench
    code: CodeBench | None
    secrets: list[str]
    places: dict[str, bytes] = field(default_factory=dict)
    cases: list[LaunchCase] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    """Launch id → code of its refusal; empty: it became a job."""

    def plan(self, case: LaunchCase, code: str = "") -> LaunchCase:
        self.cases.append(case)
        self.expected[case.launch_id] = code
        return case

    def item(self) -> str:
        return self.bench.services.wandb.push(ENTITY, "canary", {}).id

    def launch(self, code: str = "", **spec: Any) -> LaunchCase:
        """Of a ready image."""
        return self.plan(self.bench.launch(**{"item_id": self.item(), **spec}), code)

    async def play(self, *cases: LaunchCase) -> None:
        await self.bench.send(*cases)
        await ended(self.bench, *cases)

    def keep_ledger(self, when: str) -> None:
        """As it is on the disk now, with what is not yet in its main file."""
        for file in self.bench.folder.glob("ledger-*"):
            self.places[f"{file.name} {when}"] = file.read_bytes()

    def leaks(self) -> list[str]:
        return sorted(
            f"{place}: {secret[:12]}…"
            for place, content in self.places.items()
            for secret in self.secrets
            if any(spelling in content for spelling in spellings(secret))
        )


async def collect(played: Played, letters: list[Any]) -> None:
    """Everything that is left, in one place each."""
    bench, places = played.bench, played.places
    for number, worker in enumerate(bench.workers):
        places[f"worker {number}"] = worker.printed().encode()
    for letter in letters:
        places[f"dead letter {letter['MessageId']}"] = json.dumps(letter).encode()
    for key, run in bench.services.wandb.runs.items():
        shown = (run.fields, run.config, run.summary, run.lines, run.alerts)
        places[f"run {key.run}"] = repr(shown).encode()
        for name, content in run.files.items():
            places[f"run {key.run} file {name}"] = content
    for queue in bench.services.wandb.queues.values():
        places[f"queue {queue.name}"] = json.dumps(asdict(queue)).encode()
    if bench.ledger.startswith("dynamodb://"):
        table = bench.ledger.removeprefix("dynamodb://")
        pages = bench.clients.dynamodb.get_paginator("scan").paginate(TableName=table)
        places["dynamodb"] = repr([page["Items"] async for page in pages]).encode()
    for name, job in sagemaker_backends[ACCOUNT][REGION].training_jobs.items():
        described = dict(job.response_object)
        environment = dict(described.get("Environment") or {})
        environment.pop("WANDB_API_KEY", None)
        places[f"training job {name}"] = json.dumps(
            {**described, "Environment": environment}, default=str
        ).encode()
    if played.code:
        await collect_images(played.code, places)


async def collect_images(code: CodeBench, places: dict[str, bytes]) -> None:
    for image in await code.docker.images.list(filters={"label": [code._label]}):
        identity = image["Id"]
        places[f"image {identity} config"] = json.dumps(await code.docker.images.inspect(identity)).encode()
        places[f"image {identity} history"] = json.dumps(await code.docker.images.history(identity)).encode()
        async with code.docker.images.export_image(identity) as exported:
            places[f"image {identity} layers"] = await exported.read()


async def good_and_bad(played: Played) -> None:
    """Launches of ready images, side by side."""
    worker = await played.bench.started(log_level="debug", allowed_instance_types="ml.m5.*")
    launch = played.launch
    paste: list[dict[str, Any]] = [
        {"name": f"run {WORKER_KEY}"},
        {"name": OWN_KEY, "_wandb_api_key": OWN_KEY},
        {"entity": OWN_KEY, "_wandb_api_key": OWN_KEY},
        {"project": WORKER_KEY},
        {"author": OWN_KEY, "_wandb_api_key": OWN_KEY, "resource": "kubernetes"},
        {"_wandb_api_key": [OWN_KEY]},
        {"wandb_api_key": OWN_KEY, "project": ""},
        {
            "overrides": {"args": [f"--key={WORKER_KEY}"], "run_config": {WORKER_KEY: OWN_KEY}},
            "_wandb_api_key": OWN_KEY,
        },
        {"resource_args": {"sagemaker": {"Environment": {"WANDB_API_KEY": OWN_KEY}}}},
        {"uri": f"ftp://ada:{GIT_PASSWORD}@127.0.0.1/x", "docker": {}},
    ]
    cases = [
        launch(lines=LINES),
        launch(lines=LINES, _wandb_api_key=OWN_KEY),
        launch("LW-POLICY", instance_type="ml.p5.48xlarge", _wandb_api_key=OWN_KEY, name="policy"),
    ]
    await played.bench.send(*(played.bench.launch(item_id=played.item(), **spec) for spec in paste))
    await played.bench.send(
        f'{{"runSpec": {{"_wandb_api_key": "{OWN_KEY}", "entity": "acme"',
        f"export WANDB_API_KEY={WORKER_KEY}",
    )
    await played.play(*cases)
    await queue_empty(played.bench)
    assert len(worker.events("launch_refused")) == len(paste) + 3
    await refused_by_sagemaker(played)


async def refused_by_sagemaker(played: Played) -> None:
    """AWS quotes the request that it refuses."""
    case = played.launch("LW-AWS-ValidationException", _wandb_api_key=OWN_KEY)
    quoted = f"Invalid Environment: {{WANDB_API_KEY={OWN_KEY}, OTHER={WORKER_KEY}}}"
    played.bench.services.sagemaker.jobs.refusals.append(Refusal("ValidationException", quoted))
    await played.play(case)


async def refused_by_wandb(played: Played) -> None:
    """W&B refuses, or has trouble, wherever it is asked."""
    wandb = played.bench.services.wandb
    cases = []
    for status in (401, 403, 404, 500):
        wandb.fault("failRunQueueItem", status=status)
        cases.append(played.launch("LW-POLICY", instance_type="ml.p5.48xlarge", _wandb_api_key=OWN_KEY))
    for name, status in (("UpsertBucket", 401), ("file_stream", 403), ("CreateRunFiles", 500)):
        wandb.fault(name, status=status)
    cases.append(played.launch(lines=LINES, _wandb_api_key=OWN_KEY))
    await played.play(*cases)
    wandb.faults.clear()


async def code_that_works_and_code_that_does_not(played: Played, git: GitServer) -> None:
    code = played.code
    assert code is not None
    worker = await played.bench.started(log_level="debug", max_attempts="1")
    url = git.url("train.git")
    own = git.url("train.git", login=f"ada:{quote(GIT_PASSWORD, safe='')}")
    wrong = git.url("train.git", login=f"ada:{WRONG_PASSWORD}")
    broken = await code.upload(
        {"train.sh": "true", "Dockerfile": code.dockerfile("RUN env; cat /proc/*/environ; exit 7")}
    )

    def launch(uri: str, refusal: str = "", **spec: Any) -> LaunchCase:
        return played.plan(
            code.launch(uri, LINES, item_id=played.item(), _wandb_api_key=OWN_KEY, **spec), refusal
        )

    await played.play(
        launch(url),
        launch(own),
        launch(wrong, "LW-GIT-AUTH"),
        launch(git.url("missing.git", login=f"ada:{quote(GIT_PASSWORD, safe='')}"), "LW-GIT-NOT-FOUND"),
        launch("s3://launch-dev/absent.tar.gz", "LW-S3-NOT-FOUND"),
        launch(broken, "LW-BUILD-FAILED", dockerfile="Dockerfile"),
    )
    with refusing_pushes(code.ecr):
        other = await code.upload({"train.sh": "echo other\n"})
        case = launch(other, "LW-GAVE-UP")
        await played.play(case)
        record = await played.bench.record(case)
        assert record is not None
        assert record.failure is not None
        assert "Not Authorized" in record.failure.reason
    git.login = "ada:another"
    await played.play(launch(url, "LW-GIT-AUTH", git={"version": "another"}))
    worker.terminate()
    assert await worker.exit_code() == 0


@contextlib.contextmanager
def refusing_pushes(ecr: LocalEcr) -> Iterator[None]:
    """Manifests are refused, with the login in the answer."""

    async def refuse(request: web.Request, *_: object) -> web.StreamResponse:
        given = request.headers["Authorization"]
        decoded = base64.b64decode(given.removeprefix("Basic ")).decode()
        raise _Refused(403, "DENIED", f"Not Authorized: {given} {decoded}")

    with replaced(LocalEcr, _put_manifest=lambda _, *given: refuse(*given)):
        yield


async def crashed(played: Played) -> None:
    """A worker dies with a launch of its own key in its hands; the next one finishes it."""
    case = played.launch(lines=LINES, _wandb_api_key=OWN_KEY)
    first = await played.bench.started(log_level="debug", crash_at="after:write_waiting")
    await played.bench.send(case)
    await first.exit_code()
    played.keep_ledger("after a crash")
    await played.bench.started(log_level="debug")
    await ended(played.bench, case)


@contextlib.asynccontextmanager
async def opened(stack: Stack, folder: Path, ledger: LedgerKind) -> AsyncIterator[tuple[Bench, list[str]]]:
    """A bench whose workers have the canaries, and the list of them, ECR's tokens included."""
    ecr = stack.services.ecr
    assert ecr is not None
    before = set(ecr._tokens)
    secrets = [WORKER_KEY, OWN_KEY, GIT_PASSWORD, WRONG_PASSWORD]
    async with stack.bench(folder, ledger=ledger) as bench:
        bench.environment["WANDB_API_KEY"] = WORKER_KEY
        yield bench, secrets
        secrets += sorted(set(ecr._tokens) - before)


async def look(played: Played) -> None:
    """Collect, and hold each launch to what was to become of it."""
    played.keep_ledger("while it is open")
    await queue_empty(played.bench)
    refused = sum(len(worker.events("launch_refused")) for worker in played.bench.workers)
    letters = await played.bench.dead_letters(refused)
    for case in played.cases:
        record = await played.bench.record(case)
        assert record is not None
        assert (record.failure.code if record.failure else "") == played.expected[case.launch_id], (
            record.failure
        )
        assert record.state is (LaunchState.REFUSED if record.failure else LaunchState.FINISHED)
    await played.bench.end_workers()
    played.keep_ledger("at the end")
    await collect(played, letters)


@pytest.mark.parametrize("ledger", ["sqlite", "dynamodb"])
async def test_ready_images(stack: Stack, tmp_path: Path, ledger: LedgerKind) -> None:
    async with opened(stack, tmp_path, ledger) as (bench, secrets):
        played = Played(bench, None, secrets)
        await good_and_bad(played)
        if ledger == "sqlite":
            await refused_by_wandb(played)
        await bench.workers[0].kill()
        await crashed(played)
        await look(played)
    assert "\n".join(played.leaks()) == ""
    assert sum(place.startswith("ledger-") for place in played.places) >= (3 if ledger == "sqlite" else 0)


async def test_code(stack: Stack, tmp_path: Path) -> None:
    async with (
        opened(stack, tmp_path, "sqlite") as (bench, secrets),
        running_git_server(tmp_path) as git,
        code_bench(bench, GIT_SSL_CAINFO=str(git.certificate)) as code,
    ):
        git.login = f"ada:{GIT_PASSWORD}"
        await asyncio.to_thread(
            make_repository, git.root / "train.git", {SCRIPT: str(code.script(LINES)[SCRIPT])}
        )
        login = f"https://ada:{quote(GIT_PASSWORD, safe='')}@127.0.0.1:{git.port}"
        bench.environment["LAUNCH_GIT_CREDENTIALS"] = login
        played = Played(bench, code, secrets)
        await code_that_works_and_code_that_does_not(played, git)
        await look(played)
    assert len(secrets) > 4, "a login of ECR was used"
    assert [place for place in played.places if place.endswith("layers")] != []
    assert "\n".join(played.leaks()) == ""
