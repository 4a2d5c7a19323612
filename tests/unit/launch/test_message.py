"""Messages: what is accepted, what each field means, and that nothing but BadMessage ever comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example as also
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.unit.launches import EXAMPLES, IMAGE, SAGEMAKER, launch_of, message, paths, sagemaker_args
from worker.errors import BadMessage, Problem
from worker.launch.message import (
    AlgorithmSource,
    CodeSource,
    ImageSource,
    JobSource,
    SchedulerSource,
    Source,
    interpret,
    parse_message,
)
from worker.launch.record import RunRef

JOB = "acme/vision/train:v3"
SCHEDULER = "placeholder-uri-scheduler"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9
)


def bad(body: str) -> list[Problem]:
    with pytest.raises(BadMessage) as caught:
        parse_message(body)
    return list(caught.value.problems)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!w]*.json")), ids=lambda path: path.stem)
def test_every_example_is_a_launch(path: Any) -> None:
    launch = launch_of(path.read_text())
    assert launch.run.entity == "acme"
    assert launch.sagemaker["RoleArn"] == "arn:aws:iam::123456789012:role/sm-exec"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("artifact_job", JobSource("acme/tabular/job-source-tabular-train.py:v7", "docker/Dockerfile.gpu")),
        (
            "direct_git_source",
            CodeSource("https://git.example.com/acme/nlp.git", "v1.4.0", "docker/Dockerfile.train"),
        ),
        ("direct_s3_source", CodeSource("s3://launch-dev/src/train.tar.gz")),
        ("direct_image_no_wandb", ImageSource("123456789012.dkr.ecr.us-east-1.amazonaws.com/xgb:7")),
    ],
)
def test_sources_of_examples(name: str, source: Source) -> None:
    assert launch_of((EXAMPLES / f"{name}.json").read_text()).source == source


def test_all_fields_of_a_launch() -> None:
    body = message(
        project="Vision",
        run_id="ab12cd34",
        name="smoke",
        author="jdoe",
        sweep_id="k3v9x2ab",
        job=JOB,
        overrides={
            "args": ["--epochs", "1"],
            "entry_point": ["python", "t.py"],
            "run_config": {"lr": 0.1},
            "artifacts": {"d": {}},
            "files": {"f": 1},
        },
        _resume_count=2,
        _wandb_api_key="k" * 40,
    )
    envelope = {"queue": "gpu", "entity": "queues", "agentRun": "agent-1", "options": {"log_target": "files"}}
    launch = launch_of({**body, **envelope})
    assert launch.run == RunRef("acme", "vision", "ab12cd34")
    assert (launch.item_id, launch.name, launch.author, launch.job) == ("item-1", "smoke", "jdoe", JOB)
    assert (launch.queue, launch.queue_entity, launch.agent_run) == ("gpu", "queues", "agent-1")
    assert (launch.sweep_id, launch.resume_count, launch.log_target) == ("k3v9x2ab", 2, "files")
    assert (launch.entry_point, launch.args) == (("python", "t.py"), ("--epochs", "1"))
    assert (launch.run_config, launch.artifacts, launch.files) == ({"lr": 0.1}, {"d": {}}, {"f": 1})
    assert launch.api_key == SecretStr("k" * 40)
    assert "k" * 40 not in repr(launch)


def test_defaults_of_a_launch() -> None:
    launch = launch_of(message())
    assert launch.run.run_id == launch.launch_id[:10]
    assert launch.log_target == "companion"
    assert (launch.api_key, launch.entry_point, launch.sweep_id) == (None, (), "")


def test_run_spec_may_be_text() -> None:
    body = message()
    assert launch_of({**body, "runSpec": json.dumps(body["runSpec"])}) == launch_of(body)


@pytest.mark.parametrize(
    "name", ["git", "overrides", "name", "author", "sweep_id", "run_id", "_resume_count"]
)
def test_null_is_absence_q8(name: str) -> None:
    assert launch_of(message(**{name: None})) == launch_of(message())


@pytest.mark.parametrize("empty", [{}, "", None])
def test_no_sweep_and_no_run_id_may_be_empty(empty: object) -> None:
    assert launch_of(message(sweep_id=empty, run_id=empty)) == launch_of(message())


@pytest.mark.parametrize("value", [None, 5, "text", [1], {"a": 1}, False])
def test_keys_that_mean_nothing_on_sagemaker_may_hold_anything(value: object) -> None:
    """As with W&B's agent, which reads them for other resources, or not at all."""
    spec = message()["runSpec"]
    arguments = {**spec["resource_args"], "kubernetes": value, "local-container": value}
    body = message(
        docker={**spec["docker"], "user_id": value},
        git={"repo": value, "version": value},
        overrides={"working_dir": value},
        resource_args=arguments,
        python_version=value,
        builder=value,
        registry=value,
        queue_entity=value,
        template_variables=value,
    )
    assert replace(launch_of(body), python_version="") == launch_of(message())


