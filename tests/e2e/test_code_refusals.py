"""Code that can never become a job: input → outcome, stage, code. One worker, all side by side; it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.audit import ended, queue_empty
from tests.e2e.bench import Bench, open_bench
from tests.e2e.code import SCRIPT, CodeBench, Files, archive, code_bench
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered
from tests.fakes.git_server import GitServer, make_repository, running_git_server
from worker.launch.record import LaunchRecord, LaunchState
from worker.local.stack import ENTITY
from worker.local.wandb_records import QueueItem

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

LIMIT = 4_000_000
"""LAUNCH_SOURCE_MAX_BYTES."""
PASSWORD = "s3cr3t-t0ken"
AGENT, BUILD = "agent", "build"


@dataclass(frozen=True)
class Input:
    """What the table's inputs are made from."""

    code: CodeBench
    git: GitServer
    private_git: GitServer
    """Asks for a login that nobody here has."""
    foreign_base: str
    """An image for arm64."""

    async def archived(self, *members: tarfile.TarInfo) -> dict[str, Any]:
        return {"uri": await self.code.upload(archive({SCRIPT: "true\n"}, *members))}

    async def built(self, *steps: str, base: str = "", **files: str) -> dict[str, Any]:
        content = {SCRIPT: "true\n", "Dockerfile": self.code.dockerfile(*steps, base=base), **files}
        return {"uri": await self.code.upload(content), "dockerfile": "Dockerfile"}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


async def unknown_scheme(given: Input) -> dict[str, Any]:
    return {"uri": "ftp://example.org/code.tar.gz"}


async def local_file(given: Input) -> dict[str, Any]:
    return {"uri": "file:///etc/passwd"}


async def git_over_ext(given: Input) -> dict[str, Any]:
    return {"uri": "ext::sh -c true"}


async def missing_object(given: Input) -> dict[str, Any]:
    return {"uri": "s3://launch-dev/not/there.tar.gz"}


async def missing_bucket(given: Input) -> dict[str, Any]:
    return {"uri": "s3://no-such-bucket-at-all/code.tar.gz"}


async def unknown_archive(given: Input) -> dict[str, Any]:
    return {"uri": await given.code.upload(b"7z", "code.7z")}


async def broken_archive(given: Input) -> dict[str, Any]:
    return {"uri": await given.code.upload(archive({SCRIPT: "true\n" * 9999})[:-40])}


async def wrong_branch(given: Input) -> dict[str, Any]:
    return {"uri": given.git.url("train.git"), "git": {"version": "no-such-branch"}}


async def missing_repository(given: Input) -> dict[str, Any]:
    return {"uri": given.git.url("missing.git")}


async def git_asks_for_password(given: Input) -> dict[str, Any]:
    return {"uri": given.private_git.url("train.git")}


async def wrong_git_password(given: Input) -> dict[str, Any]:
    return {"uri": given.private_git.url("train.git", login=f"ada:{PASSWORD}")}


async def parent_folder(given: Input) -> dict[str, Any]:
    return await given.archived(member("../outside", tarfile.REGTYPE))


async def link_out(given: Input) -> dict[str, Any]:
    return await given.archived(member("link", tarfile.SYMTYPE, "../../../etc/passwd"))


async def link_to_absolute_path(given: Input) -> dict[str, Any]:
    return await given.archived(member("link", tarfile.SYMTYPE, "/etc/passwd"))


async def hard_link_out(given: Input) -> dict[str, Any]:
    return await given.archived(member("link", tarfile.LNKTYPE, "../../etc/passwd"))


async def device(given: Input) -> dict[str, Any]:
    return await given.archived(member("null", tarfile.CHRTYPE))


async def bomb(given: Input) -> dict[str, Any]:
    content = archive({SCRIPT: bytes(50 * LIMIT)})
    assert len(content) < LIMIT / 10
    return {"uri": await given.code.upload(content)}


async def no_entry_point(given: Input) -> dict[str, Any]:
    return {**await given.archived(), "command": ()}


async def missing_dockerfile(given: Input) -> dict[str, Any]:
    return {**await given.archived(), "dockerfile": "docker/Dockerfile"}


async def wrong_dockerfile(given: Input) -> dict[str, Any]:
    return await given.built("BANANA split")


async def failing_step(given: Input) -> dict[str, Any]:
    return await given.built(r"RUN printf 'it %s\n' broke; exit 7")


