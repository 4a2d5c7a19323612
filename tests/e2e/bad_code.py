"""Code that can never become a job: how to make it, and what must be said of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e.code import SCRIPT, CodeBench, Files, archive
from tests.fakes.git_server import GitServer

LIMIT = 4_000_000
"""LAUNCH_SOURCE_MAX_BYTES."""
PASSWORD = "s3cr3t-t0ken"
"""Of a git login; nobody may read it."""
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


MakeLaunch = Callable[[Input], Awaitable[dict[str, Any]]]
"""Makes the arguments of `CodeBench.launch`."""


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


TABLE: Mapping[MakeLaunch, tuple[str, str, str]] = {
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


async def foreign_image(code: CodeBench) -> str:
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
