"""Every setting, read once by `cli`. Environment or `.env`, prefix `LAUNCH_`; AWS's and W&B's own names are kept.

No other module reads the environment. Durations are seconds, or text such as `25s`, `10m`, `12h`, `14d`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from worker.errors import SettingsError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_ECR_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):ecr:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):repository/(?P<name>.+)"
)
_REGISTRY = re.compile(
    r"(?:\d{12}\.dkr[.-]ecr(?:-fips)?\.[a-z0-9.-]+(?::443)?|localhost|(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5})/.+"
)
"""Hosts of private ECR registries, and what has a port, as a local stack and emulators of ECR have."""
# As in botocore's partitions.json.
_ECR_DOMAINS = {
    "aws-cn": "amazonaws.com.cn",
    "aws-eusc": "amazonaws.eu",
    "aws-iso": "c2s.ic.gov",
    "aws-iso-b": "sc2s.sgov.gov",
    "aws-iso-e": "cloud.adc-e.uk",
    "aws-iso-f": "csp.hci.ic.gov",
}
_PARTITIONS = {
    "cn-": "aws-cn",
    "us-gov-": "aws-us-gov",
    "eusc-": "aws-eusc",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "eu-isoe-": "aws-iso-e",
    "us-isof-": "aws-iso-f",
}
_WANDB_FALLBACKS = {"entity": "WANDB_ENTITY", "max_jobs": "WANDB_LAUNCH_MAX_JOBS"}
"""Variables of W&B's agent that are taken where ours is not set (wandb/sdk/launch/_launch.py)."""
PREFIX = "LAUNCH_"
MACRO_PREFIX = f"{PREFIX}MACRO_"
KEY_SOURCE = (
    r"^(environment|netrc|secretsmanager:[\w/+=.@:-]+(#.+)?|ssm:[\w/.:-]+"
    r"|arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+(#.+)?"
    r"|arn:aws[a-z-]*:ssm:[a-z0-9-]+:\d{12}:parameter/[\w/.-]+)?$"
)
"""What LAUNCH_WANDB_API_KEY_SOURCE may be."""


def parse_duration(value: object) -> object:
    """`25s`, `10m`, `12h`, `14d` or a number → seconds. Raises `ValueError` for other text."""
    if not isinstance(value, str):
        return value
    if match := _DURATION.fullmatch(value.strip()):
        return float(match[1]) * _UNITS[match[2]]
    try:
        return float(value)
    except ValueError:
        raise ValueError("is no duration; write seconds, or 25s, 10m, 12h, 14d") from None


def split_list(value: object) -> object:
    """`a, b,c` → ("a", "b", "c")."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def partition_of(region: str) -> str:
    """The AWS partition of a Region, by its name."""
    return next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")


def repository_uri(account: str, region: str, name: str, partition: str = "") -> str:
    """The URI of an ECR repository."""
    domain = _ECR_DOMAINS.get(partition or partition_of(region), "amazonaws.com")
    return f"{account}.dkr.ecr.{region}.{domain}/{name}"


def parse_registry(value: object) -> object:
    """The ARN of an ECR repository → its URI; W&B's guide notes the ARN. `https://` before a URI is dropped."""
    if not isinstance(value, str):
        return value
    if match := _ECR_ARN.fullmatch(value.strip()):
        return repository_uri(match["account"], match["region"], match["name"], match["partition"])
    return value.strip().removeprefix("https://").rstrip("/")


def _ecr_repository(uri: str) -> str:
    """Images are pushed where SageMaker pulls them from, or to the registry of a local stack."""
    if uri and not _REGISTRY.fullmatch(uri):
        raise ValueError(
            "is no ECR repository; write ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME or the repository's ARN"
        )
    return uri


def _known_alerts(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in ("failure", "waiting", "none"):
            raise ValueError(f"{kind!r} is no alert; write failure, waiting or none")
    return tuple(kind for kind in kinds if kind != "none")


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]


