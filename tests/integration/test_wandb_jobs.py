"""W&B jobs through the real `wandb.Api`, against the double: what is found, written, refused, and tried again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.fakes.git_server import git, make_repository, running_git_server
from worker.clients.api_key import ApiKey
from worker.errors import Again, Never, Throttled, Unreachable, WorkerError
from worker.launch.job_spec import ArtifactRef, parse_artifact_ref
from worker.launch.message import CodeSource, JobCode
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.sources.checkout import Budget, Checkout, SourceLimits
from worker.sources.git import GitClient
from worker.sources.job_code import JobCodeFetcher
from worker.sources.wandb_job import WandbJobs, wandb_jobs

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "canary" + "k" * 40
NEXT_KEY = "n" * 40
IMAGE_JOB = {"source_type": "image", "source": {"image": "host/train:1"}, "runtime": "3.10"}
NAME = "acme/demo/job-train:latest"
LIMITS = SourceLimits()


def job_files(spec: Mapping[str, Any] = IMAGE_JOB, **files: bytes) -> dict[str, bytes]:
    """The files of a job artifact; `_` stands for a dot."""
    named = {name.replace("_", "."): content for name, content in files.items()}
    return {"wandb-job.json": json.dumps(spec).encode(), **named}


@dataclass
class Jobs:
    """The double, and the worker's way to it."""

    double: WandbDouble
    jobs: WandbJobs
    folder: Path

    async def refused(self, ref: ArtifactRef | str = NAME) -> WorkerError:
        """The error of asking for a job; the key is not in it."""
        parsed = parse_artifact_ref(ref) if isinstance(ref, str) else ref
        assert parsed is not None
        with pytest.raises(WorkerError) as raised:
            await self.jobs.job(parsed)
        assert KEY not in f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
        return raised.value

    async def write(self, files: Mapping[str, bytes], limits: SourceLimits = LIMITS) -> Path:
        """Make an artifact of `files` and fetch it; returns its folder."""
        added = self.double.add_artifact("acme", "demo", "code", files, "code")
        found = await self.jobs.artifact(ArtifactRef(id=added.id), "code")
        tree, scratch = self.folder / "tree", self.folder / "scratch"
        for path in (tree, scratch):
            path.mkdir()
        await self.jobs.write(found, tree, scratch=scratch, budget=Budget(limits, code="LW-JOB-TOO-LARGE"))
        return tree


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jobs]:
    async with (
        running_wandb_double() as double,
        wandb_jobs(double.base_url, ApiKey(KEY), timeout=2) as jobs,
    ):
        yield Jobs(double, jobs, tmp_path_factory.mktemp("unused"))


@pytest.fixture
def jobs(opened: Jobs, tmp_path: Path) -> Jobs:
    url = opened.double.base_url
    opened.double.reset()
    opened.double.base_url = url
    opened.double.faults.clear()
    return replace(opened, folder=tmp_path)


async def test_a_job_by_alias_version_and_id(jobs: Jobs) -> None:
    images = ("first", "second")
    made = [
        jobs.double.add_artifact(
            "acme", "demo", "job-train", job_files({**IMAGE_JOB, "source": {"image": image}}), aliases=aliases
        )
        for image, aliases in zip(images, (["prod"], []), strict=True)
    ]
    wanted = {
        "acme/demo/job-train:prod": 0,
        "acme/demo/job-train:v0": 0,
        "acme/demo/job-train:v1": 1,
        "acme/demo/job-train:latest": 1,
        f"wandb-artifact://_id/{made[0].id}": 0,
        "wandb-artifact://acme/demo/job-train:v1": 1,
    }
    for name, number in wanted.items():
        ref = parse_artifact_ref(name)
        assert ref is not None
        found = await jobs.jobs.job(ref)
        assert (found.artifact.id, found.spec.image) == (made[number].id, images[number]), name
        assert (found.artifact.name, found.artifact.version) == ("acme/demo/job-train", f"v{number}")
    assert jobs.double.unknown_operations == {}


async def test_only_the_jobs_file_is_fetched(jobs: Jobs) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files(requirements_frozen_txt=b"a==1\n"))
    await jobs.jobs.job(ArtifactRef(name=NAME))
    assert jobs.double.counts["storage:get"] == 1


@pytest.mark.parametrize(
    "name", ["acme/demo/nope:latest", "acme/demo/job-train:v7", "acme/other/job-train:latest"]
)
async def test_a_job_that_is_not_there(jobs: Jobs, name: str) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    error = await jobs.refused(name)
    assert isinstance(error, Never)
    assert (error.code, name in str(error)) == ("LW-JOB-NOT-FOUND", True)


