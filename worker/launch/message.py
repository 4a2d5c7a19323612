"""From a message to a launch: what its fields mean together, and what then is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from worker.errors import Problem
from worker.launch.builder_arguments import BuilderArguments, builder_arguments
from worker.launch.forms import CONTROL, PRIORITIES, read_priority
from worker.launch.job_spec import ArtifactRef, parse_artifact_ref
from worker.launch.parsing import STAND_IN_IMAGE, PartlyBad, parse_message, unknown_keys
from worker.launch.record import RunRef
from worker.launch.schema import LaunchMessage, RunSpec
from worker.launch.strict_json import type_name

__all__ = [
    "DOCKER_IMAGE",
    "JOB_PATH",
    "SAGEMAKER_PATH",
    "AlgorithmSource",
    "CodeSource",
    "ImageSource",
    "JobCode",
    "JobSource",
    "Launch",
    "LaunchMessage",
    "SchedulerSource",
    "Source",
    "fold_argument",
    "interpret",
    "parse_message",
    "sagemaker_argument",
]

SAGEMAKER_PATH = "$.runSpec.resource_args.sagemaker"
_TRAINING_IMAGE = f"{SAGEMAKER_PATH}.AlgorithmSpecification.TrainingImage"
DOCKER_IMAGE = ("$.runSpec.docker.docker_image", "$.runSpec.image_uri")
"""Where a docker launch names its image."""
JOB_PATH = "$.runSpec.job"
"""Where a launch names its job; also where the image of an image job comes from."""

_RUN_ID_LENGTH = 10
_DEFAULT_PRIORITY = PRIORITIES["medium"]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A ready image; it may hold macros when it comes from the resource arguments."""

    image: str
    given_at: str = DOCKER_IMAGE[0]
    """JSON path of the field that named it."""


@dataclass(frozen=True, slots=True)
class AlgorithmSource:
    """An algorithm resource of SageMaker (`AlgorithmName`): no image, no entrypoint, no build."""

    name: str


@dataclass(frozen=True, slots=True)
class JobSource:
    """A W&B job artifact, `entity/project/name:alias` or `wandb-artifact://_id/ID`; what it holds is known once it is
    fetched: then an `ImageSource` or `CodeSource` takes its place."""

    job: str
    dockerfile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCode:
    """What a W&B job adds to its code."""

    name: str
    """`entity/project/name` of the job, without its version."""
    artifact: str
    """Storage id of the job's version; its `diff.patch` and `requirements.frozen.txt` belong to the code."""
    code: ArtifactRef | None = None
    """The code artifact; None: a git remote."""
    dockerfile: str = ""
    build_context: str = ""
    base_image: str = ""
    """The code is built on this image."""


@dataclass(frozen=True, slots=True)
class CodeSource:
    """Code: a git remote, an archive on S3, or the code artifact of a job."""

    uri: str
    version: str = ""
    """Branch, tag or commit; of a code artifact its storage id once that is known."""
    dockerfile: str = ""
    """The launch's own override, not the job's."""
    job: JobCode | None = None
    """None: the message names the code directly."""


@dataclass(frozen=True, slots=True)
class SchedulerSource:
    """A sweep scheduler, which W&B's agent runs as a process of its own."""


Source = ImageSource | AlgorithmSource | JobSource | CodeSource | SchedulerSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A validated launch message. Absent text is empty."""

    launch_id: str
    run: RunRef
    source: Source
    sagemaker: Mapping[str, Any]
    """`resource_args.sagemaker` as given: macros not substituted, keys not normalised."""
    item_id: str = ""
    name: str = ""
    author: str = ""
    queue: str = ""
    queue_entity: str = ""
    agent_run: str = ""
    sweep_id: str = ""
    resume_count: int = 0
    job: str = ""
    entry_point: tuple[str, ...] = ()
    """The override of this launch, not the job's own."""
    job_entry_point: tuple[str, ...] = ()
    """The job's own command, which runs unless it is overridden; known once the job is fetched."""
    args: tuple[str, ...] = ()
    run_config: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    api_key: SecretStr | None = None
    """The submitter's own W&B key, if the message carries one."""
    log_target: str = "companion"
    retry: str | None = None
    """`options.retry`; None: as the operator says."""
    instance_types: tuple[str, ...] = ()
    """`options.instance_types`: to fall back to, in this order."""
    priority: int = _DEFAULT_PRIORITY
    """0 (critical) to 3 (low)."""
    python_version: str = ""
    """Of generated images; a job's own wins."""
    builder: BuilderArguments = field(default_factory=BuilderArguments)
    warnings: tuple[Problem, ...] = ()
    """What its sender should know, though nothing of it keeps the launch from running."""


def interpret(message: LaunchMessage, *, launch_id: str, default_log_target: str) -> Launch:
    """What the message asks for; raises `PartlyBad` when nothing in it can be run on SageMaker."""
    spec = message.run_spec
    source = _source(spec)
    builder, wrong = builder_arguments(spec.resource_args.sagemaker or {}, SAGEMAKER_PATH)
    problems = [*_contradictions(spec, source), *wrong]
    launch = _launch(
        message,
        source or ImageSource(STAND_IN_IMAGE),
        builder,
        launch_id=launch_id,
        log_target=message.options.log_target or default_log_target,
    )
    if problems:
        raise PartlyBad(tuple(problems), launch if _is_for_sagemaker(spec) else None)
    return launch


