"""Settings: how values are read, what a wrong one says, and that secrets stay out of sight."""

from __future__ import annotations

import json
from pathlib import Path

import botocore
import pytest

from worker.errors import SettingsError
from worker.images.reference import parse_ecr_host
from worker.settings import (
    Settings,
    load_settings,
    parse_duration,
    partition_of,
    repository_uri,
    split_list,
    variable_name,
)


def read(**environ: str) -> Settings:
    return load_settings(None, environ)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25", 25.0),
        ("25s", 25.0),
        ("10m", 600.0),
        ("12h", 43200.0),
        ("14d", 1209600.0),
        ("1.5m", 90.0),
        ("0", 0.0),
        (" 5 s ", 5.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert read(LAUNCH_MAX_WAIT=text).max_wait == seconds


@pytest.mark.parametrize("text", ["soon", "5 minutes", "-5s", "1h30m", "s", "5S", "1e3s"])
def test_what_is_not_a_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^LAUNCH_MAX_WAIT: "):
        read(LAUNCH_MAX_WAIT=text)


def test_a_wrong_duration_is_told_how_one_is_written() -> None:
    with pytest.raises(SettingsError) as raised:
        read(LAUNCH_HEARTBEAT="10x")
    told = "LAUNCH_HEARTBEAT: is no duration; write seconds, or 25s, 10m, 12h, 14d (got '10x')"
    assert str(raised.value) == told


def test_numbers_pass_through_the_duration_parser() -> None:
    assert parse_duration(2.5) == 2.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ml.m5.*", ("ml.m5.*",)),
        ("a, b,c", ("a", "b", "c")),
        (",a,,b, ", ("a", "b")),
        (" , ", ()),
    ],
)
def test_lists(text: str, parts: tuple[str, ...]) -> None:
    assert split_list(text) == parts
    assert read(LAUNCH_ALLOWED_INSTANCE_TYPES=text).allowed_instance_types == parts


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("LAUNCH_SLOTS", "0", "'0'"),
        ("LAUNCH_SLOTS", "many", "'many'"),
        ("LAUNCH_MAX_JOBS", "-2", "'-2'"),
        ("LAUNCH_HTTP_PORT", "65536", "'65536'"),
        ("LAUNCH_BUILDER", "kaniko", "'kaniko'"),
        ("LAUNCH_LOG_TARGET", "stdout", "'stdout'"),
        ("LAUNCH_LEASE", "13h", "46800.0"),
        ("LAUNCH_HEARTBEAT", "0s", "0.0"),
        ("LAUNCH_RATE_FILTER_LOG_EVENTS", "0", "'0'"),
        ("LAUNCH_SECURE_MODE", "perhaps", "'perhaps'"),
        ("LAUNCH_DEPLOYMENT", "two words", "'two words'"),
    ],
)
def test_a_wrong_value_names_variable_and_value(variable: str, value: str, shown: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(**{variable: value})
    assert str(raised.value).startswith(f"{variable}: ")
    assert str(raised.value).endswith(f"(got {shown})")


def test_all_wrong_values_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        read(LAUNCH_SLOTS="0", LAUNCH_BUILDER="kaniko", LAUNCH_MAX_WAIT="soon")
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["LAUNCH_BUILDER", "LAUNCH_SLOTS", "LAUNCH_MAX_WAIT"]


def test_an_empty_value_means_the_default() -> None:
    names = [variable_name(name) for name in Settings.model_fields if name != "macros"]
    assert read(**dict.fromkeys(names, "")) == read()


def test_wandb_and_aws_keep_their_own_names() -> None:
    settings = read(
        WANDB_BASE_URL="http://127.0.0.1:8566", AWS_REGION="eu-west-1", LAUNCH_AWS_REGION="ignored"
    )
    assert settings.wandb_base_url == "http://127.0.0.1:8566"
    assert settings.aws_region == "eu-west-1"


def test_macros_are_the_variables_with_their_prefix() -> None:
    settings = read(
        LAUNCH_MACRO_TEAM="vision", LAUNCH_MACRO_data_bucket="b", AWS_SECRET_ACCESS_KEY="s", HOME="/"
    )
    assert settings.macros == {"TEAM": "vision", "data_bucket": "b"}


def test_process_environment_wins_over_the_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("LAUNCH_SLOTS=3\nLAUNCH_MAX_BUILDS=2\nLAUNCH_MACRO_A=file\n# LAUNCH_SLOTS=9\n")
    settings = load_settings(env_file, {"LAUNCH_SLOTS": "7", "LAUNCH_MACRO_A": "process"})
    assert (settings.slots, settings.max_builds) == (7, 2)
    assert settings.macros == {"A": "process"}


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "absent", {"LAUNCH_SLOTS": "7"}).slots == 7


