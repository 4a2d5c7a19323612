"""What a W&B job is: its names, and its `wandb-job.json`. Pure.

Keys and meanings are those that wandb's SDK writes (wandb/sdk/internal/job_builder.py) and reads
(wandb/apis/public/jobs.py), version 0.31.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from worker.errors import BadMessage, Never, Problem
from worker.launch.strict_json import json_path, load_json, type_name

JOB_FILE = "wandb-job.json"
BAD_CODE = "LW-JOB-BAD"
NOTEBOOK_CODE = "LW-JOB-NOTEBOOK"

JobKind = Literal["image", "repo", "artifact"]

_KINDS = ("image", "repo", "artifact")
_SCHEME = "wandb-artifact://"
_ID = re.compile(r"[A-Za-z0-9+/=_-]{1,256}")
_PART = r"[^/:\x00-\x1f\x7f]+"
_NAME = re.compile(rf"{_PART}/{_PART}/{_PART}:[^/\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """One version of an artifact, by its id or by its name: exactly one of the two is set."""

    id: str = ""
    """W&B's storage id."""
    name: str = ""
    """`entity/project/name:alias`; the alias may be a version (`v3`)."""

    def __str__(self) -> str:
        return f"{_SCHEME}_id/{self.id}" if self.id else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job as its file describes it; absent text is empty."""

    kind: JobKind
    image: str = ""
    """Of an image job."""
    remote: str = ""
    commit: str = ""
    """Of a repo job: a commit, branch or tag."""
    code: ArtifactRef | None = None
    """Of an artifact job."""
    entry_point: tuple[str, ...] = ()
    dockerfile: str = ""
    build_context: str = ""
    base_image: str = ""
    python_version: str = ""


def parse_artifact_ref(text: str) -> ArtifactRef | None:
    """`wandb-artifact://_id/ID`, `wandb-artifact://entity/project/name:v` or `entity/project/name:alias`; None for
    anything else."""
    rest = text.removeprefix(_SCHEME)
    if rest != text and rest.startswith("_id/"):
        found = rest.removeprefix("_id/")
        return ArtifactRef(id=found) if _ID.fullmatch(found) else None
    return ArtifactRef(name=rest) if _NAME.fullmatch(rest) else None


def parse_job_spec(text: str) -> JobSpec:
    """Read `wandb-job.json`.

    Raises `BadMessage` (LW-JOB-BAD) with all that is wrong in it, `Never` (LW-JOB-NOTEBOOK)."""
    try:
        value = load_json(text, f"{JOB_FILE}: $")
    except BadMessage as error:
        raise BadMessage(error.problems, code=BAD_CODE) from None
    reader = _Reader()
    spec = _read(value, reader)
    if reader.problems or spec is None:
        raise BadMessage(tuple(reader.problems), code=BAD_CODE)
    if _is_notebook(value):
        raise Never(
            f"the job runs a notebook ({' '.join(spec.entry_point)}); convert it to a script"
            " (jupyter nbconvert --to script) and create the job from that",
            code=NOTEBOOK_CODE,
        )
    return spec


def _read(value: Any, reader: _Reader) -> JobSpec | None:
    if not isinstance(value, dict):
        reader.wrong(value, "an object")
        return None
    kind = value.get("source_type")
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        reader.problem("source_type", what=f"is {str(kind)[:100]!r}", remedy=f"this worker knows {known}")
    source = value.get("source")
    if not isinstance(source, dict):
        reader.wrong(source, "an object", "source")
        return None
    runtime = reader.text(value, "runtime")
    git = source.get("git") if kind == "repo" else {}
    if not isinstance(git, dict):
        reader.wrong(git, "an object", "source", "git")
        git = {}
    return JobSpec(
        kind=cast("JobKind", kind),
        image=reader.text(source, "source", "image", required=kind == "image"),
        remote=reader.text(git, "source", "git", "remote", required=kind == "repo"),
        commit=reader.text(git, "source", "git", "commit", required=kind == "repo"),
        code=_code(source, reader) if kind == "artifact" else None,
        entry_point=reader.words(source, "source", "entrypoint"),
        dockerfile=reader.text(source, "source", "dockerfile"),
        build_context=reader.text(source, "source", "build_context"),
        base_image=reader.text(source, "source", "base_image"),
        python_version=runtime,
    )


def _code(source: Mapping[str, Any], reader: _Reader) -> ArtifactRef | None:
    text = reader.text(source, "source", "artifact", required=True)
    found = parse_artifact_ref(text)
    if text and found is None:
        remedy = f"it should be {_SCHEME}_id/ID or {_SCHEME}entity/project/name:version"
        reader.problem("source", "artifact", what="does not name an artifact", remedy=remedy)
    return found


def _is_notebook(value: Mapping[str, Any]) -> bool:
    return bool(value["source"].get("notebook"))


class _Reader:
    """Takes values out of the file and keeps what is wrong with them. A null is as if it were not there."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def problem(self, *keys: str | int, what: str, remedy: str) -> None:
        self.problems.append(Problem(json_path(f"{JOB_FILE}: $", *keys), what, remedy))

    def wrong(self, value: object, wanted: str, *keys: str | int) -> None:
        what = "is missing" if value is None else f"should be {wanted}, not {type_name(value)}"
        self.problem(*keys, what=what, remedy="create the job again with `wandb job create`")

    def text(self, holder: Mapping[str, Any], *keys: str, required: bool = False) -> str:
        value = holder.get(keys[-1])
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            self.wrong(None if value == "" else value, "a string", *keys)
            return ""
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            self.problem(*keys, what="holds control characters", remedy="create the job again")
            return ""
        return value

    def words(self, holder: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
        value = holder.get(keys[-1])
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.wrong(value, "a list of strings", *keys)
            return ()
        return tuple(value)
