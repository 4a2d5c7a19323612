"""The code of a W&B job: a git commit with the job's patch, or a code artifact, with the job's frozen requirements.

As W&B's agent does it (wandb/apis/public/jobs.py), but for the patch itself, which does not become part of the image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from worker.launch.job_spec import ArtifactRef
from worker.launch.message import CodeSource, JobCode
from worker.sources.checkout import Budget, Checkout, SourceLimits
from worker.sources.git import GitClient
from worker.sources.location import parse_remote
from worker.sources.stoppable import run_to_end
from worker.sources.wandb_job import TOO_LARGE_CODE, WandbJobs
from worker.sources.wandb_sdk import FoundArtifact

PATCH = "diff.patch"
FROZEN = "requirements.frozen.txt"

_BINARY = re.compile(rb"^Binary files .* differ$", re.MULTILINE)
_NOTES = re.compile(rb"^Submodule .*$", re.MULTILINE)
"""git's word on a submodule whose changes it does not show."""
_SECTION = re.compile(rb"^(?=diff --git )", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class JobCodeFetcher:
    """Writes the code of jobs to folders."""

    jobs: WandbJobs
    git: GitClient
    limits: SourceLimits

    async def fetch(self, source: CodeSource, job: JobCode, *, scratch: Path, tree: Path) -> Checkout:
        """Write the code into the empty folder `tree`; `scratch` is an empty folder beside it.

        Raises what `GitClient` and `WandbJobs` raise."""
        files = await self.jobs.artifact(ArtifactRef(id=job.artifact), "job")
        budget = Budget(self.limits, code=TOO_LARGE_CODE)
        added, parts = scratch / "job", scratch / "parts"
        for folder in (added, parts):
            folder.mkdir()
        await self.jobs.write(files, added, scratch=parts, budget=budget, only=(PATCH, FROZEN))
        if job.code is None:
            fetched = await self._from_git(source, scratch, tree, added)
        else:
            fetched = await self._from_artifact(source, job.code, budget, parts=parts, tree=tree, added=added)
        extra = await run_to_end(partial(_digest, added, [PATCH, FROZEN]))
        return replace(
            fetched, content_id=f"{fetched.content_id}+{extra}", origin=f"{fetched.origin} for job {job.name}"
        )

    async def _from_git(self, source: CodeSource, scratch: Path, tree: Path, added: Path) -> Checkout:
        remote = parse_remote(source.uri)
        repository = scratch / "git"
        repository.mkdir()
        commit = await self.git.fetch(
            remote, source.version, scratch=repository, tree=tree, limits=self.limits
        )
        warnings = await run_to_end(partial(_without_binaries, added / PATCH))
        if await run_to_end((added / PATCH).exists):
            await self.git.apply(added / PATCH, tree, limits=self.limits)
        await run_to_end(partial(_copy_frozen, added, tree))
        return Checkout(tree, f"git:{commit}", remote.origin, commit, warnings)

    async def _from_artifact(
        self, source: CodeSource, ref: ArtifactRef, budget: Budget, *, parts: Path, tree: Path, added: Path
    ) -> Checkout:
        pinned = ArtifactRef(id=source.version) if source.version else ref
        code: FoundArtifact = await self.jobs.artifact(pinned, "code")
        # First: a list that stands in the code itself wins.
        await run_to_end(partial(_copy_frozen, added, tree))
        await self.jobs.write(code, tree, scratch=parts, budget=budget)
        return Checkout(tree, f"artifact:{code.digest}", f"wandb-artifact://{code.name}", code.id)


def _copy_frozen(added: Path, tree: Path) -> None:
    frozen, target = added / FROZEN, tree / FROZEN
    if frozen.exists() and frozen.stat().st_size:
        target.unlink(missing_ok=True)  # a link of the repository would lead elsewhere
        target.write_bytes(frozen.read_bytes())
        target.chmod(0o644)


def _without_binaries(patch: Path) -> tuple[str, ...]:
    """Take out what the patch only names: git tells that a binary file differs, not how. What is then empty goes."""
    if not patch.exists():
        return ()
    head, *sections = _SECTION.split(patch.read_bytes())
    kept = [section for section in sections if not _BINARY.search(section)]
    if not kept and not _NOTES.sub(b"", head).strip():
        patch.unlink()
    elif len(kept) < len(sections):
        patch.write_bytes(head + b"".join(kept))
    left = len(sections) - len(kept)
    text = (
        f"{PATCH} of the job names {left} changed binary file(s) without their content: the commit's are used"
    )
    return (text,) if left else ()


def _digest(folder: Path, names: Sequence[str]) -> str:
    """Of the job's own files: with another patch, or other requirements, it is another image."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        content = path.read_bytes() if path.exists() else b""
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"sha256:{digest.hexdigest()}"