class Settings(BaseSettings):
    """All settings of all commands; `.env.example` lists each with its default (a test keeps it complete)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        populate_by_name=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` hands over: it has read the environment and `.env` itself."""
        return (init_settings,)

    queue_url: str = Field(
        "",
        description="SQS queue with launch messages; standard or FIFO. Required by `run`, `mirror`, `enqueue` and "
        "`dlq`, and by `retry` of a refused launch.",
    )
    dlq_url: str = Field(
        "",
        description="Queue that refused messages are copied to. Default: from the queue's redrive policy.",
    )
    ledger: str = Field(
        "sqlite:///launch-ledger.db",
        description="`sqlite:///PATH` (one host, on a disk that outlives the container) or `dynamodb://TABLE`.",
    )
    deployment: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Tag `LaunchWorker` on jobs, and namespace of direct launch ids.",
    )
    builder: Literal["docker", "buildkit", "none"] = Field(
        "docker", description="`docker` (classic API), `buildkit`, or `none`: only ready images."
    )
    registry: Annotated[str, BeforeValidator(parse_registry), AfterValidator(_ecr_repository)] = Field(
        "", description="ECR repository to push built images to, by its URI or ARN."
    )
    create_repository: bool = Field(False, description="Create the ECR repository when it is missing.")
    base_image: str = Field("", description="Base image of generated Dockerfiles. Default: python:X.Y-slim.")
    build_network: str = Field("", description="Docker network for builds; one without link-local metadata.")
    build_timeout: Seconds = Field(3600.0, description="Longest time of one image build.")
    build_low_water: int = Field(
        5 * 1024**3,
        ge=0,
        description="Free disk in bytes below which old images are pruned and nothing is built.",
    )
    platform: Literal["linux/amd64", "linux/arm64"] = Field(
        "linux/amd64", description="What training instances run; arm64 for Graviton."
    )
    git_credentials: SecretStr | None = Field(
        None,
        description="Logins for private git remotes: `https://USER:TOKEN@HOST`, comma separated or one a line, "
        "percent-encoded as in git's credential store; or the path of a file with such lines.",
    )
    source_max_bytes: int = Field(
        5 * 1024**3, ge=1, description="Largest source in bytes: as fetched, and unpacked."
    )
    source_max_files: int = Field(
        200_000, ge=1, description="Most files, folders and links that a source may have."
    )
    fetch_timeout: Seconds = Field(900.0, gt=0, description="Longest time of fetching one source.")
    work_dir: str = Field(
        "",
        description="Folder for sources while their image is built. Default: the system's for temporary files.",
    )
    slots: int = Field(20, ge=1, description="Launches in leg 1 at once.")
    max_builds: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Image builds at once. Default: number of cores.",
    )
    max_jobs: int = Field(
        -1,
        ge=-1,
        description="Running jobs of this worker; further launches wait in the ledger. -1: no limit.",
    )
    max_wait: Seconds = Field(86400.0, description="Longest time a launch waits for quota or room.")
    max_attempts: int = Field(10, ge=1, description="Tries of leg 1 before a launch is refused.")
    retry: str = Field(
        "",
        description="Further attempts after ends that are not the code's fault, for example "
        "`capacity=3,spot=5,internal=2` (0 to 20 each). A message's `options.retry` wins. Default: none.",
    )
    retry_pause: Seconds = Field(
        30.0, description="Pause before the first further attempt; it doubles each time, to 15 minutes."
    )
    instance_types: str = Field(
        "",
        description="Instance types that may stand for each other after a want of capacity, in order: "
        "`ml.g5.xlarge,ml.g5.2xlarge`; several lists with `;` between. A message's `options.instance_types` wins.",
    )
    start_timeout: Seconds = Field(
        0.0, description="Stop a job that stays pending longer than this. 0: never."
    )
    alerts: Annotated[StringList, AfterValidator(_known_alerts)] = Field(
        ("failure", "waiting"),
        description="W&B alerts about jobs: `failure`, `waiting` (a job does not start), or `none`.",
    )
    alert_after: Seconds = Field(
        1800.0,
        description="How long a job may be pending before that is told: on its queue item, and as the alert `waiting`.",
    )
    prices: str = Field(
        "",
        description="USD an hour by instance type, for the cost in companion runs: "
        "`ml.g5.xlarge=1.408,ml.m5.large=0.115`, or the path of a file with one a line.",
    )
    stopped_run_timeout: Seconds = Field(
        60.0,
        description="How long a run whose Stop was pressed in W&B may end by itself, before its job is stopped.",
    )
    log_target: Literal["companion", "run", "files", "off"] = Field(
        "companion", description="Where container logs go; `run` is for images that do not use W&B."
    )
    receive_wait: Seconds = Field(
        20.0, ge=0, le=20, description="Longest wait of one SQS receive (long polling)."
    )
    log_quiet: Seconds = Field(
        15.0, description="A finished job's log is complete when nothing new came for this long."
    )
    log_drain_limit: Seconds = Field(
        300.0, description="Longest wait for late log lines after a job has ended."
    )
    log_give_up: Seconds = Field(
        86400.0,
        description="After a job's end, longest time that W&B may fail or refuse; then the launch is finished "
        "without the rest of its log, and says so.",
    )
    log_interval: Seconds = Field(
        2.0,
        gt=0,
        description="How often a log that has news is read; silent ones three times less often, "
        "thousands of them still less.",
    )
    status_interval: Seconds = Field(
        5.0,
        gt=0,
        description="Pause between two looks at the states of all jobs: half of it while one starts or is ending, "
        "twice when nothing has changed for five minutes.",
    )
    companion_heartbeat: Seconds = Field(
        30.0, gt=0, description="Sign of life of companion runs; its answer brings a Stop pressed in W&B."
    )
    companion_project: str = Field(
        "", description="W&B project of companion runs. Default: the run's own project."
    )
    heartbeat: Seconds = Field(
        10.0,
        gt=0,
        description="Worker heartbeat; a worker silent for three of them is taken for dead.",
    )
    lease: Seconds = Field(
        60.0,
        ge=2,
        le=43200,
        description="SQS visibility while a message is in work; renewed at a third of it.",
    )
    shutdown_grace: Seconds = Field(
        25.0, description="Time to finish work in leg 1 after SIGTERM. ECS gives 30 s."
    )
    http_host: str = Field("127.0.0.1", description="Address of /healthz, /readyz and /metrics.")
    http_port: int = Field(8080, ge=0, le=65535, description="Its port; 0: any free one.")
    entity: str = Field("", description="W&B entity of the mirrored queues.")
    wandb_queues: StringList = Field((), description="W&B launch queues to mirror.")
    mirror_backlog: int = Field(
        20, ge=1, description="Unsubmitted launches at which the mirror stops popping."
    )
    mirror_interval: Seconds = Field(
        5.0, gt=0, description="Pause of the mirror when there is nothing to pop, or no room."
    )
    init_grace: Seconds = Field(
        60.0,
        description="How long after a job's end its run may take to appear in W&B before the queue item fails.",
    )
    secure_mode: bool = Field(
        False,
        description="As W&B's agent means it: LAUNCH_LOCK_ENTRYPOINT, and a job's image cannot be replaced either.",
    )
    lock_entrypoint: bool = Field(
        False, description="Refuse messages that choose the command or the Dockerfile; a job's own are used."
    )
    allowed_roles: StringList = Field((), description="Role ARNs (globs) that jobs may use. Empty: any.")
    allowed_images: StringList = Field((), description="Images (globs) that jobs may use. Empty: any.")
    allowed_instance_types: StringList = Field(
        (), description="Instance types (globs) that jobs may use. Empty: any."
    )
    allowed_git_hosts: StringList = Field((), description="Git hosts (globs) to fetch from. Empty: any.")
    allowed_regions: StringList = Field(
        (),
        description="Regions (globs) that jobs may run in; the worker's own has to be among them. Empty: any.",
    )
    allowed_subnets: StringList = Field(
        (), description="VPC subnets (globs) of jobs; a job without one is refused too. Empty: any or none."
    )
    allowed_security_groups: StringList = Field(
        (),
        description="Security groups (globs) of jobs; a job without one is refused too. Empty: any or none.",
    )
    allowed_environment: StringList = Field(
        (), description="Names (globs) of environment variables that messages may set. Empty: any."
    )
    allowed_outputs: StringList = Field(
        (),
        description="S3 URIs (globs, for example s3://bucket/*) that jobs may write results, checkpoints and "
        "debugger, profiler and TensorBoard output to. Empty: any.",
    )
    max_instances: int | None = Field(None, ge=1, description="Most instances of one job. Empty: any number.")
    max_runtime: Seconds | None = Field(
        None, gt=0, description="Longest MaxRuntimeInSeconds of a job. Empty: SageMaker's own limit."
    )
    container_api_key: Literal["environment", "none"] = Field(
        "environment",
        description="How containers get the W&B key: in their Environment, where DescribeTrainingJob shows it, "
        "or not at all: the image finds its own.",
    )
    assume_role: str = Field(
        "",
        pattern=r"^(arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+)?$",
        description="ARN of a role, for example of another account, that SageMaker and CloudWatch Logs are used with.",
    )
    assume_role_external_id: str = Field("", description="External id that the role's trust policy asks for.")
    rate_create_training_job: float | None = Field(
        None,
        gt=0,
        description="Upper bound of CreateTrainingJob calls a second. Default: the quota, 1/s.",
    )
    rate_describe_training_job: float | None = Field(
        None, gt=0, description="Upper bound of DescribeTrainingJob calls a second. Default: 5/s."
    )
    rate_list_training_jobs: float | None = Field(
        None, gt=0, description="Upper bound of ListTrainingJobs calls a second. Default: 2/s."
    )
    rate_stop_training_job: float | None = Field(
        None, gt=0, description="Upper bound of StopTrainingJob calls a second. Default: 1/s."
    )
    rate_filter_log_events: float | None = Field(
        None, gt=0, description="Upper bound of FilterLogEvents calls a second. Default: 5/s."
    )
    rate_describe_log_streams: float | None = Field(
        None, gt=0, description="Upper bound of DescribeLogStreams calls a second. Default: 25/s."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log event that is written."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, JSON elsewhere."
    )
    crash_at: str = Field(
        "",
        description="For crash tests only: `before:EFFECT` or `after:EFFECT` kills the process there.",
    )

    wandb_api_key: SecretStr | None = Field(
        None,
        validation_alias="WANDB_API_KEY",
        description="W&B API key of the worker; also given to containers.",
    )
    wandb_api_key_source: str = Field(
        "",
        pattern=KEY_SOURCE,
        description="Where the W&B key comes from: `environment`, `netrc`, `secretsmanager:NAME_OR_ARN[#JSON-KEY]` "
        "or `ssm:/PATH/NAME`; an ARN may stand alone. Default: WANDB_API_KEY, else netrc.",
    )
    netrc: Path | None = Field(
        None,
        validation_alias="NETRC",
        description="Where `wandb login` keeps keys. Default: ~/.netrc.",
    )
    wandb_identity_token_file: str = Field(
        "",
        validation_alias="WANDB_IDENTITY_TOKEN_FILE",
        description="W&B's federated identity; it gives containers no key, so that a key is needed beside it.",
    )
    wandb_base_url: str = Field(
        "https://api.wandb.ai", validation_alias="WANDB_BASE_URL", description="W&B server."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        validation_alias="WANDB_MODE",
        description="`offline`, or no API key: companion runs go into folders for `wandb sync`.",
    )
    wandb_dir: Path = Field(
        Path(),
        validation_alias="WANDB_DIR",
        description="Where the folder `wandb` of offline runs is made. Default: the working directory.",
    )
    aws_region: str = Field(
        "",
        validation_alias="AWS_REGION",
        description="AWS Region. Default: AWS_DEFAULT_REGION or the profile's.",
    )

    macros: Mapping[str, str] = Field(default_factory=dict, exclude=True, validation_alias="_macros")
    """`LAUNCH_MACRO_NAME=value` → {"NAME": "value"}: the only environment a message's `${NAME}` can see."""


