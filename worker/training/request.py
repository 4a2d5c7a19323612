"""The CreateTrainingJob request of a launch: as W&B's own SageMaker runner builds it, wherever that is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import BadMessage, Problem
from worker.launch.environment import container_environment, overridden_names
from worker.launch.identity import training_job_name
from worker.launch.macros import launch_macros, substitute
from worker.launch.message import SAGEMAKER_PATH, AlgorithmSource, ImageSource, Launch, fold_argument
from worker.launch.strict_json import json_path, type_name

TOP_LEVEL = (
    "TrainingJobName",
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "Tags",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "DebugHookConfig",
    "DebugRuleConfigurations",
    "TensorBoardOutputConfig",
    "ExperimentConfig",
    "ProfilerConfig",
    "ProfilerRuleConfigurations",
    "Environment",
    "RetryStrategy",
    "RemoteDebugConfig",
    "InfraCheckConfig",
    "SessionChainingConfig",
)
"""CreateTrainingJob's parameters; a test holds the list to botocore's model."""

_BY_FOLDED_NAME = {fold_argument(name): name for name in TOP_LEVEL}
# Arguments to W&B's agent, not to SageMaker (wandb/sdk/launch/runner/sagemaker_runner.py pops them too).
_NOT_FOR_SAGEMAKER = frozenset({"ecrreponame", "region", "profile", "builder"})
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/.+", re.ASCII)
_NOT_IN_TAG = re.compile(r"[^\w .:/=+\-@]")
_REQUIRED = {
    "OutputDataConfig": 'add it: {"S3OutputPath": "s3://bucket/prefix"}',
    "ResourceConfig": 'add it: {"InstanceType": …, "InstanceCount": 1, "VolumeSizeInGB": …}',
    "StoppingCondition": 'add it: {"MaxRuntimeInSeconds": …}',
}


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """The AWS account the worker submits to."""

    account: str
    region: str
    partition: str = "aws"


def build_request(
    launch: Launch,
    *,
    image: str | None,
    account: AccountFacts,
    base_url: str,
    deployment: str,
    macros: Mapping[str, str],
) -> dict[str, Any]:
    """The request of attempt 1, without WANDB_API_KEY; raises `BadMessage` with every problem.

    `image` replaces the launch's own: a built or pinned one. Only a TrainingImage in the message beats it."""
    request, problems = draft_request(
        launch, image=image, account=account, base_url=base_url, deployment=deployment, macros=macros
    )
    if problems:
        raise BadMessage(problems)
    return request


def draft_request(
    launch: Launch,
    *,
    image: str | None,
    account: AccountFacts,
    base_url: str,
    deployment: str,
    macros: Mapping[str, str],
) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """As `build_request`, but the request as far as it goes and its problems, for a caller that has more to check."""
    problems: list[Problem] = []
    given = _canonical(launch.sagemaker)
    used_image = _image(launch, given, image, macros, problems)
    # Macros come first: everything below reads substituted arguments only.
    given = substitute(given, launch_macros(launch, image_uri=used_image, extra=macros))
    _check_region(launch, account, problems)
    for name, remedy in _REQUIRED.items():
        if name not in given:
            problems.append(_problem(name, what="is missing", remedy=remedy))
    computed_env = container_environment(launch, base_url=base_url, image=used_image)
    request = {
        **given,
        "TrainingJobName": _job_name(launch, given, problems),
        "AlgorithmSpecification": _algorithm(launch, given, used_image, problems),
        "RoleArn": _role_arn(given.get("RoleArn"), account, problems),
        "Environment": _environment(given, computed_env, problems),
        "Tags": _tags(launch, given, deployment, problems),
    }
    return {name: value for name, value in request.items() if value is not None}, tuple(problems)


def with_api_key(request: Mapping[str, Any], api_key: str) -> dict[str, Any]:
    """The request with WANDB_API_KEY, made at the submit and never kept."""
    return {**request, "Environment": {**request.get("Environment", {}), "WANDB_API_KEY": api_key}}


