"""All that is decided about a launch before anything outside is touched: request, limits, policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import MAX_PROBLEMS, BadMessage, Problem
from worker.launch.environment import is_serialised
from worker.launch.identity import training_job_name
from worker.launch.message import (
    JOB_PATH,
    SAGEMAKER_PATH,
    CodeSource,
    ImageSource,
    JobSource,
    Launch,
    LaunchMessage,
    SchedulerSource,
    interpret,
)
from worker.launch.parsing import STAND_IN_IMAGE, PartlyBad
from worker.launch.strict_json import json_path
from worker.training.limits import check_limits
from worker.training.origins import at_their_origins
from worker.training.policy import POLICY_CODE, Policy, check_policy, instance_count
from worker.training.request import AccountFacts, draft_request, with_job_name
from worker.training.retry import check_fallbacks

_TRAINING_IMAGE = f"{SAGEMAKER_PATH}.AlgorithmSpecification.TrainingImage"
_WHOLE = "$.runSpec"
_NO_ID = "unread"


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
    warnings: tuple[Problem, ...] = ()
    """What the sender of the message should know, though the job can run."""


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
    if isinstance(launch.source, SchedulerSource):
        raise _scheduler()
    unbuilt = None if image else _unbuilt(launch)
    draft = draft_request(
        launch,
        image=STAND_IN_IMAGE if unbuilt else image,
        account=account,
        base_url=base_url,
        deployment=deployment,
        macros=macros,
    )
    request = draft.request
    limits = check_limits(request, with_key=policy.container_key)
    wrong = [*draft.problems, *limits, *_leaked_key(launch, request)]
    refused = check_policy(request, launch, policy, region=account.region)
    forbidden = [p for p in refused if not (unbuilt and _is_stand_in(p))]
    forbidden += check_fallbacks(request, launch, policy)
    if wrong or forbidden or unbuilt:
        missing = (unbuilt.problem,) if unbuilt else ()
        all_found = (*missing, *wrong, *forbidden)[:MAX_PROBLEMS]
        found = at_their_origins(all_found, launch, request, draft.written, with_key=policy.container_key)
        code = "LW-BAD-MESSAGE" if wrong else POLICY_CODE if forbidden or not unbuilt else unbuilt.code
        raise BadMessage(found, code=code)
    name = training_job_name(request["TrainingJobName"], launch.launch_id, attempt)
    return Plan(
        launch=launch,
        request=with_job_name(request, name),
        job_name=name,
        image=request["AlgorithmSpecification"].get("TrainingImage", ""),
        instance_type=instance_type(request["ResourceConfig"]),
        instance_count=instance_count(request),
        warnings=draft.warnings,
    )


def read_launch(
    parsed: LaunchMessage | BadMessage,
    plan: Callable[..., object],
    *,
    launch_id: str,
    default_log_target: str,
) -> Launch:
    """What a message asks for. Raises `BadMessage` with all that is wrong with it, as `review` finds it."""
    try:
        if isinstance(parsed, BadMessage):
            raise parsed
        return interpret(parsed, launch_id=launch_id, default_log_target=default_log_target)
    except BadMessage as error:
        raise review(error, plan) from None


def review(error: BadMessage, plan: Callable[..., object]) -> BadMessage:
    """The refusal of a message or a launch together with all that `plan` finds wrong in what is left of it.

    `plan`: `plan_launch` with all but the launch and its image."""
    problems = list(error.problems)
    rest = error.rest if isinstance(error, PartlyBad) else None
    if isinstance(rest, LaunchMessage):
        try:
            rest = interpret(rest, launch_id=_NO_ID, default_log_target="off")
        except PartlyBad as more:
            problems.extend(_besides(error.problems, more.problems))
            rest = more.rest
    if isinstance(rest, Launch) and not isinstance(rest.source, SchedulerSource):
        try:
            plan(rest, image=STAND_IN_IMAGE if _unbuilt(rest) else None)
        except BadMessage as more:
            problems.extend(_besides([*problems, *_of_stand_in(rest)], more.problems))
    return BadMessage(tuple(problems), code=error.code)


def _besides(known: Iterable[Problem], more: Iterable[Problem]) -> list[Problem]:
    """Problems that are no consequence of the known ones: neither above nor below them in the message."""
    paths = [problem.path for problem in known if problem.path != _WHOLE]
    return [
        problem
        for problem in more
        if not any(
            problem.path == path
            or problem.path.startswith((f"{path}.", f"{path}["))
            or (problem.path != _WHOLE and path.startswith((f"{problem.path}.", f"{problem.path}[")))
            for path in paths
        )
    ]


@dataclass(frozen=True, slots=True)
class _Unbuilt:
    """Why the image of a launch is not known."""

    problem: Problem
    code: str


def _unbuilt(launch: Launch) -> _Unbuilt | None:
    source = launch.source
    remedy = "give --image-uri, which stands for that image"
    if isinstance(source, JobSource):
        what = f"names the job {source.job}, whose image is not known before a worker has fetched it"
        return _Unbuilt(Problem(JOB_PATH, what, remedy), "LW-SOURCE-JOB")
    if isinstance(source, CodeSource):
        what = "names code, whose image is not known before a worker has built it"
        return _Unbuilt(Problem("$.runSpec.uri", what, remedy), "LW-SOURCE-CODE")
    return None


def _is_stand_in(problem: Problem) -> bool:
    """A problem of the image that only stands for another."""
    return problem.path == _TRAINING_IMAGE


def _of_stand_in(launch: Launch) -> Iterator[Problem]:
    """Where problems of the image would be told, if that image only stands for another."""
    if _unbuilt(launch):
        yield Problem(_TRAINING_IMAGE, "", "")
    elif isinstance(launch.source, ImageSource) and launch.source.image == STAND_IN_IMAGE:
        yield Problem(launch.source.given_at, "", "")


def _scheduler() -> BadMessage:
    what = "is a sweep scheduler, a process beside the queue and not a training job"
    remedy = (
        "let `wandb launch-agent` run it from a queue of resource local-process; the sweep's runs come here"
    )
    return BadMessage((Problem("$.runSpec.uri", what, remedy),), code="LW-SWEEP-SCHEDULER")


def instance_type(resources: Mapping[str, Any]) -> str:
    """Of a ResourceConfig; of several groups the first one's."""
    groups = resources.get("InstanceGroups") or [{}]
    return str(resources.get("InstanceType") or groups[0].get("InstanceType", ""))