async def test_what_is_no_job_and_no_id(jobs: Jobs) -> None:
    added = jobs.double.add_artifact("acme", "demo", "job-train", job_files(), "dataset")
    for ref in (NAME, f"wandb-artifact://_id/{added.id}", "wandb-artifact://_id/bm9wZQ=="):
        error = await jobs.refused(ref)
        assert isinstance(error, Never)
        assert error.code == "LW-JOB-NOT-FOUND"


async def test_deleted_since_it_was_seen(jobs: Jobs) -> None:
    added = jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    await jobs.jobs.job(ArtifactRef(id=added.id))
    jobs.double.delete_artifact(added)
    error = await jobs.refused(ArtifactRef(id=added.id))
    assert isinstance(error, Never)
    assert error.code == "LW-JOB-DELETED"


async def test_an_artifact_that_is_not_complete_yet(jobs: Jobs) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files()).state = "PENDING"
    assert type(await jobs.refused()) is Again


async def test_references_are_not_followed(jobs: Jobs) -> None:
    """The SDK's download would copy what a `file://` reference names on this machine."""
    jobs.double.add_artifact("acme", "demo", "job-train", job_files(), references=1)
    error = await jobs.refused()
    assert isinstance(error, Never)
    assert error.code == "LW-JOB-REFERENCES"


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "LW-JOB-BAD"),
        ({"wandb-job.json": b"\xff{"}, "LW-JOB-BAD"),
        ({"wandb-job.json": b"[1]"}, "LW-JOB-BAD"),
        ({"wandb-job.json": b" " * (1 << 20) + b"{}"}, "LW-JOB-BAD"),
        (job_files({"source_type": "repo", "source": {"notebook": True}}), "LW-JOB-BAD"),
    ],
)
async def test_malformed_jobs(jobs: Jobs, files: dict[str, bytes], code: str) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", files)
    error = await jobs.refused()
    assert isinstance(error, Never)
    assert error.code == code


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, Never), (404, Never), (429, Unreachable), (500, Unreachable), (503, Unreachable)],
)
async def test_what_wandb_answers(jobs: Jobs, status: int, kind: type[WorkerError]) -> None:
    """429 and 5xx are tried again by wandb-core until the call's time is over; then the launch is."""
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    jobs.double.fault("ArtifactMembershipByName", status=status, times=99)
    error = await jobs.refused()
    assert type(error) is kind
    if isinstance(error, Never):
        assert error.code == "LW-JOB-NOT-FOUND"
    jobs.double.faults.clear()
    assert (await jobs.jobs.job(ArtifactRef(name=NAME))).spec.image


async def test_wandb_that_is_silent_or_cuts(jobs: Jobs) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    for fault in ({"latency": 3.0}, {"cut": True, "times": 99}):
        jobs.double.fault("ArtifactMembershipByName", **fault)
        assert type(await jobs.refused()) is Unreachable
        jobs.double.faults.clear()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 404}, Never),
        ({"status": 403}, Unreachable),
        ({"status": 429}, Throttled),
        ({"status": 500}, Unreachable),
        ({"cut": True, "times": 99}, Unreachable),
    ],
)
async def test_what_the_storage_answers(jobs: Jobs, fault: dict[str, Any], kind: type[WorkerError]) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    jobs.double.fault("download", **fault)
    error = await jobs.refused()
    assert type(error) is kind
    assert "_storage" not in str(error), "an address may be signed"


async def test_a_key_that_wandb_does_not_accept(jobs: Jobs) -> None:
    """The operator can mend it: no launch is lost for that, and a new key is used at once."""
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    found = [KEY]

    async def read() -> str:
        return found[0]

    key = ApiKey(KEY, read=read, pause=0)
    async with wandb_jobs(jobs.double.base_url, key, timeout=2) as others:
        for operation in ("Viewer", "ArtifactMembershipByName"):
            jobs.double.fault(operation, status=401, times=99)
            assert isinstance(await replace(jobs, jobs=others).refused(), Again)
            jobs.double.faults.clear()
            assert (await others.job(ArtifactRef(name=NAME))).spec.image
        found[0] = NEXT_KEY
        jobs.double.fault("ArtifactMembershipByName", status=401)
        assert (await others.job(ArtifactRef(name=NAME))).spec.image
        assert jobs.double.operations[-1]["key"] == NEXT_KEY[-4:]


async def test_wandb_core_that_dies_is_started_anew(jobs: Jobs) -> None:
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    await jobs.jobs.job(ArtifactRef(name=NAME))
    children = psutil.Process().children()  # type: ignore[no-untyped-call]
    (core,) = [child for child in children if child.name() == "wandb-core"]
    core.kill()
    await asyncio.to_thread(core.wait, 5)
    errors = await asyncio.gather(*(jobs.refused() for _ in range(1)))
    assert {type(error) for error in errors} == {Unreachable}
    found = await asyncio.gather(*(jobs.jobs.job(ArtifactRef(name=NAME)) for _ in range(10)))
    assert len(found) == 10


