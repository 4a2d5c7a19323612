"""W&B's launch-config.yaml: what a file of its agent means here, and what is said about the rest."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.errors import SettingsError
from worker.launch_config import DEFAULT_PLACE, map_launch_config, read_launch_config
from worker.settings import load_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # W&B's, about how it configures pydantic
    from wandb.sdk.launch.agent.config import AgentConfig

URI = "123456789012.dkr.ecr.us-east-1.amazonaws.com/acme/train"
ARN = "arn:aws:ecr:us-east-1:123456789012:repository/acme/train"

CHINA = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/acme/train"

GUIDE = f"""\
max_jobs: -1
queues:
  - sagemaker
environment:
  type: aws
  region: us-east-1
registry:
  type: ecr
  uri: {ARN}
builder:
  type: docker
"""
"""The example of W&B's guide to SageMaker; it has the repository's ARN, which W&B's own agent cannot use."""

FULL = f"""\
entity: acme
queues: [vision, nlp]
max_jobs: 12
max_schedulers: 0
secure_mode: true
verbosity: 2
stopped_run_timeout: 30
environment: {{type: aws, region: eu-central-1}}
registry: {{type: ecr, uri: '{URI}'}}
builder: {{type: docker, destination: '{URI}-built', platform: linux/arm64}}
"""


def mapped(text: str) -> dict[str, str]:
    config = map_launch_config(yaml.safe_load(textwrap.dedent(text)))
    assert config.problems == ()
    return dict(config.variables)


def problems(text: str) -> list[str]:
    return list(map_launch_config(yaml.safe_load(textwrap.dedent(text))).problems)


def test_the_guides_example_works_unchanged() -> None:
    settings = load_settings(None, {}, beneath=mapped(GUIDE))
    assert settings.max_jobs == -1
    assert settings.wandb_queues == ("sagemaker",)
    assert (settings.aws_region, settings.registry, settings.builder) == ("us-east-1", URI, "docker")


def test_every_key_of_wandbs_agent() -> None:
    AgentConfig(**yaml.safe_load(FULL))  # the file is one that W&B's agent takes
    assert mapped(FULL) == {
        "LAUNCH_ENTITY": "acme",
        "LAUNCH_WANDB_QUEUES": "vision,nlp",
        "LAUNCH_MAX_JOBS": "12",
        "LAUNCH_SECURE_MODE": "true",
        "LAUNCH_LOG_LEVEL": "debug",
        "LAUNCH_STOPPED_RUN_TIMEOUT": "30",
        "AWS_REGION": "eu-central-1",
        "LAUNCH_REGISTRY": f"{URI}-built",
        "LAUNCH_BUILDER": "docker",
        "LAUNCH_PLATFORM": "linux/arm64",
    }
    settings = load_settings(None, {}, beneath=mapped(FULL))
    assert (settings.stopped_run_timeout, settings.secure_mode, settings.log_level) == (30.0, True, "debug")


