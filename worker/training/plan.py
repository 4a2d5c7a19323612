"""All that is decided about a launch before anything outside is touched: request, limits, policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import BadMessage, Problem
from worker.launch.identity import training_job_name
from worker.launch.message import SAGEMAKER_PATH, CodeSource, JobSource, Launch, SchedulerSource
from worker.launch.strict_json import json_path
from worker.training.limits import check_limits
from worker.training.policy import POLICY_CODE, Policy, check_policy, instance_count
from worker.training.request import AccountFacts, draft_request, with_job_name


@dataclass(frozen=True, slots=True)
class Plan:
    """A launch that can be submitted once its W&B key is added; it holds no key itself."""

    launch: Launch
    request: Mapping[str, Any]
    job_name: str
    image: str
    """Empty for an algorithm resource."""
    instance_type: str
    """Of the first group, if there are several."""
    instance_count: int


def plan_launch(
    launch: Launch,
    *,
    image: str | None,
    account: AccountFacts,
    base_url: str,
    deployment: str,
    macros: Mapping[str, str],
    policy: Policy,
    attempt: int = 1,
) -> Plan:
    """Decide what attempt `attempt` of a launch submits. `image`: a built or pinned image instead of its own.

    Raises `BadMessage` with the problems of request, limits and policy together (code LW-POLICY when policy is
    all that stands against it; a code of its own for a source that this version does not run)."""
    _refuse_source(launch, image)
    request, problems = draft_request(
        launch, image=image, account=account, base_url=base_url, deployment=deployment, macros=macros
    )
    wrong = [*problems, *check_limits(request, with_key=policy.container_key), *_leaked_key(launch, request)]
    forbidden = check_policy(request, launch, policy)
    if wrong or forbidden:
        found = _once(_where_given(problem, launch) for problem in (*wrong, *forbidden))
        raise BadMessage(found, code="LW-BAD-MESSAGE" if wrong else POLICY_CODE)
    name = training_job_name(request["TrainingJobName"], launch.launch_id, attempt)
    return Plan(
        launch=launch,
        request=with_job_name(request, name),
        job_name=name,
        image=request["AlgorithmSpecification"].get("TrainingImage", ""),
        instance_type=_instance_type(request["ResourceConfig"]),
        instance_count=instance_count(request),
    )


def _refuse_source(launch: Launch, image: str | None) -> None:
    """Raises `BadMessage` for what this version does not run."""
    source = launch.source
    if isinstance(source, SchedulerSource):
        what = "is a sweep scheduler, a process beside the queue and not a training job"
        problem = Problem("$.runSpec.uri", what, "run `wandb launch-agent` for it")
        raise BadMessage((problem,), code="LW-SWEEP-SCHEDULER")
    if image:
        return
    remedy = "build the image and name it in docker.docker_image"
    if isinstance(source, JobSource):
        what = f"names the job {source.job}, and this version runs ready images only"
        raise BadMessage((Problem("$.runSpec.job", what, remedy),), code="LW-SOURCE-JOB")
    if isinstance(source, CodeSource):
        what = "names code, whose image is not known before a worker has built it"
        remedy = "give --image-uri, which stands for that image"
        raise BadMessage((Problem("$.runSpec.uri", what, remedy),), code="LW-SOURCE-CODE")


def _instance_type(resources: Mapping[str, Any]) -> str:
    groups = resources.get("InstanceGroups") or [{}]
    return str(resources.get("InstanceType") or groups[0].get("InstanceType", ""))


def _leaked_key(launch: Launch, request: Mapping[str, Any]) -> Iterator[Problem]:
    """The launch's own W&B key, pasted where it would be stored and shown."""
    if launch.api_key is None:
        return
    key = launch.api_key.get_secret_value()
    stack: list[tuple[Any, str]] = [(request, SAGEMAKER_PATH)]
    while stack:
        value, path = stack.pop()
        if isinstance(value, str) and key in value:
            yield Problem(
                path, "holds the W&B API key", "remove it: the worker hands the key to the container"
            )
        elif isinstance(value, Mapping):
            stack.extend((item, json_path(path, name)) for name, item in value.items())
        elif isinstance(value, list):
            stack.extend((item, json_path(path, i)) for i, item in enumerate(value))


def _where_given(problem: Problem, launch: Launch) -> Problem:
    """The request's fields that come from elsewhere in the message are reported where the sender wrote them."""
    origins = {
        f"{SAGEMAKER_PATH}.Environment.WANDB_ARTIFACTS": "$.runSpec.overrides.artifacts",
        f"{SAGEMAKER_PATH}.Environment.WANDB_NAME": "$.runSpec.name",
    }
    algorithm = f"{SAGEMAKER_PATH}.AlgorithmSpecification"
    if launch.args:
        origins[f"{algorithm}.ContainerArguments"] = "$.runSpec.overrides.args"
    if launch.entry_point:
        origins[f"{algorithm}.ContainerEntrypoint"] = "$.runSpec.overrides.entry_point"
    for path, origin in origins.items():
        if problem.path == path or problem.path.startswith(f"{path}["):
            return Problem(origin + problem.path.removeprefix(path), problem.what, problem.remedy)
    return problem


def _once(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """One problem a path: a part that could not be built is not reported as missing as well."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.path, problem)
    return tuple(first.values())