async def test_nothing_but_the_key_itself_knows_the_key(
    jobs: Jobs, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    await jobs.jobs.job(ArtifactRef(name=NAME))
    await jobs.refused("acme/demo/nope:v1")
    printed = capfd.readouterr()
    logs = "".join(
        path.read_text(errors="replace") for path in Path.home().glob(".cache/wandb/logs/*") if path.is_file()
    )
    assert KEY not in printed.out + printed.err + caplog.text + logs + repr(vars(jobs.jobs))


async def test_files_are_written_with_their_folders(jobs: Jobs) -> None:
    files = {f"src/part{number}.py": f"{number}".encode() for number in range(60)}
    tree = await jobs.write({"train.py": b"x", **files})
    assert {str(path.relative_to(tree)) for path in tree.rglob("*.py")} == {"train.py", *files}
    assert (tree / "src/part59.py").read_text() == "59"
    assert list((jobs.folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (SourceLimits(source_max_bytes=10), "LW-JOB-TOO-LARGE"),
        (SourceLimits(source_max_files=2), "LW-JOB-TOO-LARGE"),
    ],
)
async def test_limits_hold(jobs: Jobs, limits: SourceLimits, code: str) -> None:
    with pytest.raises(Never) as raised:
        await jobs.write({"a": b"12345", "b": b"12345", "c": b"1"}, limits)
    assert raised.value.code == code


async def test_sizes_are_not_believed(jobs: Jobs) -> None:
    added = jobs.double.add_artifact("acme", "demo", "code", {"a": b"x"}, "code")
    jobs.double.storage[f"{added.id}/a"] = b"x" * 1000
    found = await jobs.jobs.artifact(ArtifactRef(id=added.id), "code")
    budget = Budget(SourceLimits(source_max_bytes=100), code="LW-JOB-TOO-LARGE")
    (jobs.folder / "scratch").mkdir()
    with pytest.raises(Never, match="larger than 100 bytes"):
        await jobs.jobs.write(found, jobs.folder, scratch=jobs.folder / "scratch", budget=budget)


@pytest.mark.parametrize("path", ["../outside", "/outside", "a/../../outside"])
async def test_paths_that_lead_out_are_refused(jobs: Jobs, path: str) -> None:
    with pytest.raises(Never) as raised:
        await jobs.write({path: b"x"})
    assert raised.value.code == "LW-JOB-UNSAFE"
    assert not list(jobs.folder.glob("outside"))


# The code of jobs -----------------------------------------------------------------------------------------------------


async def fetch(jobs: Jobs, source: CodeSource, *, certificate: Path | None = None) -> Checkout:
    """Fetch a job's code into a new folder."""
    assert source.job is not None
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(jobs.folder)}
    if certificate:
        environ["GIT_SSL_CAINFO"] = str(certificate)
    fetcher = JobCodeFetcher(jobs.jobs, GitClient(environ=environ), LIMITS)
    folder = jobs.folder / f"fetch-{len(list(jobs.folder.iterdir()))}"
    scratch, tree = folder / "scratch", folder / "tree"
    scratch.mkdir(parents=True)
    tree.mkdir()
    return await fetcher.fetch(source, source.job, scratch=scratch, tree=tree)


def texts(checkout: Checkout) -> dict[str, str]:
    files = (path for path in checkout.path.rglob("*") if path.is_file())
    return {str(path.relative_to(checkout.path)): path.read_text() for path in files}


async def test_a_code_artifact_over_the_frozen_requirements(jobs: Jobs) -> None:
    job = jobs.double.add_artifact("acme", "demo", "job-train", job_files(requirements_frozen_txt=b"a==1\n"))
    files = {"train.py": b"x"}
    first = jobs.double.add_artifact("acme", "demo", "code", files, "code")
    code = JobCode(
        name="acme/demo/job-train", artifact=job.id, code=ArtifactRef(name="acme/demo/code:latest")
    )
    checkout = await fetch(jobs, CodeSource("", job=code))
    assert texts(checkout) == {"train.py": "x", "requirements.frozen.txt": "a==1\n"}
    assert (checkout.commit, checkout.origin) == (
        first.id,
        "wandb-artifact://acme/demo/code for job acme/demo/job-train",
    )
    jobs.double.add_artifact(
        "acme", "demo", "code", {"train.py": b"y", "requirements.frozen.txt": b"b"}, "code"
    )
    pinned = await fetch(jobs, CodeSource("", checkout.commit, job=code))
    assert (texts(pinned), pinned.content_id) == (texts(checkout), checkout.content_id)
    moved = await fetch(jobs, CodeSource("", job=code))
    assert texts(moved) == {"train.py": "y", "requirements.frozen.txt": "b"}
    assert moved.content_id != checkout.content_id
    other = await fetch(jobs, CodeSource("", checkout.commit, job=replace(code, name="acme/other/job-train")))
    assert (other.content_id, other.origin == checkout.origin) == (checkout.content_id, False)


