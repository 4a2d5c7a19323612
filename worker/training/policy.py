"""What the operator allows messages to ask for: whoever can send to the queue can run code with the given role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from worker.errors import Problem
from worker.launch.message import (
    JOB_PATH,
    SAGEMAKER_PATH,
    AlgorithmSource,
    CodeSource,
    ImageSource,
    JobSource,
    Launch,
    sagemaker_argument,
)
from worker.launch.strict_json import json_path
from worker.training.limits import DEFAULT_RUNTIME

POLICY_CODE = "LW-POLICY"

Globs = tuple[str, ...]
"""Shell patterns, case-sensitive; `*` also crosses `/`. None at all: anything is allowed."""

_LOCKED = "this worker locks the command (LAUNCH_LOCK_ENTRYPOINT or LAUNCH_SECURE_MODE)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Allow-lists; the default allows everything."""

    secure_mode: bool = False
    """As W&B documents it (wandb/sdk/launch/agent/config.py): a launch may override neither entrypoint nor image."""
    lock_entrypoint: bool = False
    """Refuse messages that choose the command or the Dockerfile; secure mode does so too."""
    container_key: bool = True
    """Containers get a W&B key. False: a launch that brings one of its own is refused."""
    roles: Globs = ()
    """Role ARNs."""
    images: Globs = ()
    """Images, algorithm names, and the evaluators of debugger and profiler rules."""
    instance_types: Globs = ()
    regions: Globs = ()
    git_hosts: Globs = ()
    subnets: Globs = ()
    security_groups: Globs = ()
    environment: Globs = ()
    """Names of variables that a message may set."""
    outputs: Globs = ()
    """S3 URIs that a job may write to."""
    max_instances: int | None = None
    max_runtime: int | None = None
    """Seconds."""

    def for_checked_message(self) -> Policy:
        """What is left to check once the message was held to all of it: a command that is set now comes from the
        source, and so does the image."""
        return replace(self, secure_mode=False, lock_entrypoint=False)


def check_policy(
    request: Mapping[str, Any], launch: Launch, policy: Policy, *, region: str
) -> tuple[Problem, ...]:
    """Everything in the request and the launch that `policy` does not allow. `region`: where the job will run."""
    return (
        *_check_names(request, launch, policy, region),
        *_check_amounts(request, policy),
        *(_check_command(request, launch) if policy.secure_mode or policy.lock_entrypoint else ()),
        *(_check_replaced_image(launch) if policy.secure_mode else ()),
        *(() if policy.container_key else _check_own_key(launch)),
    )


def _check_names(
    request: Mapping[str, Any], launch: Launch, policy: Policy, region: str
) -> Iterator[Problem]:
    resources, vpc = _object(request, "ResourceConfig"), _object(request, "VpcConfig")
    yield from _refused("role", policy.roles, [(("RoleArn",), request.get("RoleArn"))])
    yield from _refused("image", policy.images, _images(request))
    yield from _refused("instance type", policy.instance_types, _instance_types(request, resources))
    yield from _refused("Region", policy.regions, [(("region",), region)])
    yield from _refused("output location", policy.outputs, _outputs(request))
    if policy.subnets or policy.security_groups:
        yield from _check_vpc(vpc, policy)
    given = sagemaker_argument(launch.sagemaker, "Environment")
    names = [(("Environment", name), name) for name in given] if isinstance(given, dict) else []
    yield from _refused("environment variable", policy.environment, names)
    source = launch.source
    host = _git_host(source.uri) if isinstance(source, CodeSource) else ""
    if isinstance(source, CodeSource) and host and policy.git_hosts and not _matches(host, policy.git_hosts):
        path = JOB_PATH if source.job else "$.runSpec.uri"
        yield Problem(path, f"git host {host!r} is not allowed", _remedy(policy.git_hosts))


Named = tuple[tuple[str | int, ...], Any]
"""Where a value stands below the SageMaker arguments, and the value."""


def _refused(kind: str, allowed: Globs, values: Iterable[Named]) -> Iterator[Problem]:
    if not allowed:
        return
    for keys, value in values:
        if isinstance(value, str) and value and not _matches(value, allowed):
            path = json_path(SAGEMAKER_PATH, *keys)
            yield Problem(path, f"{kind} {value!r} is not allowed", _remedy(allowed))


def _images(request: Mapping[str, Any]) -> Iterator[Named]:
    for name in ("TrainingImage", "AlgorithmName"):
        yield ("AlgorithmSpecification", name), _object(request, "AlgorithmSpecification").get(name)
    for keys, rule in _rule_configurations(request):
        yield (*keys, "RuleEvaluatorImage"), rule.get("RuleEvaluatorImage")


