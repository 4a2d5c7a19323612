"""The container's environment: the table of W&B's agent, and what a message may not replace."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.launch.inputs.files import FileOverrides
from wandb.sdk.wandb_init import _handle_launch_config
from wandb.sdk.wandb_settings import Settings

from tests.unit.launches import BASE_URL, BUILT, IMAGE, launch_of, message, sagemaker_args
from worker.launch.environment import container_environment, joined_environment, overridden_names


def environment(image: str = IMAGE, **spec: Any) -> dict[str, str]:
    return container_environment(launch_of(message(**spec)), base_url=BASE_URL + "/", image=image)


def test_the_least_environment() -> None:
    launch = launch_of(message())
    assert container_environment(launch, base_url=BASE_URL + "/", image=IMAGE) == {
        "WANDB_BASE_URL": BASE_URL,
        "WANDB_PROJECT": "vision",
        "WANDB_ENTITY": "acme",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": launch.launch_id[:10],
        "LAUNCH_ID": launch.launch_id,
        "WANDB_DOCKER": IMAGE,
        "WANDB_LAUNCH_TRACE_ID": "item-1",
        "WANDB_CONFIG": "{}",
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_ARTIFACTS": "{}",
    }


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ({"name": "smoke"}, "WANDB_NAME", "smoke"),
        ({"name": ""}, "WANDB_NAME", None),
        ({"author": "jdoe"}, "WANDB_USERNAME", "jdoe"),
        ({"author": "jdoe", "_wandb_api_key": "k"}, "WANDB_USERNAME", None),
        ({"sweep_id": "s1"}, "WANDB_SWEEP_ID", "s1"),
        ({"_resume_count": 1}, "WANDB_RESUME", "allow"),
        ({"_resume_count": 0}, "WANDB_RESUME", None),
        ({"_wandb_api_key": "k"}, "WANDB_API_KEY", None),
        ({"overrides": {"run_config": {"lr": 1e-3}}}, "WANDB_CONFIG", '{"lr": 0.001}'),
        (
            {"overrides": {"files": {"a.yaml": {"x": 1}}}},
            "WANDB_LAUNCH_FILE_OVERRIDES",
            '{"a.yaml": {"x": 1}}',
        ),
        ({"job": "acme/vision/j:v1"}, "WANDB_ARTIFACTS", '{"_wandb_job": "acme/vision/j:v1"}'),
        (
            {"job": "acme/vision/j:v1", "overrides": {"artifacts": {"d": {"id": "x"}}}},
            "WANDB_ARTIFACTS",
            '{"_wandb_job": "acme/vision/j:v1", "d": {"id": "x"}}',
        ),
    ],
)
def test_each_row_of_the_table(spec: dict[str, Any], name: str, value: str | None) -> None:
    assert environment(**spec).get(name) == value


def test_queue_and_its_entity() -> None:
    launch = launch_of({**message(), "queue": "gpu", "entity": "queues"})
    found = container_environment(launch, base_url=BASE_URL, image=IMAGE)
    assert found["WANDB_LAUNCH_QUEUE_NAME"] == "gpu"
    assert found["WANDB_LAUNCH_QUEUE_ENTITY"] == "queues"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({}, True),
        ({"docker": {}, "image_uri": IMAGE}, True),
        ({"docker": {}, "job": "a/b/c:v1"}, True),
        ({"docker": {}, "uri": "s3://bucket/code.zip"}, False),
        (
            {"resource_args": {"sagemaker": sagemaker_args(AlgorithmSpecification={"TrainingImage": IMAGE})}},
            False,
        ),
        (
            {"resource_args": {"sagemaker": sagemaker_args(AlgorithmSpecification={"AlgorithmName": "n"})}},
            False,
        ),
    ],
)
def test_wandb_docker_is_for_docker_launches_and_image_jobs(spec: dict[str, Any], named: bool) -> None:
    assert environment(BUILT, **spec).get("WANDB_DOCKER") == (BUILT if named else None)


@pytest.mark.parametrize(
    ("length", "names"),
    [
        (512, ["WANDB_CONFIG"]),
        (513, ["WANDB_CONFIG_0", "WANDB_CONFIG_1"]),
        (1024, ["WANDB_CONFIG_0", "WANDB_CONFIG_1"]),
        (1025, ["WANDB_CONFIG_0", "WANDB_CONFIG_1", "WANDB_CONFIG_2"]),
    ],
)
def test_config_is_cut_at_512_characters_exactly(length: int, names: list[str]) -> None:
    config = {"k": "v" * (length - len('{"k": ""}'))}
    assert len(json.dumps(config)) == length
    found = environment(overrides={"run_config": config})
    chunks = [found[name] for name in names]
    assert [name for name in found if name.startswith("WANDB_CONFIG")] == names
    assert all(len(chunk) == 512 for chunk in chunks[:-1])
    assert json.loads("".join(chunks)) == config


@given(st.dictionaries(st.text(), st.text(max_size=300), max_size=20))
def test_chunks_joined_are_the_files(files: dict[str, str]) -> None:
    """Joined in the order of their numbers, as wandb/sdk/launch/inputs/files.py reads them."""
    found = environment(overrides={"files": files})
    prefix = "WANDB_LAUNCH_FILE_OVERRIDES"
    numbered = [found[f"{prefix}_{i}"] for i in range(len(found)) if f"{prefix}_{i}" in found]
    assert json.loads("".join(numbered) or found[prefix]) == files
    assert all(len(found[name]) <= 512 for name in found if name.startswith(prefix))


COMPUTED = {"WANDB_PROJECT": "vision", "WANDB_NAME": "smoke", "LAUNCH_ID": "x"}


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("WANDB_PROJECT", "other", True),
        ("WANDB_PROJECT", "vision", False),
        ("WANDB_NAME", "other", False),
        ("WANDB_USERNAME", "jdoe", False),
        ("WANDB_API_KEY", "k", True),
        ("WANDB_BASE_URL", "https://x", True),
        ("WANDB_ENTITY", "x", True),
        ("WANDB_RUN_ID", "x", True),
        ("WANDB_CONFIG", "{}", True),
        ("WANDB_CONFIG_7", "{}", True),
        ("WANDB_CONFIG_DIR", "/opt", False),
        ("WANDB_LAUNCH", "False", True),
        ("WANDB_LAUNCH_TRACE_ID", "x", True),
        ("LAUNCH_ID", "y", True),
        ("LAUNCH_ANYTHING", "y", True),
        ("WANDB_MODE", "offline", False),
        ("HF_HOME", "/opt/hf", False),
        ("MY_LAUNCH_ID", "y", False),
    ],
)
def test_reserved_names_q9(name: str, value: str, refused: bool) -> None:
    assert overridden_names({name: value}, COMPUTED) == ((name,) if refused else ())


@pytest.mark.parametrize("name", ["WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME"])
def test_a_message_may_choose_what_touches_nobody_else(name: str) -> None:
    assert joined_environment({name: "mine", "A": "1"}, {name: "ours", "B": "2"}) == {
        name: "mine",
        "A": "1",
        "B": "2",
    }


def test_what_both_set_is_the_worker_s() -> None:
    assert joined_environment({"WANDB_PROJECT": "x"}, COMPUTED) == COMPUTED


@pytest.mark.parametrize("length", [2, 512, 513, 2000, 40_000])
def test_wandb_s_sdk_reads_the_config_that_was_sent(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """The reader of `wandb.init` itself, on our variables."""
    config = {"k": "é" * (length // 6), "nested": {"lr": 0.1, "steps": [1, None, True]}}
    for name, value in environment(overrides={"run_config": config}).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    settings.update_from_env_vars(
        {name: value for name, value in environment().items() if name == "WANDB_LAUNCH"}
    )
    assert _handle_launch_config(settings) == config


@pytest.mark.parametrize("length", [2, 600, 40_000])
def test_wandb_s_sdk_reads_the_files_that_were_sent(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    files = {"conf/train.yaml": {"text": '"\n' * (length // 4)}}
    for name, value in environment(overrides={"files": files}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(FileOverrides, "_instance", None)
    assert FileOverrides().overrides == files  # type: ignore[no-untyped-call]