async def test_code_that_was_deleted(jobs: Jobs) -> None:
    job = jobs.double.add_artifact("acme", "demo", "job-train", job_files())
    code = jobs.double.add_artifact("acme", "demo", "code", {"train.py": b"x"}, "code")
    jobs.double.delete_artifact(code)
    source = CodeSource("", job=JobCode(name="n", artifact=job.id, code=ArtifactRef(id=code.id)))
    with pytest.raises(Never) as raised:
        await fetch(jobs, source)
    assert raised.value.code == "LW-JOB-DELETED"


PATCHES = {
    "plain": (
        b"diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-one\n+two\n",
        {"train.py": "two\n", "data.bin": "old\n"},
    ),
    "with a file that is only named": (
        b"diff --git a/data.bin b/data.bin\nindex 1..2 100644\nBinary files a/data.bin and b/data.bin differ\n"
        b"diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-one\n+two\n",
        {"train.py": "two\n", "data.bin": "old\n"},
    ),
    "a new file": (
        b"diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x\n",
        {"train.py": "one\n", "data.bin": "old\n", "new.py": "x\n"},
    ),
    "empty": (b"", {"train.py": "one\n", "data.bin": "old\n"}),
}
BAD_PATCHES = {
    "another content": (PATCHES["plain"][0].replace(b"-one", b"-other"), "patch does not apply"),
    "outside": (PATCHES["a new file"][0].replace(b"b/new.py", b"b/../../new.py"), "invalid path"),
    "beyond a link": (
        b"diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+@OUT@\n"
        b"\\ No newline at end of file\n"
        b"diff --git a/l/x b/l/x\nnew file mode 100644\n--- /dev/null\n+++ b/l/x\n@@ -0,0 +1 @@\n+x\n",
        "beyond a symbolic link",
    ),
    "a link out": (
        b"diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n"
        b"\\ No newline at end of file\n",
        "a link out of the checkout",
    ),
    "no patch": (b"hello\n", "No valid patches"),
}


@dataclass
class Repo:
    """A git remote with one commit, and jobs of it."""

    jobs: Jobs
    url: str
    commit: str
    certificate: Path

    async def fetch(self, patch: bytes | None, version: str = "") -> Checkout:
        files = {} if patch is None else {"diff_patch": patch}
        made = self.jobs.double.add_artifact(
            "acme", "demo", "job-train", job_files(IMAGE_JOB, requirements_frozen_txt=b"a==1\n", **files)
        )
        job = JobCode(name="acme/demo/job-train", artifact=made.id)
        source = CodeSource(self.url, version or self.commit, job=job)
        return await fetch(self.jobs, source, certificate=self.certificate)


@pytest_asyncio.fixture(loop_scope="module")
async def repo(jobs: Jobs) -> AsyncIterator[Repo]:
    folder = jobs.folder / "git"
    folder.mkdir()
    async with running_git_server(folder) as server:
        made = make_repository(server.root / "train.git", {"train.py": "one\n", "data.bin": "old\n"})
        yield Repo(jobs, server.url("train.git"), made, server.certificate)


@pytest.mark.parametrize("name", PATCHES)
async def test_a_commit_with_the_jobs_patch(repo: Repo, name: str) -> None:
    patch, files = PATCHES[name]
    checkout = await repo.fetch(patch)
    assert texts(checkout) == {**files, "requirements.frozen.txt": "a==1\n"}
    assert checkout.commit == repo.commit
    assert len(checkout.warnings) == (1 if "only named" in name else 0)
    assert (await repo.fetch(None)).content_id != checkout.content_id or not patch


@pytest.mark.parametrize("name", BAD_PATCHES)
async def test_a_patch_that_does_not_apply(repo: Repo, name: str) -> None:
    patch, words = BAD_PATCHES[name]
    outside = repo.jobs.folder / "outside"
    outside.mkdir()
    patch = patch.replace(b"@OUT@", str(outside).encode())
    with pytest.raises(Never, match=words) as raised:
        await repo.fetch(patch)
    assert raised.value.code in ("LW-JOB-PATCH", "LW-GIT-UNSAFE")
    assert not list(repo.jobs.folder.rglob("new.py"))
    assert not list(outside.iterdir())


async def test_a_commit_on_no_branch(repo: Repo) -> None:
    root = repo.jobs.folder / "git" / "repositories" / "train.git"
    git(root, "commit", "--quiet", "--allow-empty", "-m", "gone")
    gone = git(root, "rev-parse", "HEAD")
    git(root, "reset", "--quiet", "--hard", repo.commit)
    git(root, "config", "uploadpack.allowAnySHA1InWant", "true")
    assert (await repo.fetch(None, gone)).commit == gone