async def missing_file_in_copy(given: Input) -> dict[str, Any]:
    return await given.built("COPY nothing.txt /")


async def wrong_architecture(given: Input) -> dict[str, Any]:
    return await given.built(base=given.foreign_base)


async def metadata_service(given: Input) -> dict[str, Any]:
    return await given.built("RUN wget -O - http://169.254.169.254/latest/meta-data/")


async def broken_pyproject(given: Input) -> dict[str, Any]:
    return {"uri": await given.code.upload({SCRIPT: "true\n", "pyproject.toml": "[project"})}


TABLE: Mapping[Callable[[Input], Awaitable[dict[str, Any]]], tuple[str, str, str]] = {
    unknown_scheme: (AGENT, "LW-SOURCE-SCHEME", "write s3://BUCKET/KEY.tar.gz"),
    local_file: (AGENT, "LW-SOURCE-SCHEME", "Refusing to fetch from 'file:///etc/passwd'"),
    git_over_ext: (AGENT, "LW-SOURCE-SCHEME", "Refusing to fetch"),
    missing_object: (AGENT, "LW-S3-NOT-FOUND", "does not exist (NoSuchKey)"),
    missing_bucket: (AGENT, "LW-S3-NOT-FOUND", "does not exist (NoSuchBucket)"),
    unknown_archive: (AGENT, "LW-ARCHIVE-KIND", "pack it as .tar.gz, .tar or .zip"),
    broken_archive: (AGENT, "LW-ARCHIVE-BAD", "pack it again"),
    wrong_branch: (AGENT, "LW-GIT-REF", "no branch, tag or commit 'no-such-branch'"),
    missing_repository: (AGENT, "LW-GIT-NOT-FOUND", "check the URL"),
    git_asks_for_password: (AGENT, "LW-GIT-AUTH", "LAUNCH_GIT_CREDENTIALS"),
    wrong_git_password: (AGENT, "LW-GIT-AUTH", "LAUNCH_GIT_CREDENTIALS"),
    parent_folder: (AGENT, "LW-ARCHIVE-UNSAFE", "'../outside'"),
    link_out: (AGENT, "LW-ARCHIVE-UNSAFE", "a link out of the archive"),
    link_to_absolute_path: (AGENT, "LW-ARCHIVE-UNSAFE", "a link to the absolute path"),
    hard_link_out: (AGENT, "LW-ARCHIVE-UNSAFE", "a hard link to '../../etc/passwd'"),
    device: (AGENT, "LW-ARCHIVE-UNSAFE", "is a device"),
    bomb: (AGENT, "LW-ARCHIVE-TOO-LARGE", "LAUNCH_SOURCE_MAX_BYTES"),
    no_entry_point: (BUILD, "LW-NO-ENTRYPOINT", "overrides.entry_point"),
    missing_dockerfile: (BUILD, "LW-DOCKERFILE-MISSING", "'docker/Dockerfile'"),
    wrong_dockerfile: (BUILD, "LW-DOCKERFILE", "unknown instruction: BANANA"),
    failing_step: (BUILD, "LW-BUILD-FAILED", "it broke"),
    missing_file_in_copy: (BUILD, "LW-BUILD-FAILED", "nothing.txt"),
    wrong_architecture: (BUILD, "LW-ARCHITECTURE", "linux/arm64"),
    metadata_service: (BUILD, "LW-BUILD-FAILED", "Network is unreachable"),
    broken_pyproject: (BUILD, "LW-PYPROJECT", "pyproject.toml"),
}
"""Input → stage and code of its refusal, and a part of the reason."""
LOGGED = {failing_step, missing_file_in_copy, metadata_service, wrong_dockerfile, wrong_architecture}
"""Those that come as far as the daemon: their build log is in W&B."""


@dataclass(frozen=True)
class Refused:
    """What became of one input."""

    case: LaunchCase
    item: QueueItem
    letter: Any
    record: LaunchRecord | None