def _leaked_key(launch: Launch, request: Mapping[str, Any]) -> Iterator[Problem]:
    """The launch's own W&B key, pasted where it would be stored and shown."""
    if launch.api_key is None:
        return
    key = launch.api_key.get_secret_value()
    overrides = "$.runSpec.overrides"
    stack: list[tuple[Any, str]] = [
        (launch.run_config, f"{overrides}.run_config"),
        (launch.files, f"{overrides}.files"),
        (launch.artifacts, f"{overrides}.artifacts"),
        ({**request, "Environment": _whole_variables(request)}, SAGEMAKER_PATH),
    ]
    while stack:
        value, path = stack.pop()
        if _holds(value, key):
            remedy = "remove it: the worker hands the key to the container"
            yield Problem(path, "holds the W&B API key", remedy)
        elif isinstance(value, Mapping):
            stack.extend((item, json_path(path, name)) for name, item in value.items())
        elif isinstance(value, list):
            stack.extend((item, json_path(path, i)) for i, item in enumerate(value))


def _whole_variables(request: Mapping[str, Any]) -> dict[str, Any]:
    """Without those cut into pieces, where a key may be cut as well: what they are made of is looked at instead."""
    environment = request.get("Environment", {})
    return {name: value for name, value in environment.items() if not is_serialised(name)}


def _holds(value: Any, key: str) -> bool:
    """In itself or as a name in it, which is then not named."""
    if isinstance(value, str):
        return key in value
    return isinstance(value, Mapping) and any(key in name for name in value)