def _instance_types(request: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[Named]:
    yield ("ResourceConfig", "InstanceType"), resources.get("InstanceType")
    for i, group in enumerate(_objects(resources.get("InstanceGroups"))):
        yield ("ResourceConfig", "InstanceGroups", i, "InstanceType"), group.get("InstanceType")
    for keys, rule in _rule_configurations(request):
        yield (*keys, "InstanceType"), rule.get("InstanceType")


def _outputs(request: Mapping[str, Any]) -> Iterator[Named]:
    """Every place in S3 that SageMaker writes to for a job."""
    yield ("CheckpointConfig", "S3Uri"), _object(request, "CheckpointConfig").get("S3Uri")
    for name in ("OutputDataConfig", "DebugHookConfig", "ProfilerConfig", "TensorBoardOutputConfig"):
        yield (name, "S3OutputPath"), _object(request, name).get("S3OutputPath")
    for keys, rule in _rule_configurations(request):
        yield (*keys, "S3OutputPath"), rule.get("S3OutputPath")


def _rule_configurations(
    request: Mapping[str, Any],
) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    """Debugger and profiler rules run images on instances of their own."""
    for name in ("DebugRuleConfigurations", "ProfilerRuleConfigurations"):
        for i, rule in enumerate(_objects(request.get(name))):
            yield (name, i), rule


def _check_vpc(vpc: Mapping[str, Any], policy: Policy) -> Iterator[Problem]:
    """A list of allowed networks also means: not without one."""
    for name, kind, allowed in (
        ("Subnets", "subnet", policy.subnets),
        ("SecurityGroupIds", "security group", policy.security_groups),
    ):
        given = vpc.get(name)
        values = given if isinstance(given, list) else []
        if allowed and not values:
            path = json_path(SAGEMAKER_PATH, "VpcConfig", name)
            yield Problem(path, f"a job without a {kind} is not allowed", _remedy(allowed))
        yield from _refused(kind, allowed, [(("VpcConfig", name, i), v) for i, v in enumerate(values)])


def _check_amounts(request: Mapping[str, Any], policy: Policy) -> Iterator[Problem]:
    count = instance_count(request)
    if policy.max_instances is not None and count > policy.max_instances:
        name = (
            "InstanceGroups" if _object(request, "ResourceConfig").get("InstanceGroups") else "InstanceCount"
        )
        path = f"{SAGEMAKER_PATH}.ResourceConfig.{name}"
        yield Problem(path, f"{count} instances are not allowed", f"use at most {policy.max_instances}")
    runtime = _object(request, "StoppingCondition").get("MaxRuntimeInSeconds", DEFAULT_RUNTIME)
    if policy.max_runtime is not None and isinstance(runtime, int) and runtime > policy.max_runtime:
        path = f"{SAGEMAKER_PATH}.StoppingCondition.MaxRuntimeInSeconds"
        yield Problem(path, f"{runtime} s are not allowed", f"set it to at most {policy.max_runtime}")


def _check_command(request: Mapping[str, Any], launch: Launch) -> Iterator[Problem]:
    """W&B's agent locks `entry_point` only; the other ways to choose the command are locked with it."""
    if launch.entry_point:
        yield Problem("$.runSpec.overrides.entry_point", _LOCKED, "remove it")
    elif _object(request, "AlgorithmSpecification").get("ContainerEntrypoint"):
        path = json_path(SAGEMAKER_PATH, "AlgorithmSpecification", "ContainerEntrypoint")
        yield Problem(path, _LOCKED, "remove it")
    if isinstance(launch.source, JobSource | CodeSource) and launch.source.dockerfile:
        yield Problem("$.runSpec.overrides.dockerfile", _LOCKED, "remove it")


def _check_replaced_image(launch: Launch) -> Iterator[Problem]:
    """W&B's configuration says that image overrides are refused; its agent lets them through."""
    algorithm = json_path(SAGEMAKER_PATH, "AlgorithmSpecification")
    match launch.source:
        case ImageSource(given_at=path):
            replaces = path != JOB_PATH
        case AlgorithmSource():
            path, replaces = json_path(algorithm, "AlgorithmName"), True
        case JobSource():
            path, replaces = json_path(algorithm, "TrainingImage"), _is_made_of_image(launch)
        case _:
            return
    if launch.job and replaces:
        what = f"replaces the image of {launch.job}, which this worker forbids (LAUNCH_SECURE_MODE)"
        yield Problem(path, what, "remove it, or launch the image without the job")


def _is_made_of_image(launch: Launch) -> bool:
    """A TrainingImage with more in it than `${image_uri}` is another one: `STRANGER/${image_uri}`."""
    algorithm = sagemaker_argument(launch.sagemaker, "AlgorithmSpecification")
    image = sagemaker_argument(algorithm, "TrainingImage") if isinstance(algorithm, dict) else None
    return isinstance(image, str) and image not in ("", "${image_uri}")


def _check_own_key(launch: Launch) -> Iterator[Problem]:
    if launch.api_key is not None:
        what = "this worker hands no W&B key to containers (LAUNCH_CONTAINER_API_KEY=none)"
        yield Problem("$.runSpec._wandb_api_key", what, "remove it, and let the image find its key")


def refused_instance_types(path: str, types: Sequence[str], policy: Policy) -> Iterator[Problem]:
    """Those of a list of instance types at `path` that `policy` does not allow."""
    allowed = policy.instance_types
    for i, name in enumerate(types):
        if allowed and not _matches(name, allowed):
            yield Problem(json_path(path, i), f"instance type {name!r} is not allowed", _remedy(allowed))


def instance_count(request: Mapping[str, Any]) -> int:
    """Instances of the job itself, over all its groups."""
    resources = _object(request, "ResourceConfig")
    groups = _objects(resources.get("InstanceGroups"))
    counts = [group.get("InstanceCount") for group in groups] or [resources.get("InstanceCount", 1)]
    return sum(count for count in counts if isinstance(count, int))


def _git_host(uri: str) -> str:
    """Host of `https://…`, `ssh://…` or `git@host:path`; "" for S3."""
    if uri.startswith("s3://"):
        return ""
    if "://" in uri:
        try:
            return urlsplit(uri).hostname or uri
        except ValueError:
            return uri
    return uri.partition(":")[0].rpartition("@")[2]


def _matches(value: str, globs: Globs) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)


def _remedy(allowed: Sequence[str]) -> str:
    return f"use one of {', '.join(allowed)}, or ask the operator of this worker"


def _object(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = request.get(name)
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