@pytest.mark.parametrize("path", ["docker", "git", "overrides", "builder", "accelerator"])
def test_null_where_an_object_is_meant_is_absence(path: str) -> None:
    arguments = {**sagemaker_args(), "builder": {"accelerator": None, "cuda": None, "base_image": None}}
    if path == "builder":
        arguments["builder"] = None
    spec = {} if path in ("builder", "accelerator", "docker") else {path: None}
    launch = launch_of(message(arguments, **spec))
    assert launch.builder == launch_of(message()).builder


@pytest.mark.parametrize(
    ("builder", "accelerator", "base"),
    [
        ({"accelerator": {"base_image": "nvidia/cuda:12.4.1"}}, "nvidia/cuda:12.4.1", ""),
        ({"cuda": {"base_image": "nvidia/cuda:11"}}, "nvidia/cuda:11", ""),
        ({"accelerator": {"base_image": "a:1"}, "cuda": {"base_image": "b:1"}}, "a:1", ""),
        ({"base_image": "python:3.12"}, "", "python:3.12"),
        ({"accelerator": {"base_image": ""}}, "", ""),
    ],
)
def test_base_images(builder: dict[str, Any], accelerator: str, base: str) -> None:
    launch = launch_of(message({**sagemaker_args(), "builder": builder}))
    assert (launch.builder.accelerator, launch.builder.base_image) == (accelerator, base)


@pytest.mark.parametrize(
    ("spec", "option", "priority"),
    [
        (None, None, 2),
        (0, None, 0),
        ("critical", None, 0),
        ("High", None, 1),
        ("low", None, 3),
        (3, 1, 1),
        (None, "critical", 0),
        ("urgent", None, 2),
        (True, None, 2),
        (9, "low", 3),
    ],
)
def test_priorities(spec: object, option: object, priority: int) -> None:
    body = {**message(priority=spec), "options": {"priority": option}}
    assert launch_of(body).priority == priority


@pytest.mark.parametrize("priority", [4, -1, "urgent", True, 1.5, [1]])
def test_a_priority_of_our_own_envelope_has_to_be_one(priority: object) -> None:
    body = {**message(), "options": {"priority": priority}}
    (problem,) = bad(json.dumps(body))
    assert problem.path == "$.options.priority"
    assert "critical" in problem.what


@pytest.mark.parametrize(
    ("envelope", "told"),
    [
        (
            {"options": {"log_taget": "off"}},
            "$.options.log_taget: is no option of this worker; did you mean log_target?",
        ),
        (
            {"options": {"retries": 3}},
            "$.options.retries: is no option of this worker; use one of log_target, priority, retry, instance_types",
        ),
        ({"launch_id": "x"}, "$.launch_id: is no key of a launch message; did you mean launchId?"),
        ({"future": 1}, ""),
    ],
)
def test_what_looks_like_a_slip_in_our_envelope_is_told_and_not_refused(
    envelope: dict[str, Any], told: str
) -> None:
    launch = launch_of({**message(), **envelope})
    assert "".join(map(str, launch.warnings)) == told


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"python_version": 3.1}, "$.runSpec.python_version"),
        ({"git": {"version": 7}}, "$.runSpec.git.version"),
        ({"git": {"version": "v1\n--upload-pack=x"}}, "$.runSpec.git.version"),
    ],
)
def test_what_matters_for_code_only_is_checked_there(spec: dict[str, Any], path: str) -> None:
    launch_of(message(**spec))
    with pytest.raises(BadMessage) as caught:
        launch_of(message(docker={}, uri="s3://b/k.zip", **spec))
    assert paths(caught.value) == [path]


@pytest.mark.parametrize(
    ("count", "resumes"), [(0, 0), (2, 2), (1.0, 1), (0.5, 1), (10**400, 10**400), (-1, -1)]
)
def test_resume_counts(count: float, resumes: int) -> None:
    assert launch_of(message(_resume_count=count)).resume_count == resumes