def test_unknown_variables_are_left_alone() -> None:
    assert read(LAUNCH_OF_SOMETHING_ELSE="1", PATH="/bin") == read()


def test_secrets_do_not_show() -> None:
    settings = read(WANDB_API_KEY="0123456789abcdef")
    assert (
        "0123456789abcdef"
        not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    )
    assert settings.wandb_api_key is not None
    assert settings.wandb_api_key.get_secret_value() == "0123456789abcdef"


def test_settings_cannot_be_changed() -> None:
    settings = read()
    with pytest.raises(ValueError, match="frozen"):
        settings.slots = 1  # type: ignore[misc]


def test_a_registry_may_be_given_as_its_arn() -> None:
    uri = "123456789012.dkr.ecr.us-east-1.amazonaws.com/acme/train"
    arn = "arn:aws:ecr:us-east-1:123456789012:repository/acme/train"
    assert [read(LAUNCH_REGISTRY=given).registry for given in (arn, uri, f"https://{uri}/")] == [uri] * 3
    china = read(LAUNCH_REGISTRY="arn:aws-cn:ecr:cn-north-1:123456789012:repository/t").registry
    assert china == "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/t"


@pytest.mark.parametrize(
    "given",
    [
        "123456789012.dkr-ecr.us-east-1.on.aws/train",
        "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com/acme/train",
        "127.0.0.1:5566/launch-dev",
        "[::1]:5566/launch-dev",
        "localhost/launch-dev",
        "000000000000.dkr.ecr.us-east-1.localhost.localstack.cloud:4566/launch-dev",
    ],
)
def test_registries_that_are_ecr_or_of_a_local_stack(given: str) -> None:
    assert read(LAUNCH_REGISTRY=given).registry == given


@pytest.mark.parametrize(
    "given",
    [
        "foo",
        "acme/train",
        "ghcr.io/acme/train",
        "docker.io/acme/train",
        "public.ecr.aws/acme/train",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "127.0.0.1:5566",
        "arn:aws:ecr:us-east-1:123456789012:train",
        "arn:aws:s3:::bucket/train",
    ],
)
def test_a_registry_that_sagemaker_cannot_pull_from_is_refused(given: str) -> None:
    with pytest.raises(
        SettingsError, match=r"^LAUNCH_REGISTRY: is no ECR repository; write ACCOUNT\.dkr\.ecr"
    ):
        read(LAUNCH_REGISTRY=given)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LAUNCH_ASSUME_ROLE", "my-role"),
        ("LAUNCH_ASSUME_ROLE", "arn:aws:iam::123:role/x"),
        ("LAUNCH_MAX_RUNTIME", "0"),
        ("LAUNCH_MAX_INSTANCES", "0"),
        ("LAUNCH_CONTAINER_API_KEY", "file"),
        ("LAUNCH_WANDB_API_KEY_SOURCE", "vault:x"),
        ("LAUNCH_WANDB_API_KEY_SOURCE", "secretsmanager:"),
        ("LAUNCH_WANDB_API_KEY_SOURCE", "arn:aws:s3:::bucket"),
    ],
)
def test_wrong_roles_amounts_and_sources(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: "):
        read(**{variable: value})


def test_a_key_that_was_put_in_the_place_of_its_source_is_not_quoted() -> None:
    with pytest.raises(SettingsError) as raised:
        read(LAUNCH_WANDB_API_KEY_SOURCE="0123456789abcdef" * 2)
    assert "0123456789abcdef" not in str(raised.value)


def test_amounts_of_the_policy() -> None:
    assert (read().max_instances, read().max_runtime) == (None, None)
    settings = read(LAUNCH_MAX_INSTANCES="4", LAUNCH_MAX_RUNTIME="12h")
    assert (settings.max_instances, settings.max_runtime) == (4, 43200.0)


def test_partitions_and_ecr_domains_are_those_of_botocore() -> None:
    known = json.loads((Path(botocore.__file__).parent / "data" / "partitions.json").read_text())
    for partition in known["partitions"]:
        for region in partition["regions"]:
            if not region.startswith("aws-"):  # aws-cn-global is none
                assert partition_of(region) == partition["id"], region
                host = repository_uri("123456789012", region, "x").partition("/")[0]
                assert host == f"123456789012.dkr.ecr.{region}.{partition['outputs']['dnsSuffix']}"
                assert parse_ecr_host(host) is not None, host
