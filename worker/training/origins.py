"""Problems of a request, told where the sender of the message wrote what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from worker.errors import Problem
from worker.launch.environment import MAX_VALUE_LENGTH
from worker.launch.message import (
    DOCKER_IMAGE,
    JOB_PATH,
    SAGEMAKER_PATH,
    ImageSource,
    Launch,
    sagemaker_argument,
)
from worker.training.arguments import where_written
from worker.training.limits import MAX_TAGS, MAX_VARIABLES

_ENVIRONMENT = f"{SAGEMAKER_PATH}.Environment"
_OVERRIDES = "$.runSpec.overrides"
_CHUNKS = {
    f"{_OVERRIDES}.run_config": re.compile(r"WANDB_CONFIG(_\d+)?"),
    f"{_OVERRIDES}.files": re.compile(r"WANDB_LAUNCH_FILE_OVERRIDES(_\d+)?"),
}
_VARIABLES = {
    "WANDB_ENTITY": "$.runSpec.entity",
    "WANDB_PROJECT": "$.runSpec.project",
    "WANDB_RUN_ID": "$.runSpec.run_id",
    "WANDB_NAME": "$.runSpec.name",
    "WANDB_USERNAME": "$.runSpec.author",
    "WANDB_SWEEP_ID": "$.runSpec.sweep_id",
    "WANDB_LAUNCH_QUEUE_NAME": "$.queue",
    "WANDB_LAUNCH_QUEUE_ENTITY": "$.entity",
    "WANDB_LAUNCH_TRACE_ID": "$.runQueueItemId",
}
_OUR_TAGS = 3


def at_their_origins(
    problems: Iterable[Problem],
    launch: Launch,
    request: Mapping[str, Any],
    written: Mapping[str, str],
    *,
    with_key: bool,
) -> tuple[Problem, ...]:
    """Each problem where its cause stands in the message; one problem a place, the first that was found.

    `written`: paths of the request that the sender spelled in another way; `with_key`: as for `check_limits`."""
    origins = dict(_origins(launch, request))
    first: dict[str, Problem] = {}
    for problem in problems:
        counted = _counted(problem, launch, request, with_key=with_key)
        path = where_written(_origin(counted.path, origins), written)
        first.setdefault(path, replace(counted, path=path))
    return tuple(first.values())


def _origin(path: str, origins: Mapping[str, str]) -> str:
    for field, origin in origins.items():
        if path == field or path.startswith((f"{field}[", f"{field}.")):
            return origin + path.removeprefix(field)
    return path


def _origins(launch: Launch, request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields of the request that were made from another part of the message, and that part."""
    algorithm = f"{SAGEMAKER_PATH}.AlgorithmSpecification"
    if launch.args:
        yield f"{algorithm}.ContainerArguments", f"{_OVERRIDES}.args"
    if launch.entry_point:
        yield f"{algorithm}.ContainerEntrypoint", f"{_OVERRIDES}.entry_point"
    elif launch.job_entry_point:
        yield f"{algorithm}.ContainerEntrypoint", JOB_PATH
    if (
        isinstance(launch.source, ImageSource)
        and launch.source.given_at in (*DOCKER_IMAGE, JOB_PATH)
        and request["AlgorithmSpecification"].get("TrainingImage") == launch.source.image
    ):
        yield f"{algorithm}.TrainingImage", launch.source.given_at
    own = _own_variables(launch, request)
    artifacts = f"{_OVERRIDES}.artifacts" if launch.artifacts else "$.runSpec.job"
    for name in own:
        chunked = [path for path, pattern in _CHUNKS.items() if pattern.fullmatch(name)]
        origin = chunked[0] if chunked else {**_VARIABLES, "WANDB_ARTIFACTS": artifacts}.get(name)
        if origin:
            yield f"{_ENVIRONMENT}.{name}", origin


def _counted(problem: Problem, launch: Launch, request: Mapping[str, Any], *, with_key: bool) -> Problem:
    """Too many variables or tags: what the worker adds is counted apart, and the largest part is named."""
    if problem.path == f"{SAGEMAKER_PATH}.Tags" and len(request.get("Tags", ())) > MAX_TAGS:
        given = len(request["Tags"]) - _OUR_TAGS
        what = f"has {given} tags beside {_OUR_TAGS} of the worker, SageMaker's limit is {MAX_TAGS}"
        return Problem(problem.path, what, f"leave out {given + _OUR_TAGS - MAX_TAGS}")
    total = len(request.get("Environment", ())) + with_key  # WANDB_API_KEY
    if problem.path != _ENVIRONMENT or total <= MAX_VARIABLES:
        return problem
    own = _own_variables(launch, request)
    chunks = {path: sum(map(bool, map(pattern.fullmatch, own))) for path, pattern in _CHUNKS.items()}
    largest = max(chunks, key=lambda path: chunks[path])
    given = total - with_key - len(own)
    if given >= chunks[largest]:
        what = f"has {given} variables beside {total - given} of the worker, SageMaker's limit is {MAX_VARIABLES}"
        return Problem(problem.path, what, f"leave out {total - MAX_VARIABLES}")
    others = total - chunks[largest]
    room = max(MAX_VARIABLES - others, 1) * MAX_VALUE_LENGTH
    what = (
        f"fills {chunks[largest]} variables of {MAX_VALUE_LENGTH} characters beside {others} others, "
        f"SageMaker's limit is {MAX_VARIABLES} in all"
    )
    remedy = f"shorten it to {room} characters of JSON: large values belong into an artifact or a file on S3"
    return Problem(largest, what, remedy)


def _own_variables(launch: Launch, request: Mapping[str, Any]) -> list[str]:
    """Names in the Environment that the worker has set, not the message."""
    given = sagemaker_argument(launch.sagemaker, "Environment")
    names = given if isinstance(given, dict) else {}
    return [name for name in request.get("Environment", ()) if name not in names]