@pytest.mark.parametrize(
    "spec", [{"job": JOB}, {"overrides": {"entry_point": ["wandb", "scheduler", "x"]}}, {}]
)
@pytest.mark.parametrize("resource", ["local-process", "sagemaker", None])
def test_every_form_of_a_sweep_scheduler(spec: dict[str, Any], resource: str | None) -> None:
    body = message(uri=SCHEDULER, resource=resource, resource_args=None, docker={}, **spec)
    assert launch_of(body).source == SchedulerSource()


def test_unknown_keys_are_ignored() -> None:
    body = message(template_variables={"x": 1}, priority=2, future=1)
    assert launch_of({**body, "future": True}) == launch_of(message())


USER_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/user:2"
AT_TRAINING_IMAGE = f"{SAGEMAKER}.AlgorithmSpecification.TrainingImage"


@pytest.mark.parametrize(
    ("spec", "algorithm", "source"),
    [
        ({}, None, ImageSource(IMAGE)),
        ({"image_uri": "x"}, None, ImageSource(IMAGE)),
        ({"docker": {}, "image_uri": "x"}, None, ImageSource("x", "$.runSpec.image_uri")),
        ({"job": JOB}, None, ImageSource(IMAGE)),
        ({"docker": None, "job": JOB}, None, JobSource(JOB)),
        ({"docker": {}, "job": "wandb-artifact://_id/QQ=="}, None, JobSource("wandb-artifact://_id/QQ==")),
        ({"docker": {}, "uri": "s3://b/k.zip", "job": JOB}, None, JobSource(JOB)),
        ({"uri": SCHEDULER, "job": JOB}, None, SchedulerSource()),
        ({}, {"TrainingImage": USER_IMAGE}, ImageSource(USER_IMAGE, AT_TRAINING_IMAGE)),
        (
            {"docker": {}, "job": JOB},
            {"TrainingImage": USER_IMAGE},
            ImageSource(USER_IMAGE, AT_TRAINING_IMAGE),
        ),
        ({}, {"TrainingImage": "${image_uri}"}, ImageSource(IMAGE)),
        ({"docker": {}, "job": JOB}, {"TrainingImage": "${image_uri}"}, JobSource(JOB)),
        ({"docker": {}}, {"AlgorithmName": "my-algorithm"}, AlgorithmSource("my-algorithm")),
        ({"job": JOB}, {"AlgorithmName": "my-algorithm"}, AlgorithmSource("my-algorithm")),
    ],
)
def test_source_precedence_q27(spec: dict[str, Any], algorithm: Any, source: Source) -> None:
    body = message(sagemaker_args(AlgorithmSpecification=algorithm), **spec)
    assert launch_of(body).source == source


def test_training_image_counts_in_snake_case_too_q7() -> None:
    body = message(sagemaker_args(algorithm_specification={"TrainingImage": USER_IMAGE}))
    assert launch_of(body).source == ImageSource(USER_IMAGE, AT_TRAINING_IMAGE)


