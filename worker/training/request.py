"""The CreateTrainingJob request of a launch: as W&B's own SageMaker runner builds it, wherever that is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import BadMessage, Problem
from worker.launch.environment import container_environment, joined_environment, overridden_names
from worker.launch.identity import training_job_name
from worker.launch.macros import launch_macros, substitute
from worker.launch.message import SAGEMAKER_PATH, AlgorithmSource, ImageSource, Launch
from worker.launch.strict_json import json_path, type_name
from worker.training.arguments import Arguments, read_arguments

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


@dataclass(frozen=True, slots=True)
class Draft:
    """A request as far as it goes, for a caller that has more to check."""

    request: dict[str, Any]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    written: Mapping[str, str]
    """JSON paths of the request → those that the sender wrote, where they differ in spelling."""


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
    draft = draft_request(
        launch, image=image, account=account, base_url=base_url, deployment=deployment, macros=macros
    )
    if draft.problems:
        raise BadMessage(draft.problems)
    return draft.request


def draft_request(
    launch: Launch,
    *,
    image: str | None,
    account: AccountFacts,
    base_url: str,
    deployment: str,
    macros: Mapping[str, str],
) -> Draft:
    """As `build_request`, but it does not raise."""
    problems: list[Problem] = []
    arguments = read_arguments(launch.sagemaker)
    used_image = _image(launch, arguments.values, image, macros, problems)
    # Macros come first: everything below reads substituted arguments only.
    known = launch_macros(launch, image_uri=used_image, extra=macros)
    given = substitute(arguments.values, known)
    _check_agent_arguments(substitute(arguments.for_agent, known), account, problems)
    for name, remedy in _REQUIRED.items():
        if name not in given:
            problems.append(_problem(name, what="is missing", remedy=remedy))
    computed_env = container_environment(launch, base_url=base_url, image=used_image)
    request = {
        **given,
        "TrainingJobName": _job_name(launch, given, problems),
        "AlgorithmSpecification": _algorithm(launch, given, used_image, problems),
        "RoleArn": _role_arn(given.get("RoleArn"), account, problems),
        "HyperParameters": _texts(given.get("HyperParameters")),
        "Environment": _environment(given, computed_env, problems),
        "Tags": _tags(launch, given, deployment, problems),
    }
    return Draft(
        request={name: value for name, value in request.items() if value is not None},
        problems=tuple(problems),
        warnings=_warnings(launch, arguments, given),
        written=arguments.written,
    )


def with_api_key(request: Mapping[str, Any], api_key: str) -> dict[str, Any]:
    """The request with WANDB_API_KEY, made at the submit and never kept."""
    return {**request, "Environment": {**request.get("Environment", {}), "WANDB_API_KEY": api_key}}


def with_job_name(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same request for another attempt."""
    return {**request, "TrainingJobName": name}


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


def _check_agent_arguments(given: Mapping[str, Any], account: AccountFacts, problems: list[Problem]) -> None:
    """W&B's agent drops `region` and `profile` unread; a job elsewhere than asked for is worse than none."""
    if (region := given.get("region")) and region != account.region:
        what = f"this worker submits to {account.region} only"
        problems.append(_problem("region", what=what, remedy="remove it, or use a worker of that Region"))
    if (profile := given.get("profile")) and profile != "default":
        what = "this worker submits with its own credentials, not with those of a profile"
        problems.append(_problem("profile", what=what, remedy="remove it, or use a worker of that account"))


def _warnings(launch: Launch, arguments: Arguments, given: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What the sender should know of a request that is valid."""
    warnings = [*launch.warnings, *arguments.doubles]
    if isinstance(launch.source, AlgorithmSource):
        for name, value in (("args", launch.args), ("entry_point", launch.entry_point)):
            if value:
                what = "is ignored: an algorithm brings its own command"
                warnings.append(Problem(f"$.runSpec.overrides.{name}", what, "use HyperParameters"))
    if given.get("EnableNetworkIsolation") is True:
        what = "keeps the container from W&B: a run inside of it cannot report"
        warnings.append(
            _problem("EnableNetworkIsolation", what=what, remedy="read the log in the companion run")
        )
    return tuple(warnings)


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
    if image and isinstance(
        specification.get("TrainingImage", ""), str
    ):  # else limits names what stands there
        specification["TrainingImage"] = image
    if command := launch.entry_point or launch.job_entry_point:
        specification["ContainerEntrypoint"] = list(command)
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
        name = value.lstrip("/").removeprefix("role/")
        return f"arn:{account.partition}:iam::{account.account}:role/{name}"
    if not _ROLE_ARN.fullmatch(value):
        if "${" in value:
            remedy = "only the macros of the launch and LAUNCH_MACRO_* of the worker are substituted"
        problems.append(_problem("RoleArn", what="is not the ARN of an IAM role", remedy=remedy))
    return value


def _environment(
    given: Mapping[str, Any], computed: Mapping[str, str], problems: list[Problem]
) -> dict[str, str]:
    """The message's variables beside the worker's."""
    variables = given.get("Environment", {})
    if not isinstance(variables, dict):
        problems.append(_wrong_type(variables, "an object", "Environment"))
        return dict(computed)
    texts = _texts(variables)
    for name in overridden_names(texts, computed):
        what = f"{name} is set by the worker and cannot be overridden by a message"
        remedy = "put it in runSpec._wandb_api_key" if name == "WANDB_API_KEY" else "remove it"
        problems.append(_problem("Environment", name, what=what, remedy=remedy))
    return joined_environment(texts, computed)


def _texts(values: Any) -> Any:
    """The values of a map as SageMaker takes them: text as it is, the rest as JSON (`true`, `0.1`)."""
    if not isinstance(values, dict):
        return values
    return {name: item if isinstance(item, str) else json.dumps(item) for name, item in values.items()}


def worker_tags(run_id: str, launch_id: str, deployment: str) -> dict[str, str]:
    """The tags by which the worker finds its jobs again."""
    return {
        "WandbRunId": _NOT_IN_TAG.sub("_", run_id),  # fewer characters than W&B allows in a run id
        "LaunchId": launch_id,
        "LaunchWorker": deployment,
    }


def _tags(
    launch: Launch, given: Mapping[str, Any], deployment: str, problems: list[Problem]
) -> list[dict[str, Any]]:
    """The message's tags and the three by which the worker finds its jobs again."""
    ours = worker_tags(launch.run.run_id, launch.launch_id, deployment)
    tags = given.get("Tags", [])
    if not isinstance(tags, list):
        problems.append(_wrong_type(tags, "a list", "Tags"))
        tags = []
    own = [{"Key": key, "Value": value} for key, value in ours.items()]
    for i, tag in enumerate(tags):
        if isinstance(tag, dict) and tag.get("Key") in list(ours) and tag not in own:
            problems.append(_problem("Tags", i, what=f"{tag['Key']} is the worker's tag", remedy="remove it"))
    given_keys = [tag.get("Key") for tag in tags if isinstance(tag, dict)]
    return [*tags, *(tag for tag in own if tag["Key"] not in given_keys)]


def _wrong_type(value: object, wanted: str, *keys: str | int) -> Problem:
    return _problem(*keys, what=f"should be {wanted}, not {type_name(value)}", remedy=f"write it as {wanted}")


def _problem(*keys: str | int, what: str, remedy: str) -> Problem:
    return Problem(json_path(SAGEMAKER_PATH, *keys), what, remedy)