@dataclass(frozen=True)
class Played:
    """What became of all of them, and of the good launch that came last."""

    code: CodeBench
    refused: Mapping[str, Refused]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def played(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """All inputs at once to one worker, then a good one."""
    folder = tmp_path_factory.mktemp("code-refusals")
    async with (
        open_bench(stack.services, stack.clients, stack.image, folder) as bench,
        running_git_server(_made(folder / "git")) as git,
        running_git_server(_made(folder / "private")) as private_git,
        code_bench(bench, LAUNCH_SOURCE_MAX_BYTES=str(LIMIT), GIT_SSL_CAINFO=str(folder / "ca.pem")) as code,
    ):
        trusted = [server.certificate.read_text() for server in (git, private_git)]
        (folder / "ca.pem").write_text("".join(trusted))
        private_git.login = f"ada:not-{PASSWORD}"
        for server in (git, private_git):
            make_repository(server.root / "train.git", {SCRIPT: "true\n"})
        given = Input(code, git, private_git, await _foreign_image(code))
        sent: dict[str, tuple[LaunchCase, QueueItem]] = {}
        for make in TABLE:
            item = bench.services.wandb.push(ENTITY, "bad-code", {})
            sent[make.__name__] = code.launch(**await make(given), item_id=item.id), item
        worker = await bench.start()
        await bench.send(*(case for case, _ in sent.values()))
        await _all_ended(bench, [case for case, _ in sent.values()])
        found = await bench.dead_letters(len(worker.events("launch_refused")))
        letters = {letter["MessageAttributes"]["launchId"]["StringValue"]: letter for letter in found}
        refused = {
            name: Refused(case, item, letters.get(case.launch_id), await bench.record(case))
            for name, (case, item) in sent.items()
        }
        yield Played(code, refused)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("make", TABLE, ids=lambda make: str(make.__name__))
async def test_bad_input_is_refused(
    played: Played, make: Callable[[Input], Awaitable[dict[str, Any]]]
) -> None:
    stage, code, part = TABLE[make]
    refused = played.refused[make.__name__]
    record, item = refused.record, refused.item
    assert record is not None
    assert record.failure is not None
    assert (record.state, record.reported) == (LaunchState.REFUSED, True)
    assert (record.failure.stage, record.failure.code) == (stage, code), record.failure.reason
    assert part in record.failure.reason
    attributes = {name: value["StringValue"] for name, value in refused.letter["MessageAttributes"].items()}
    assert attributes == {
        "reason": record.failure.reason,
        "stage": stage,
        "code": code,
        "launchId": refused.case.launch_id,
    }
    assert item.error is not None
    assert (item.state, item.error["stage"]) == ("FAILED", stage)
    assert part in item.error["message"]
    for text in (refused.letter["Body"], json.dumps(attributes), repr(record), json.dumps(item.error)):
        assert PASSWORD not in text
    assert played.code.bench.jobs(refused.case) == []


@pytest.mark.parametrize("make", LOGGED, ids=lambda make: str(make.__name__))
async def test_failed_builds_show_their_log(
    played: Played, make: Callable[[Input], Awaitable[dict[str, Any]]]
) -> None:
    refused = played.refused[make.__name__]
    run = played.code.bench.companion(refused.case)
    assert run is not None
    assert (run.state, run.console()) == ("failed", [])
    assert TABLE[make][2] in "\n".join(played.code.build_log(refused.case))


async def test_worker_goes_on(played: Played) -> None:
    """Nothing is left of what was refused, no secret was printed, and the next launch succeeds."""
    code = played.code
    assert code.pushed() == []
    await code.nothing_left()
    (worker,) = code.bench.workers
    assert PASSWORD not in worker.printed()
    case = code.launch(await code.upload(code.script(lines := numbered(2))), lines)
    await code.bench.send(case)
    await code.audit(case)
    assert worker.alive


async def _all_ended(bench: Bench, cases: Sequence[LaunchCase]) -> None:
    """Wait until nothing is open any more, but not for ever: the tests say what is missing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            for case in cases:
                await ended(bench, case)
            await queue_empty(bench)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _foreign_image(code: CodeBench) -> str:
    """An image that says it is for arm64, on the daemon under a name of this test's; returns its name."""
    tag = f"launch-worker/build:arm64-{code.bench.deployment}"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as packed:
        packed.addfile(member("opt", tarfile.DIRTYPE))
    config = {
        "architecture": "arm64",
        "os": "linux",
        "config": {"Labels": {"launch-worker.deployment": code.bench.deployment}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    files: Files = {
        "config.json": json.dumps(config),
        "manifest.json": json.dumps(manifest),
        "layer.tar": layer.getvalue(),
    }
    await code.docker.images.import_image(archive(files))
    return tag