def with_job_name(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same request for another attempt."""
    return {**request, "TrainingJobName": name}


def _canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Known arguments under CreateTrainingJob's spelling, nulls dropped; unknown ones stay, for limits to name."""
    canonical: dict[str, Any] = {}
    for key, value in arguments.items():
        folded = fold_argument(key)
        if value is None or folded in _NOT_FOR_SAGEMAKER:
            continue
        name = _BY_FOLDED_NAME.get(folded, key)
        if name == key or name not in canonical:
            canonical[name] = _without_nulls(value)
    return canonical


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _image(
    launch: Launch,
    given: Mapping[str, Any],
    image: str | None,
    macros: Mapping[str, str],
    problems: list[Problem],
) -> str:
    """The image to run: TrainingImage of the message, else `image`, else the launch's own; "" for an algorithm."""
    if isinstance(launch.source, AlgorithmSource):
        return ""
    own = image or (launch.source.image if isinstance(launch.source, ImageSource) else "")
    algorithm = given.get("AlgorithmSpecification")
    training_image = algorithm.get("TrainingImage") if isinstance(algorithm, dict) else None
    if isinstance(training_image, str) and training_image:
        own = substitute(training_image, launch_macros(launch, image_uri=own, extra=macros))
    if not own:
        problems.append(
            Problem(
                "$.runSpec", "no image is known for it", "name an image (docker.docker_image), or build one"
            )
        )
    return own


def _check_region(launch: Launch, account: AccountFacts, problems: list[Problem]) -> None:
    """W&B's agent drops `region` unread; a job in another Region than asked for is worse than none."""
    region = next((v for k, v in launch.sagemaker.items() if fold_argument(k) == "region"), None)
    if region and region != account.region:
        what = f"this worker submits to {account.region} only"
        problems.append(_problem("region", what=what, remedy="remove it, or use a worker of that Region"))


def _job_name(launch: Launch, given: Mapping[str, Any], problems: list[Problem]) -> str:
    requested = given.get("TrainingJobName", "")
    if not isinstance(requested, str):
        problems.append(_wrong_type(requested, "a string", "TrainingJobName"))
        requested = ""
    return training_job_name(requested or launch.run.run_id, launch.launch_id)


def _algorithm(
    launch: Launch, given: Mapping[str, Any], image: str, problems: list[Problem]
) -> dict[str, Any]:
    algorithm = given.get("AlgorithmSpecification", {})
    if not isinstance(algorithm, dict):
        problems.append(_wrong_type(algorithm, "an object", "AlgorithmSpecification"))
        algorithm = {}
    specification = {"TrainingInputMode": "File", **algorithm}
    if isinstance(launch.source, AlgorithmSource):
        return specification  # an algorithm brings its own image and entrypoint
    if image:
        specification["TrainingImage"] = image
    if launch.entry_point:
        specification["ContainerEntrypoint"] = list(launch.entry_point)
    if launch.args:
        specification["ContainerArguments"] = list(launch.args)
    return specification


def _role_arn(value: Any, account: AccountFacts, problems: list[Problem]) -> str | None:
    """A role ARN of any partition as it is; a role name becomes a role of the worker's own account."""
    remedy = "give the ARN or the name of the role that SageMaker runs the job with"
    if value is None or value == "":
        problems.append(_problem("RoleArn", what="is missing", remedy=remedy))
        return None
    if not isinstance(value, str):
        problems.append(_wrong_type(value, "a string", "RoleArn"))
        return None
    if not value.startswith("arn:"):
        return f"arn:{account.partition}:iam::{account.account}:role/{value.lstrip('/')}"
    if not _ROLE_ARN.fullmatch(value):
        problems.append(_problem("RoleArn", what="is not the ARN of an IAM role", remedy=remedy))
    return value


def _environment(
    given: Mapping[str, Any], computed: Mapping[str, str], problems: list[Problem]
) -> dict[str, str]:
    """The message's variables beside the worker's, which nothing in a message can replace."""
    variables = given.get("Environment", {})
    if not isinstance(variables, dict):
        problems.append(_wrong_type(variables, "an object", "Environment"))
        return dict(computed)
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in variables.items()}
    for name in overridden_names(texts, computed):
        what = f"{name} is set by the worker and cannot be overridden by a message"
        remedy = "put it in runSpec._wandb_api_key" if name == "WANDB_API_KEY" else "remove it"
        problems.append(_problem("Environment", name, what=what, remedy=remedy))
    return {**texts, **computed}


def _tags(
    launch: Launch, given: Mapping[str, Any], deployment: str, problems: list[Problem]
) -> list[dict[str, Any]]:
    """The message's tags and the three by which the worker finds its jobs again."""
    ours = {
        "WandbRunId": _NOT_IN_TAG.sub("_", launch.run.run_id),  # fewer characters than W&B allows in a run id
        "LaunchId": launch.launch_id,
        "LaunchWorker": deployment,
    }
    tags = given.get("Tags", [])
    if not isinstance(tags, list):
        problems.append(_wrong_type(tags, "a list", "Tags"))
        tags = []
    for i, tag in enumerate(tags):
        if isinstance(tag, dict) and tag.get("Key") in list(ours):
            problems.append(_problem("Tags", i, what=f"{tag['Key']} is the worker's tag", remedy="remove it"))
    return [*tags, *({"Key": key, "Value": value} for key, value in ours.items())]


def _wrong_type(value: object, wanted: str, *keys: str | int) -> Problem:
    return _problem(*keys, what=f"should be {wanted}, not {type_name(value)}", remedy=f"write it as {wanted}")


def _problem(*keys: str | int, what: str, remedy: str) -> Problem:
    return Problem(json_path(SAGEMAKER_PATH, *keys), what, remedy)