def test_no_key_of_wandbs_agent_is_forgotten() -> None:
    """Each one is mapped, or named as one that means nothing here."""
    known = {name: (field.alias or name) for name, field in AgentConfig.model_fields.items()}
    config = map_launch_config(dict.fromkeys(known.values(), None))
    assert (config.variables, config.ignored, config.problems) == ({}, (), ())
    for key in known.values():
        value: Any = {"x": 1} if key in ("environment", "registry", "builder") else "1"
        told = map_launch_config({key: value})
        assert told.variables or told.ignored or told.problems, key
        assert key not in told.ignored, key


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        (f"uri: {URI}", URI),
        (f"uri: https://{URI}/", URI),
        (f"uri: {ARN}", URI),
        (f"repository: {ARN}", URI),
        (f"repository: {URI}", URI),
        ("{account_id: '123456789012', region: us-east-1, repo_name: acme/train}", URI),
        ("{account_id: 123456789012, region: us-east-1, repo_name: acme/train}", URI),
        ("{account_id: 123456789012, repository: acme/train}", CHINA),
        (
            "uri: arn:aws-cn:ecr:cn-north-1:123456789012:repository/acme/train",
            CHINA,
        ),
        ("uri: 123456789012.dkr-ecr.us-east-1.on.aws/train", "123456789012.dkr-ecr.us-east-1.on.aws/train"),
        ("uri: 127.0.0.1:5566/launch-dev", "127.0.0.1:5566/launch-dev"),
        ("{type: ecr}", None),
        ("", None),
    ],
)
def test_registries(registry: str, expected: str | None) -> None:
    block = registry if registry.startswith("{") else f"\n  {registry}"
    text = f"environment: {{region: cn-north-1}}\nregistry: {block}\n"
    assert mapped(text).get("LAUNCH_REGISTRY") == expected


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ("max_jobs: many", "max_jobs", "whole number from -1"),
        ("max_jobs: -2", "max_jobs", "is -2"),
        ("max_jobs: true", "max_jobs", "is True"),
        ("max_schedulers: x", "max_schedulers", "whole number"),
        ("stopped_run_timeout: -1", "stopped_run_timeout", "from 0"),
        ("verbosity: loud", "verbosity", "from 0"),
        ("secure_mode: perhaps", "secure_mode", "true or false"),
        ("entity: 5", "entity", "a number, not text"),
        ("queues: {a: 1}", "queues", "one name a line"),
        ("queues: [a, 5]", "queues", "one name a line"),
        ("queues: ['a,b']", "queues", "comma"),
        ("environment: aws", "environment", "not a mapping"),
        ("environment: {type: gcp, region: x}", "environment.type", "'gcp'"),
        ("environment: {type: local}", "environment.type", "write aws"),
        ("environment: {region: [x]}", "environment.region", "a list, not text"),
        ("registry: {type: acr, uri: acme.azurecr.io/x}", "registry.type", "write ecr"),
        ("registry: {uri: acme.azurecr.io/x}", "registry.uri", "not in ECR"),
        ("registry: {uri: us-docker.pkg.dev/p/r/i}", "registry.uri", "not in ECR"),
        (f"registry: {{uri: '{URI}:v1'}}", "registry.uri", "tag or digest"),
        ("registry: {uri: 123456789012.dkr.ecr.us-east-1.amazonaws.com}", "registry.uri", "does not name"),
        ("registry: {uri: 'arn:aws:s3:::bucket'}", "registry.uri", "not the ARN of an ECR repository"),
        ("registry: {uri: train}", "registry.uri", "does not name a repository"),
        ("registry: {account_id: 012345670123, region: r, repo_name: n}", "registry.account_id", "in quotes"),
        ("registry: {account_id: '1', region: r, repo_name: n}", "registry.account_id", "12 digits"),
        ("registry: {account_id: '123456789012', region: r}", "registry.repo_name", "is missing"),
        ("registry: {account_id: '123456789012', repo_name: r}", "registry.region", "is missing"),
        ("registry: {repo_name: r, region: x}", "registry.account_id", "is missing"),
        ("builder: {type: kaniko}", "builder.type", "docker daemon"),
        ("builder: {type: podman}", "builder.type", "docker or noop"),
        ("builder: {platform: windows}", "builder.platform", "linux/amd64, linux/arm64"),
        ("builder: {destination: 'gcr.io/p/i'}", "builder.destination", "not in ECR"),
        ("[1, 2]", "the file", "mapping of keys"),
        ("just text", "the file", "mapping of keys"),
    ],
)
def test_a_wrong_value_says_where_what_and_what_to_do(text: str, path: str, part: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{path}: ")
    assert part in problem
    assert "; " in problem


def test_noop_builds_nothing() -> None:
    assert mapped("builder: {type: noop}") == {"LAUNCH_BUILDER": "none"}


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        ("queue: old", "old"),
        ("queue: a\nqueues: [a, b]", "a,b"),
        ("queue: c\nqueues: [a]", "a,c"),
        ("", None),
    ],
)
def test_the_older_key_for_a_queue(text: str, queues: str | None) -> None:
    assert mapped(text or "{}").get("LAUNCH_WANDB_QUEUES") == queues


def test_what_means_nothing_here_is_named_and_no_error() -> None:
    config = map_launch_config(
        yaml.safe_load(
            """
            max_schedulers: 4
            runner: {type: sagemaker}
            environment: {type: aws, region: us-east-1, profile: ml}
            builder: {type: docker, build-context-store: 's3://x', kaniko-image: y}
            """
        )
    )
    assert config.problems == ()
    assert [key.split(" ")[0] for key in config.ignored] == [
        "runner",
        "environment.profile",
        "builder.build-context-store",
        "builder.kaniko-image",
        "max_schedulers",
    ]


def test_all_that_is_wrong_is_told_at_once_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("max_jobs: x\nbuilder: {type: kaniko}\nenvironment: {type: azure}\n")
    with pytest.raises(SettingsError) as raised:
        read_launch_config(file)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == ["max_jobs", "environment.type", "builder.type"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config: .*absent.yaml: No such file"):
        read_launch_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: 1\nb: [")
    with pytest.raises(SettingsError, match=r"broken.yaml, line \d: is not YAML"):
        read_launch_config(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_launch_config(broken)


def test_python_objects_are_not_made(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("entity: !!python/object/apply:os.system ['true']")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_launch_config(file)


def test_the_default_place_is_read_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_launch_config(None, default=True).path is None
    file = DEFAULT_PLACE.expanduser()
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert read_launch_config(None).path is None
    found = read_launch_config(None, default=True)
    assert (found.path, dict(found.variables)) == (file, {})
    file.write_text("max_jobs: 3")
    assert read_launch_config(None, default=True).variables == {"LAUNCH_MAX_JOBS": "3"}


def test_environment_and_env_file_win(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("LAUNCH_LOG_LEVEL=error\n")
    settings = load_settings(env_file, {"LAUNCH_MAX_JOBS": "3"}, beneath=mapped(FULL))
    assert (settings.max_jobs, settings.log_level, settings.entity) == (3, "error", "acme")


def test_variables_of_wandbs_agent_win_over_the_file_and_ours_over_them() -> None:
    theirs = {"WANDB_ENTITY": "theirs", "WANDB_LAUNCH_MAX_JOBS": "7"}
    settings = load_settings(None, theirs, beneath=mapped(FULL))
    assert (settings.entity, settings.max_jobs) == ("theirs", 7)
    settings = load_settings(None, {**theirs, "LAUNCH_ENTITY": "ours", "LAUNCH_MAX_JOBS": "8"})
    assert (settings.entity, settings.max_jobs) == ("ours", 8)
