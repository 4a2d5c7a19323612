"""The launch message field by field, as W&B's popFromRunQueue returns it, with our optional envelope beside it.

It accepts what W&B's own agent accepts: unknown keys are ignored, null means absent. So are keys that mean nothing for
a SageMaker job, whatever they hold: `docker.user_id`, `git.repo`, `overrides.working_dir`, `builder`, `registry`,
`queue_entity`, `template_variables`, and the resource arguments of other resources. docs/messages.md lists every key.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from worker.launch.retry import is_instance_type, parse_retry
from worker.launch.strict_json import type_name

# A W&B name ends up in URLs. The SDK refuses the first set in projects, and the second in run ids as well
# (wandb/sdk/wandb_settings.py, validate_project and validate_run_id).
_NOT_IN_PROJECT = "/\\#?%:"
_NOT_IN_RUN_ID = _NOT_IN_PROJECT + ";,'"
_MAX_WANDB_NAME = 128
MAX_WORDS = 100
"""Items of a command or its arguments (CreateTrainingJob, ContainerEntrypoint and ContainerArguments)."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What no name, path or reference holds."""


def _refusal(what: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("launch", "{what}", {"what": what, "remedy": remedy})


def _line(text: str) -> str:
    """One line of text: identities are joined by newlines, and names go into headers and tags."""
    if CONTROL.search(text):
        raise _refusal("holds control characters", "write it on one line")
    return text


def _required(text: str) -> str:
    if not text.strip():
        raise _refusal("is empty", "give it a value")
    return _line(text)


def _wandb_name(text: str, refused: str) -> str:
    _required(text)
    if text != text.strip():
        raise _refusal("starts or ends with white space, which W&B refuses", "trim it")
    if not text.strip("."):
        raise _refusal("consists of dots, which an address cannot hold", "give it a name")
    if len(text) > _MAX_WANDB_NAME:
        raise _refusal(f"has {len(text)} characters, W&B takes {_MAX_WANDB_NAME}", "shorten it")
    if found := sorted({c for c in text if c in refused}):
        raise _refusal(f"holds {' '.join(found)}, which W&B refuses", f"leave out {' '.join(refused)}")
    return text


def _count(value: object) -> int:
    """A number of any spelling (W&B's agent asks only whether it is above 0)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(f"should be a number, not {type_name(value)}", "write it as a whole number")
    return math.ceil(value)


PRIORITIES = {"critical": 0, "high": 1, "medium": 2, "low": 3}
"""W&B's names of priorities (wandb/cli/cli.py, `launch --priority`); 0 is the most urgent."""


def read_priority(value: object) -> int | None:
    """0 to 3 or one of W&B's names as a number; None for anything else."""
    if isinstance(value, str):
        return PRIORITIES.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value in PRIORITIES.values() else None


def _priority(value: object) -> int:
    priority = read_priority(value)
    if priority is None:
        raise _refusal(f"should be 0 to 3 or one of {', '.join(PRIORITIES)}", "choose one of these")
    return priority


def _few(value: object) -> object:
    if isinstance(value, list) and len(value) > MAX_WORDS:
        raise _refusal(f"has {len(value)} items, SageMaker's limit is {MAX_WORDS}", "shorten it")
    return value


def _retry(text: str) -> str:
    try:
        parse_retry(text)
    except ValueError as error:
        raise _refusal(str(error), "correct it") from None
    return text


def _instance_type(text: str) -> str:
    if not is_instance_type(text):
        raise _refusal("is no instance type of SageMaker", "write it as ml.g5.xlarge")
    return text


Line = Annotated[str, AfterValidator(_line)]
Words = Annotated[tuple[str, ...], BeforeValidator(_few)]
Count = Annotated[int, BeforeValidator(_count)]
Priority = Annotated[int, BeforeValidator(_priority)]
Entity = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT))]
Project = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT))]
RunId = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_RUN_ID))]
Retry = Annotated[str, AfterValidator(_retry)]
InstanceType = Annotated[str, AfterValidator(_instance_type)]
LogTarget = Literal["companion", "run", "files", "off"]


class _Part(BaseModel):
    """A JSON object of the message: unknown keys are ignored, a null is as if it were not there."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Docker(_Part):
    """`runSpec.docker`."""

    docker_image: Line = ""


class Git(_Part):
    """`runSpec.git`; for a direct source it says which commit, else nobody reads it."""

    version: Any = ""


class Overrides(_Part):
    """`runSpec.overrides`: what this launch changes about the job."""

    args: Words = ()
    entry_point: Words = ()
    run_config: dict[str, Any] = Field(default_factory=dict)
    artifacts: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, Any] = Field(default_factory=dict)
    dockerfile: Line = ""


class ResourceArgs(_Part):
    """`runSpec.resource_args`; only the SageMaker part is ours."""

    sagemaker: dict[str, Any] | None = None


class RunSpec(_Part):
    """`runSpec`, the launch spec that `wandb launch` and sweeps write."""

    entity: Entity
    project: Project
    run_id: RunId | None = None
    name: Line = ""
    author: Line = ""
    job: Line = ""
    uri: Line = ""
    image_uri: Line = ""
    resource: Line = ""
    sweep_id: Line = ""
    docker: Docker = Field(default_factory=Docker)
    git: Git = Field(default_factory=Git)
    overrides: Overrides = Field(default_factory=Overrides)
    resource_args: ResourceArgs = Field(default_factory=ResourceArgs)
    python_version: Any = ""
    """Read for code only, so for a ready image it may be anything."""
    priority: Any = None
    """W&B's agent ignores it, so one that is no priority is told and ignored."""
    resume_count: Count = Field(0, alias="_resume_count")
    wandb_api_key: SecretStr | None = Field(None, alias="_wandb_api_key")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """W&B's client writes "no sweep" as an empty object, and its agent makes a new id for an empty one."""
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v or k not in ("sweep_id", "run_id")}


class Options(_Part):
    """`options` of our envelope: settings of the worker that one message may change.

    An option that this version does not know is told and ignored: a newer sender may know more."""

    model_config = ConfigDict(extra="allow")

    log_target: LogTarget | None = None
    priority: Priority | None = None
    """Goes before the one of `runSpec`."""
    retry: Retry | None = None
    instance_types: tuple[InstanceType, ...] = ()


class LaunchMessage(_Part):
    """The body of one SQS message, each field valid by itself; `interpret` says what they mean together."""

    model_config = ConfigDict(extra="allow")

    run_spec: RunSpec = Field(alias="runSpec")
    item_id: Line = Field("", alias="runQueueItemId")
    launch_id: Line = Field("", alias="launchId")
    queue: Line = ""
    entity: Line = ""
    """Entity of the W&B queue; it may differ from the run's."""
    agent_run: Line = Field("", alias="agentRun")
    options: Options = Field(default_factory=Options)
