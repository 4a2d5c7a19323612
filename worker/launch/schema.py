"""The launch message field by field, as W&B's popFromRunQueue returns it, with our optional envelope beside it.

It accepts what W&B's own agent accepts: unknown keys are ignored, null means absent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StrictInt, model_validator
from pydantic_core import PydanticCustomError

# A W&B name ends up in URLs. The SDK refuses the first set in projects, and the second in run ids as well
# (wandb/sdk/wandb_settings.py, validate_project and validate_run_id).
_NOT_IN_PROJECT = "/\\#?%:"
_NOT_IN_RUN_ID = _NOT_IN_PROJECT + ";,'"
_MAX_WANDB_NAME = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _refusal(what: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("launch", "{what}", {"what": what, "remedy": remedy})


def _line(text: str) -> str:
    """One line of text: identities are joined by newlines, and names go into headers and tags."""
    if _CONTROL.search(text):
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


Line = Annotated[str, AfterValidator(_line)]
Entity = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT))]
Project = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT))]
RunId = Annotated[str, AfterValidator(lambda text: _wandb_name(text, _NOT_IN_RUN_ID))]
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
    """`runSpec.git`; W&B's agent stores and ignores it, for direct sources it says which commit."""

    version: Line = ""


class Overrides(_Part):
    """`runSpec.overrides`: what this launch changes about the job."""

    args: tuple[str, ...] = ()
    entry_point: tuple[str, ...] = ()
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
    resume_count: StrictInt = Field(0, alias="_resume_count")
    wandb_api_key: SecretStr | None = Field(None, alias="_wandb_api_key")

    @model_validator(mode="before")
    @classmethod
    def _no_sweep(cls, value: Any) -> Any:
        """W&B's client writes "no sweep" as an empty object."""
        if isinstance(value, dict) and value.get("sweep_id") == {}:
            return {k: v for k, v in value.items() if k != "sweep_id"}
        return value


class Options(_Part):
    """`options` of our envelope: settings of the worker that one message may change."""

    log_target: LogTarget | None = None


class LaunchMessage(_Part):
    """The body of one SQS message, each field valid by itself; `interpret` says what they mean together."""

    run_spec: RunSpec = Field(alias="runSpec")
    item_id: Line = Field("", alias="runQueueItemId")
    launch_id: Line = Field("", alias="launchId")
    queue: Line = ""
    entity: Line = ""
    """Entity of the W&B queue; it may differ from the run's."""
    agent_run: Line = Field("", alias="agentRun")
    options: Options = Field(default_factory=Options)
