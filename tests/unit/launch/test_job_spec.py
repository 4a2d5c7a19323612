"""W&B jobs as their file describes them, and the names of artifacts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import BadMessage, Never
from worker.launch.job_spec import ArtifactRef, JobSpec, parse_artifact_ref, parse_job_spec

TYPES = {"wb_type": "typedDict", "params": {"type_map": {}}}


def job(kind: str = "repo", source: dict[str, Any] | None = None, **changes: Any) -> str:
    """A job's file, as wandb's job builder writes it."""
    sources: dict[str, dict[str, Any]] = {
        "image": {"image": "host/train:3f2a"},
        "repo": {
            "git": {"remote": "https://git.example.com/acme/nlp.git", "commit": "9f1c0e2b"},
            "entrypoint": ["python", "train.py"],
            "notebook": False,
        },
        "artifact": {
            "artifact": "wandb-artifact://_id/QXJ0aWZhY3Q6NDU2",
            "entrypoint": ["python", "train.py"],
            "notebook": False,
            "build_context": "src/",
            "dockerfile": "Dockerfile",
        },
    }
    value = {
        "_version": "v0",
        "source_type": kind,
        "source": {**sources.get(kind, {}), **(source or {})},
        "input_types": TYPES,
        "output_types": TYPES,
        "runtime": "3.10",
        "services": {"foo": "always"},
    }
    return json.dumps({**value, **changes})


def test_the_three_kinds() -> None:
    command = ("python", "train.py")
    assert parse_job_spec(job("image")) == JobSpec(
        kind="image", image="host/train:3f2a", python_version="3.10"
    )
    assert parse_job_spec(job("repo")) == JobSpec(
        kind="repo",
        remote="https://git.example.com/acme/nlp.git",
        commit="9f1c0e2b",
        entry_point=command,
        python_version="3.10",
    )
    assert parse_job_spec(job("artifact", {"base_image": "pytorch/pytorch:2.3.0"})) == JobSpec(
        kind="artifact",
        code=ArtifactRef(id="QXJ0aWZhY3Q6NDU2"),
        entry_point=command,
        dockerfile="Dockerfile",
        build_context="src/",
        base_image="pytorch/pytorch:2.3.0",
        python_version="3.10",
    )


def test_what_may_be_missing_is_absent() -> None:
    source = {"entrypoint": None, "notebook": None, "dockerfile": None, "args": ["x"]}
    spec = parse_job_spec(job("repo", source, runtime=None, _version="0.17.0"))
    assert (spec.entry_point, spec.python_version, spec.dockerfile) == ((), "", "")
    assert parse_job_spec(job("image", {"entrypoint": ["a"]})).entry_point == ("a",)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("[]", ["$"]),
        ("{", ["$"]),
        (job("notebook"), ["$.source_type"]),
        (job("repo", source_type=None), ["$.source_type"]),
        (job(source_type=["repo"]), ["$.source_type"]),
        (json.dumps({"source_type": "repo"}), ["$.source"]),
        (job("image", {"image": ""}), ["$.source.image"]),
        (job("image", {"image": 7}), ["$.source.image"]),
        (job("repo", {"git": None}), ["$.source.git", "$.source.git.remote", "$.source.git.commit"]),
        (job("repo", {"git": {"remote": "a"}}), ["$.source.git.commit"]),
        (job("artifact", {"artifact": "s3://bucket/code"}), ["$.source.artifact"]),
        (job("artifact", {"artifact": None}), ["$.source.artifact"]),
        (
            job(
                "repo",
                {"entrypoint": "python train.py", "dockerfile": ["a"], "base_image": "a\nb"},
                runtime=3.1,
            ),
            ["$.runtime", "$.source.entrypoint", "$.source.dockerfile", "$.source.base_image"],
        ),
        (job("repo", {"entrypoint": ["python", 7]}), ["$.source.entrypoint"]),
    ],
)
def test_everything_that_is_wrong_is_told(text: str, paths: list[str]) -> None:
    with pytest.raises(BadMessage) as raised:
        parse_job_spec(text)
    assert raised.value.code == "LW-JOB-BAD"
    assert [problem.path for problem in raised.value.problems] == [
        f"wandb-job.json: {path}" for path in paths
    ]


def test_notebooks_are_refused_with_what_to_do() -> None:
    with pytest.raises(Never, match="convert it to a script") as raised:
        parse_job_spec(job("artifact", {"notebook": True, "entrypoint": ["python", "x.ipynb"]}))
    assert raised.value.code == "LW-JOB-NOTEBOOK"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["image", "repo", "artifact", "x"]),
    source=st.dictionaries(
        st.sampled_from(
            [
                "git",
                "image",
                "artifact",
                "entrypoint",
                "notebook",
                "dockerfile",
                "build_context",
                "base_image",
            ]
        ),
        JSON,
    ),
    whole=st.none() | JSON,
)
def test_whatever_is_in_it_is_a_job_or_a_reason(kind: str, source: dict[str, Any], whole: Any) -> None:
    text = job(kind, source) if whole is None else json.dumps(whole)
    try:
        assert parse_job_spec(text).kind == kind
    except Never as error:
        assert error.code in ("LW-JOB-BAD", "LW-JOB-NOTEBOOK")


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("acme/nlp/job-x:latest", ArtifactRef(name="acme/nlp/job-x:latest")),
        (
            "acme/nlp/job-https___h_a.git_train.py:v3",
            ArtifactRef(name="acme/nlp/job-https___h_a.git_train.py:v3"),
        ),
        ("wandb-artifact://acme/nlp/code:v0", ArtifactRef(name="acme/nlp/code:v0")),
        ("wandb-artifact://_id/QXJ0aWZhY3Q6NDU2", ArtifactRef(id="QXJ0aWZhY3Q6NDU2")),
        ("acme/nlp/job-x", None),
        ("nlp/job-x:v1", None),
        ("a/b/c/d:v1", None),
        ("a//c:v1", None),
        ("a/b/c:", None),
        ("_id/QXJ0", None),
        ("wandb-artifact://_id/", None),
        ("wandb-artifact://_id/a b", None),
        ("https://wandb.ai/acme/nlp/artifacts/job/x/v1", None),
        ("", None),
    ],
)
def test_names_of_artifacts(text: str, ref: ArtifactRef | None) -> None:
    assert parse_artifact_ref(text) == ref
    if ref and ref.id:
        assert str(ref) == text
