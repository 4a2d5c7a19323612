"""`.env.example` is rendered from the settings: `python -m tests.unit.test_env_example > .env.example`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from worker.settings import Settings, load_settings, variable_name

FILE = Path(__file__).parents[2] / ".env.example"

HEADER = """\
Settings of launch-worker. Copy to `.env` and take the `#` away from what you change; each line shows the default.
Variables of the process win over `.env`. An empty value means the default. Durations are seconds, or 25s, 10m,
12h, 14d. Lists are comma separated."""

GROUPS: dict[str, tuple[str, ...]] = {
    "What has to be set": ("queue_url", "wandb_api_key"),
    "W&B and AWS": (
        "wandb_base_url",
        "wandb_mode",
        "wandb_dir",
        "wandb_api_key_source",
        "netrc",
        "wandb_identity_token_file",
        "container_api_key",
        "aws_region",
        "assume_role",
        "assume_role_external_id",
        "dlq_url",
    ),
    "Ledger, heartbeat and leases": (
        "ledger",
        "deployment",
        "heartbeat",
        "lease",
        "receive_wait",
        "shutdown_grace",
    ),
    "How much at once": ("slots", "max_builds", "max_jobs", "max_wait", "max_attempts", "start_timeout"),
    "Further attempts": ("retry", "retry_pause", "instance_types"),
    "Following jobs and their logs": (
        "log_target",
        "stopped_run_timeout",
        "companion_heartbeat",
        "companion_project",
        "alerts",
        "alert_after",
        "prices",
        "status_interval",
        "log_interval",
        "log_quiet",
        "log_drain_limit",
        "log_give_up",
        "init_grace",
    ),
    "Fetching code": (
        "git_credentials",
        "source_max_bytes",
        "source_max_files",
        "fetch_timeout",
        "work_dir",
    ),
    "Building images": (
        "builder",
        "registry",
        "create_repository",
        "base_image",
        "build_network",
        "build_timeout",
        "build_low_water",
        "platform",
    ),
    "Mirroring W&B launch queues into SQS": ("entity", "wandb_queues", "mirror_backlog", "mirror_interval"),
    "Who may do what (globs, for example arn:aws:iam::123456789012:role/train-*)": (
        "secure_mode",
        "lock_entrypoint",
        "allowed_roles",
        "allowed_images",
        "allowed_instance_types",
        "allowed_git_hosts",
        "allowed_regions",
        "allowed_subnets",
        "allowed_security_groups",
        "allowed_environment",
        "allowed_outputs",
        "max_instances",
        "max_runtime",
    ),
    "Upper bounds of AWS calls a second; the rates adapt below them when AWS throttles": (
        "rate_create_training_job",
        "rate_describe_training_job",
        "rate_list_training_jobs",
        "rate_stop_training_job",
        "rate_filter_log_events",
        "rate_describe_log_streams",
    ),
    "For operators": ("http_host", "http_port", "log_level", "log_format", "crash_at"),
}

MACROS = """\
LAUNCH_MACRO_<NAME> gives messages the macro ${<NAME>}. Only these and W&B's fixed set are substituted, never
the rest of the environment. One line a macro:
#LAUNCH_MACRO_TEAM_BUCKET=acme-training"""

AWS_SDK = """\
Read by the AWS SDK itself, from the environment of the process: AWS_PROFILE, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_CONFIG_FILE, AWS_CA_BUNDLE and the endpoints of a local stack or of
VPC endpoints. The one for CloudWatch Logs is AWS_ENDPOINT_URL_CLOUDWATCH_LOGS; AWS_ENDPOINT_URL_LOGS is ignored.
#AWS_ENDPOINT_URL_SQS=
#AWS_ENDPOINT_URL_SAGEMAKER=
#AWS_ENDPOINT_URL_CLOUDWATCH_LOGS=
#AWS_ENDPOINT_URL_ECR=
#AWS_ENDPOINT_URL_S3=
#AWS_ENDPOINT_URL_DYNAMODB=
#AWS_ENDPOINT_URL_STS="""


def shown_default(field_name: str) -> str:
    """The default as one would write it; empty where there is none, or where it depends on the machine."""
    field = Settings.model_fields[field_name]
    value = field.default
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value and value % 60 == 0:
        return f"{value / 3600:g}h" if value % 3600 == 0 else f"{value / 60:g}m"
    if isinstance(value, float):
        return f"{value:g}s" if value else "0"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def meaning(field_name: str) -> str:
    """The description, and the choices where there are only a few."""
    field = Settings.model_fields[field_name]
    choices = (
        f" One of: {', '.join(get_args(field.annotation))}."
        if get_origin(field.annotation) is Literal
        else ""
    )
    return f"{field.description}{choices}"


def render() -> str:
    """The whole text of `.env.example`."""
    parts = [_comment(HEADER)]
    for title, names in GROUPS.items():
        lines = [f"# --- {title}"]
        for name in names:
            lines += _wrap(meaning(name))
            lines.append(f"#{variable_name(name)}={shown_default(name)}")
        parts.append("\n".join(lines))
    parts += [f"# --- Macros\n{_comment(MACROS)}", f"# --- AWS SDK\n{_comment(AWS_SDK)}"]
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return "\n".join(line if line.startswith("#") else f"# {line}" for line in text.splitlines())


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def assignments(text: str) -> dict[str, str]:
    """`#NAME=value` lines, as if their `#` were taken away."""
    return dict(re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


def test_every_setting_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(Settings.model_fields) - {"macros"})


def test_the_file_is_up_to_date() -> None:
    assert FILE.read_text() == render(), "run: python -m tests.unit.test_env_example > .env.example"


def test_the_file_names_every_variable_and_no_unknown_one() -> None:
    known = {variable_name(name) for name in Settings.model_fields if name != "macros"}
    names = set(assignments(FILE.read_text()))
    assert known <= names
    unknown = names - known
    assert all(name.startswith(("LAUNCH_MACRO_", "AWS_ENDPOINT_URL_")) for name in unknown), unknown
    assert "AWS_ENDPOINT_URL_LOGS" not in unknown


def test_the_shown_defaults_are_the_defaults(tmp_path: Path) -> None:
    given = {k: v for k, v in assignments(FILE.read_text()).items() if not k.startswith("LAUNCH_MACRO_")}
    copy = tmp_path / ".env"
    copy.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    assert load_settings(copy, environ={}) == load_settings(None, environ={})


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        if name != "macros":
            assert len(field.description or "") > 10, name


def test_the_file_holds_no_secret() -> None:
    secrets = [name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None]
    assert secrets == ["git_credentials", "wandb_api_key"]
    given = assignments(FILE.read_text())
    assert [given[variable_name(name)] for name in secrets] == ["", ""]


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201