def test_a_scheduler_needs_no_sagemaker_arguments() -> None:
    body = message(uri=SCHEDULER, resource="local-process", resource_args=None)
    assert launch_of(body).source == SchedulerSource()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"docker": {}}, "$.runSpec"),
        ({"docker": {}, "job": "train:v3"}, "$.runSpec.job"),
        ({"docker": {}, "job": "acme/vision/train"}, "$.runSpec.job"),
        ({"resource": "kubernetes"}, "$.runSpec.resource"),
        ({"resource_args": None}, SAGEMAKER),
        ({"resource_args": {"sagemaker": None}}, SAGEMAKER),
        ({"resource_args": {"kubernetes": {}}}, SAGEMAKER),
    ],
)
def test_nothing_that_could_run(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(BadMessage) as caught:
        launch_of(message(**spec))
    assert paths(caught.value) == [path]


def test_contradictions_are_reported_together() -> None:
    with pytest.raises(BadMessage) as caught:
        launch_of(message(docker={}, resource_args={}))
    assert paths(caught.value) == ["$.runSpec", SAGEMAKER]


@pytest.mark.parametrize(
    "run_id", [" ", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", "a b ", "a\nb", "x" * 129]
)
def test_run_ids_that_wandb_refuses(run_id: str) -> None:
    assert [problem.path for problem in bad(json.dumps(message(run_id=run_id)))] == ["$.runSpec.run_id"]


@pytest.mark.parametrize("project", ["", " ", "a/b", "a%b", "x" * 129, 5])
def test_projects_that_wandb_refuses(project: object) -> None:
    assert [problem.path for problem in bad(json.dumps(message(project=project)))] == ["$.runSpec.project"]


def test_an_entity_is_one_line() -> None:
    """Identities are joined by newlines: an entity with one could take another launch's identity."""
    assert [problem.path for problem in bad(json.dumps(message(entity="a\nb")))] == ["$.runSpec.entity"]


def test_all_problems_at_once_each_with_place_and_remedy() -> None:
    spec = {
        "entity": 5,
        "docker": "x",
        "run_id": " ",
        "overrides": {"args": ["a", 1], "run_config": [], "entry_point": "python t.py"},
        "_resume_count": True,
        "_wandb_api_key": ["hush"],
    }
    problems = bad(json.dumps({"runSpec": spec, "options": {"log_target": "x"}, "queue": {}}))
    assert {problem.path: problem.remedy for problem in problems} == {
        "$.runSpec.entity": "write it as a string",
        "$.runSpec.project": "add it",
        "$.runSpec.run_id": "give it a value",
        "$.runSpec.docker": "write it as an object",
        "$.runSpec.overrides.args[1]": "write it as a string",
        "$.runSpec.overrides.entry_point": "write it as a list of strings",
        "$.runSpec.overrides.run_config": "write it as an object",
        "$.runSpec._resume_count": "write it as a whole number",
        "$.runSpec._wandb_api_key": "write it as a string",
        "$.queue": "write it as a string",
        "$.options.log_target": "choose one of these",
    }
    assert not any("hush" in str(problem) or "\n" in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("body", "path", "what"),
    [
        ("", "$", "is not JSON"),
        ("not JSON", "$", "is not JSON"),
        ("[]", "$", "is a list"),
        ("null", "$", "is null"),
        ("3", "$", "is an integer"),
        ('"text"', "$", "is a string"),
        ("{}", "$.runSpec", "is missing"),
        ('{"runSpec": null}', "$.runSpec", "is missing"),
        ('{"runSpec": []}', "$.runSpec", "should be an object"),
        ('{"runSpec": "{]"}', "$.runSpec", "is not JSON"),
        ('{"runSpec": "[]"}', "$.runSpec", "should be an object"),
        ('{"runSpec": NaN}', "$", "NaN"),
        ('{"runSpec": -Infinity}', "$", "Infinity"),
        ('{"runSpec": 1e999}', "$", "too large"),
        ('{"runSpec": ' + "9" * 5000 + "}", "$", "number"),
        ("[" * 100_000, "$", "deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "$", "deep"),
        ('{"runSpec": {"name": "\\ud800"}}', "$.runSpec.name", "surrogate"),
        ('{"runSpec": {"x y": ["\\udfff"]}}', '$.runSpec["x y"][0]', "surrogate"),
        ('{"runSpec": {"\\ud800": 1}}', "$.runSpec", "surrogate"),
        ('{"runSpec": "{\\"name\\": \\"\\\\ud800\\"}"}', "$.runSpec.name", "surrogate"),
        ("\ud800", "$", "is not JSON"),
    ],
)
def test_what_is_no_message_at_all(body: str, path: str, what: str) -> None:
    (problem,) = bad(body)
    assert problem.path == path
    assert what in problem.what


def survives(body: str) -> bool:
    """Parsed, or refused with BadMessage; any other exception fails the test."""
    try:
        interpret(parse_message(body), launch_id="a" * 26, default_log_target="off")
    except BadMessage as error:
        assert error.problems
        return False
    return True


@given(st.text())
@also("\ufeff{}")
@also("{" + '"a":' * 3000)
def test_any_text_is_a_message_or_a_bad_message(body: str) -> None:
    assert not survives(body)


@given(JSON)
def test_any_json_is_a_message_or_a_bad_message(value: Any) -> None:
    assert not survives(json.dumps(value))


FIELDS = [*message()["runSpec"], "run_id", "overrides", "git", "uri", "image_uri", "job", "sweep_id", "name"]
SPECS = st.dictionaries(st.sampled_from(FIELDS), JSON)


@given(SPECS, st.booleans())
def test_any_run_spec_is_a_launch_or_a_bad_message(changes: dict[str, Any], as_text: bool) -> None:
    spec = {**message()["runSpec"], **changes}
    ok = survives(json.dumps({"runSpec": json.dumps(spec) if as_text else spec}))
    assert ok or changes