def _launch(
    message: LaunchMessage, source: Source, builder: BuilderArguments, *, launch_id: str, log_target: str
) -> Launch:
    spec = message.run_spec
    key = spec.wandb_api_key
    priority, warnings = _priority(message)
    return Launch(
        launch_id=launch_id,
        item_id=message.item_id,
        run=RunRef(spec.entity, spec.project.lower(), spec.run_id or launch_id[:_RUN_ID_LENGTH]),
        name=spec.name,
        author=spec.author,
        queue=message.queue,
        queue_entity=message.entity,
        agent_run=message.agent_run,
        sweep_id=spec.sweep_id,
        resume_count=spec.resume_count,
        job=spec.job,
        source=source,
        sagemaker=spec.resource_args.sagemaker or {},
        entry_point=spec.overrides.entry_point,
        args=spec.overrides.args,
        run_config=spec.overrides.run_config,
        artifacts=spec.overrides.artifacts,
        files=spec.overrides.files,
        api_key=key if key and key.get_secret_value() else None,
        log_target=log_target,
        retry=message.options.retry,
        instance_types=message.options.instance_types,
        priority=priority,
        python_version=_text(spec.python_version),
        builder=builder,
        warnings=(*warnings, *unknown_keys(message)),
    )


def _priority(message: LaunchMessage) -> tuple[int, tuple[Problem, ...]]:
    """The priority, and a warning about one that is none."""
    given, option = message.run_spec.priority, message.options.priority
    read = read_priority(given)
    chosen = read if option is None else option
    warnings: tuple[Problem, ...] = ()
    if given is not None and read is None:
        remedy = f"use 0 to 3 or one of {', '.join(PRIORITIES)}"
        warnings = (Problem("$.runSpec.priority", "is no priority, and is ignored", remedy),)
    return _DEFAULT_PRIORITY if chosen is None else chosen, warnings


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def sagemaker_argument(arguments: Mapping[str, Any], name: str) -> Any:
    """A top-level CreateTrainingJob argument in whichever case it was written; the exact spelling wins."""
    if arguments.get(name) is not None:
        return arguments[name]
    folded = fold_argument(name)
    return next((v for k, v in arguments.items() if v is not None and fold_argument(k) == folded), None)


def fold_argument(name: str) -> str:
    """`RoleArn`, `role_arn` and `roleArn` are one argument."""
    return name.replace("_", "").lower()


def _source(spec: RunSpec) -> Source | None:
    """First match wins. A TrainingImage of the queue beats everything that would otherwise be built for nothing,
    unless it asks for the launch's own image with `${image_uri}`."""
    if spec.uri.startswith("placeholder"):
        return SchedulerSource()
    algorithm = sagemaker_argument(spec.resource_args.sagemaker or {}, "AlgorithmSpecification")
    given = algorithm if isinstance(algorithm, dict) else {}
    name, image = (sagemaker_argument(given, key) for key in ("AlgorithmName", "TrainingImage"))
    if isinstance(name, str) and name:
        return AlgorithmSource(name)
    if isinstance(image, str) and image and "${image_uri}" not in image:
        return ImageSource(image, _TRAINING_IMAGE)
    for docker_image, path in zip((spec.docker.docker_image, spec.image_uri), DOCKER_IMAGE, strict=True):
        if docker_image:
            return ImageSource(docker_image, path)
    dockerfile = spec.overrides.dockerfile
    if spec.job:
        return JobSource(spec.job, dockerfile)
    return CodeSource(spec.uri, _text(spec.git.version), dockerfile) if spec.uri else None


def _contradictions(spec: RunSpec, source: Source | None) -> list[Problem]:
    """Problems of fields that are valid one by one."""
    if isinstance(source, SchedulerSource):
        return []  # refused later with its own code: a scheduler has no SageMaker arguments to complain about
    problems = []
    if source is None:
        remedy = "name an image (docker.docker_image), a job, or code (uri)"
        problems.append(Problem("$.runSpec", "there is nothing to run", remedy))
    if isinstance(source, JobSource) and parse_artifact_ref(source.job) is None:
        remedy = "write it as entity/project/name:alias"
        problems.append(Problem(JOB_PATH, "is not the name of a job artifact", remedy))
    if not _is_for_sagemaker(spec):
        what = f"is {spec.resource!r}, and this worker runs sagemaker only"
        problems.append(Problem("$.runSpec.resource", what, "send it to a queue of that resource"))
    elif not spec.resource_args.sagemaker:
        remedy = "give the CreateTrainingJob arguments, or set them in the W&B queue's config"
        problems.append(Problem(SAGEMAKER_PATH, "no SageMaker arguments are given", remedy))
    if isinstance(source, CodeSource | JobSource):
        problems.extend(_unreadable_for_code(spec, source))
    return problems


def _is_for_sagemaker(spec: RunSpec) -> bool:
    return spec.resource in ("", "sagemaker")


def _unreadable_for_code(spec: RunSpec, source: CodeSource | JobSource) -> Iterator[Problem]:
    """Keys that matter only where code is fetched and built: for a ready image they may hold anything."""
    texts = {"$.runSpec.python_version": spec.python_version}
    if isinstance(source, CodeSource):
        texts["$.runSpec.git.version"] = spec.git.version
    for path, value in texts.items():
        if not isinstance(value, str):
            yield Problem(path, f"should be a string, not {type_name(value)}", "write it as a string")
        elif CONTROL.search(value):
            yield Problem(path, "holds control characters", "write it on one line")
