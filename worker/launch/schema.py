"""The launch message field by field, as W&B's popFromRunQueue returns it, with our optional envelope beside it.

It accepts what W&B's own agent accepts: unknown keys are ignored, null means absent. So are keys that mean nothing for
a SageMaker job, whatever they hold: `docker.user_id`, `git.repo`, `overrides.working_dir`, `builder`, `registry`,
`queue_entity`, `template_variables`, and the resource arguments of other resources. docs/messages.md is rendered from
the models here: a field's description is its meaning there, `Form` its type, `otherwise` what a missing one stands for.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from worker.launch.forms import (
    Anything,
    Count,
    Entity,
    Form,
    InstanceType,
    Line,
    LogTarget,
    Priority,
    Project,
    Retry,
    RunId,
    Words,
)


class _Part(BaseModel):
    """A JSON object of the message: unknown keys are ignored, a null is as if it were not there."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Docker(_Part):
    """`runSpec.docker`."""

    docker_image: Line = Field("", description="the image to run")


class Git(_Part):
    """`runSpec.git`; for a direct source it says which commit, else nobody reads it."""

    version: Anything = Field(
        "",
        description="branch, tag or commit of `uri`",
        json_schema_extra={"otherwise": "the remote's default"},
    )


class Overrides(_Part):
    """`runSpec.overrides`: what this launch changes about the job."""

    args: Words = Field(
        (), description="ContainerArguments", json_schema_extra={"otherwise": "the image's own"}
    )
    entry_point: Words = Field(
        (),
        description="ContainerEntrypoint",
        json_schema_extra={"otherwise": "the job's or image's own"},
    )
    run_config: dict[str, Any] = Field(default_factory=dict, description="the run's config, `WANDB_CONFIG`")
    files: dict[str, Any] = Field(
        default_factory=dict, description="changes of config files, `WANDB_LAUNCH_FILE_OVERRIDES`"
    )
    artifacts: dict[str, Any] = Field(
        default_factory=dict,
        description="`WANDB_ARTIFACTS`; 512 characters together with the job's name",
    )
    dockerfile: Line = Field("", description="Dockerfile inside of the code")


class ResourceArgs(_Part):
    """`runSpec.resource_args`; only the SageMaker part is ours."""

    sagemaker: dict[str, Any] | None = Field(
        None,
        description="CreateTrainingJob's arguments, see below",
        json_schema_extra={"otherwise": "required"},
    )


class RunSpec(_Part):
    """`runSpec`, the launch spec that `wandb launch` and sweeps write."""

    entity: Entity = Field(description="where the run goes")
    project: Project = Field(description="the same, in lower case")
    run_id: RunId | None = Field(
        None,
        description="the run, and the training job's name",
        json_schema_extra={"otherwise": "derived from the launch's identity"},
    )
    name: Line = Field("", description="the run's display name, `WANDB_NAME`, macro `run_name`")
    author: Line = Field("", description="`WANDB_USERNAME` unless the message brings a key; macro `author`")
    sweep_id: Line = Field(
        "",
        description="`WANDB_SWEEP_ID`, or `{}` for none; refused (`LW-SWEEP-OVER`) once the sweep is over",
    )
    docker: Docker = Field(default_factory=Docker)
    image_uri: Line = Field("", description="the same as `docker.docker_image`, and after it")
    job: Line = Field(
        "",
        description="a [W&B job](concepts.md#wb-jobs): `entity/project/name:alias` or `wandb-artifact://_id/ID`",
    )
    uri: Line = Field(
        "",
        description="code: `s3://…`, `https://….git`, `ssh://…`, `user@host:path`; `placeholder…` is a sweep"
        " scheduler, which is refused",
    )
    git: Git = Field(default_factory=Git)
    python_version: Anything = Field(
        "", description='`"3.11"`, the Python of a generated image; read for code only'
    )
    resource: Line = Field(
        "",
        description="`sagemaker`; any other is refused",
        json_schema_extra={"otherwise": "`sagemaker`"},
    )
    resource_args: ResourceArgs = Field(default_factory=ResourceArgs)
    overrides: Overrides = Field(default_factory=Overrides)
    priority: Anything = Field(
        None,
        description="as `options.priority`; anything else is a warning, since W&B's agent ignores it",
        json_schema_extra={"otherwise": "`medium`"},
    )
    resume_count: Count = Field(0, alias="_resume_count", description="above 0: `WANDB_RESUME=allow`")
    wandb_api_key: Annotated[SecretStr, Form("text")] | None = Field(
        None,
        alias="_wandb_api_key",
        description="the submitter's own W&B key, in place of the worker's",
    )

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

    log_target: LogTarget | None = Field(
        None,
        description="where the log goes",
        json_schema_extra={"otherwise": "`LAUNCH_LOG_TARGET`"},
    )
    priority: Priority | None = Field(
        None,
        description="how urgent the launch is [among those of its queue](concepts.md#turns); goes before"
        " `runSpec.priority`",
        json_schema_extra={"otherwise": "`medium`"},
    )
    retry: Retry | None = Field(
        None,
        description="[further attempts](concepts.md#further-attempts) after ends that are not the code's fault",
        json_schema_extra={"otherwise": "`LAUNCH_RETRY`"},
    )
    instance_types: Annotated[tuple[InstanceType, ...], Form("list of instance types")] = Field(
        (),
        description="what attempts take in turn after a want of capacity; policy is checked for each at the start;"
        " not with InstanceGroups",
        json_schema_extra={"otherwise": "`LAUNCH_INSTANCE_TYPES`"},
    )


class LaunchMessage(_Part):
    """The body of one SQS message, each field valid by itself; `interpret` says what they mean together."""

    model_config = ConfigDict(extra="allow")

    run_spec: Annotated[RunSpec, Form("object, or text that holds one")] = Field(
        alias="runSpec", description="the launch, see below"
    )
    item_id: Line = Field(
        "",
        alias="runQueueItemId",
        description="the W&B queue item; the launch's identity, `WANDB_LAUNCH_TRACE_ID`",
    )
    launch_id: Line = Field(
        "",
        alias="launchId",
        description="identity of a launch that is no queue item: sending it twice is harmless",
        json_schema_extra={"otherwise": "the SQS message's id"},
    )
    queue: Line = Field("", description="W&B queue: `WANDB_LAUNCH_QUEUE_NAME`")
    entity: Line = Field(
        "",
        description="entity of the queue, which may differ from the run's: `WANDB_LAUNCH_QUEUE_ENTITY`",
    )
    agent_run: Line = Field(
        "",
        alias="agentRun",
        description="the agent that popped the item; files of failures go into its run",
    )
    options: Options = Field(default_factory=Options)