def given_variables(env_file: Path | None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment, with `env_file` beneath it, without what is empty. Raises `SettingsError` for a file that
    cannot be read."""
    process = dict(os.environ if environ is None else environ)  # noqa: TID251  # the one place that reads it
    values: Mapping[str, str | None] = {}
    if env_file is not None and env_file.is_file():
        values = _read_env_file(env_file)
    return {variable: value for variable, value in {**values, **process}.items() if value}


def load_settings(
    env_file: Path | None = Path(".env"),
    environ: Mapping[str, str] | None = None,
    *,
    beneath: Mapping[str, str] | None = None,
) -> Settings:
    """Read the environment, with `env_file` beneath it, and beneath both the variables that `beneath` stands for
    (W&B's launch-config.yaml); raises `SettingsError` naming every wrong variable."""
    given = given_variables(env_file, environ)
    init: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        variable = variable_name(name)
        found = next((given[v] for v in (variable, _WANDB_FALLBACKS.get(name)) if v in given), None)
        value = (beneath or {}).get(variable) if found is None else found
        if value is not None:
            init[str(field.validation_alias or name)] = value
    init["_macros"] = {
        k.removeprefix(MACRO_PREFIX): v for k, v in given.items() if k.startswith(MACRO_PREFIX)
    }
    try:
        return Settings.model_validate(init)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from error


def inherited_environment(names: Collection[str], prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """Variables of this process that a program started by the worker may see; everything else is kept from it."""
    environ = os.environ  # noqa: TID251  # the one place that reads it
    return {name: value for name, value in environ.items() if name in names or name.startswith(prefixes)}


def export_aws_variables(env_file: Path | None) -> None:
    """Put the `AWS_*` variables of `env_file` into the process environment, where AWS's SDK looks for them; what
    is set already stays."""
    if env_file is not None and env_file.is_file():
        for name, value in _read_env_file(env_file).items():
            if name.startswith("AWS_") and value:
                os.environ.setdefault(name, value)  # noqa: TID251  # the one place that touches it


def _read_env_file(env_file: Path) -> Mapping[str, str | None]:
    try:
        return dotenv_values(env_file)
    except OSError as error:
        raise SettingsError(f"{env_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{env_file}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
        ) from error


def variable_name(field_name: str) -> str:
    """The environment variable of a field of `Settings`."""
    alias = Settings.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else f"LAUNCH_{field_name.upper()}"


def _explain(problem: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0])
    variable = name if name.isupper() else f"LAUNCH_{name.upper()}"
    what = problem["msg"].removeprefix("Value error, ")
    if "API_KEY" in variable:  # what was put there may be the key itself
        return f"{variable}: {what}"
    return f"{variable}: {what} (got {problem['input']!r})"
