"""SageMaker's limits, checked before any call: all problems at once instead of one ValidationException a try.

The limits are those of botocore's own model of CreateTrainingJob, which carries AWS's lengths, sizes, patterns and
required members. botocore's validator checks types, required members and lower bounds; the rest is checked here
from the same model, and what the API documentation adds to it in `_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from difflib import get_close_matches
from functools import cache
from itertools import chain, islice
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator

from worker.errors import MAX_PROBLEMS, Problem
from worker.launch.builder_arguments import is_image_reference
from worker.launch.message import SAGEMAKER_PATH, fold_argument
from worker.launch.strict_json import json_path, type_name
from worker.training.create_training_job import create_training_job

MAX_VARIABLES = 100
"""Entries of Environment, WANDB_API_KEY among them."""
MAX_TAGS = 50
_MAX_RUNTIME = 28 * 24 * 3600
DEFAULT_RUNTIME = 24 * 3600
"""Seconds a job runs at most when it does not say (CreateTrainingJob, StoppingCondition)."""
_RANGES = {"integer": 2**31 - 1, "long": 2**63 - 1}
_TYPES: dict[str, tuple[type, str]] = {
    "structure": (dict, "an object"),
    "map": (dict, "an object"),
    "list": (list, "a list"),
    "string": (str, "a string"),
    "boolean": (bool, "a boolean"),
    "integer": (int, "an integer"),
    "long": (int, "an integer"),
}
# Lists of values that grow with every new machine: SageMaker knows them better than an installed botocore.
_OPEN_ENUM = re.compile(r".*InstanceType")
_ECR_HOST = re.compile(
    r"\d{12}\.dkr[.-]ecr(-fips)?\.[a-z0-9-]+\.(amazonaws\.com(\.cn)?|amazonaws\.eu|on\.aws"
    r"|on\.amazonwebservices\.com\.cn|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)",
    re.ASCII,
)
_REMEDIES = {
    "WANDB_ARTIFACTS": "override fewer artifacts: W&B's SDK reads this variable in one piece",
    "WANDB_NAME": "shorten the run's name",
    "ContainerArguments": "shorten it: long values go into overrides.run_config",
}


def check_limits(request: Mapping[str, Any], *, with_key: bool = True) -> tuple[Problem, ...]:
    """Everything AWS would refuse in the request, with JSON paths into the message's SageMaker arguments.

    `with_key`: room is kept for WANDB_API_KEY, which joins the Environment at the submit. No value is quoted: it may be
    a secret."""
    complete = _with_room_for_key(request) if with_key else request
    found = chain(_check(complete, create_training_job(), SAGEMAKER_PATH), _rules(complete))
    problems = list(islice(found, MAX_PROBLEMS))
    if not problems and (report := ParamValidator().validate(complete, create_training_job())).has_errors():
        what = "; ".join(line.split(", value:")[0] for line in report.generate_report().splitlines())
        problems.append(Problem(SAGEMAKER_PATH, what, "correct it"))
    return tuple(problems)


def _with_room_for_key(request: Mapping[str, Any]) -> dict[str, Any]:
    environment = request.get("Environment", {})
    if not isinstance(environment, Mapping):
        return dict(request)
    return {**request, "Environment": {"WANDB_API_KEY": "", **environment}}


def _check(value: Any, shape: Shape, path: str) -> Iterator[Problem]:
    """Hold `value` and everything in it to the shape; types of newer models are left to botocore's validator."""
    if shape.type_name not in _TYPES:
        return
    wanted, noun = _TYPES[shape.type_name]
    fits = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
    if not fits:
        yield Problem(path, f"should be {noun}, not {type_name(value)}", f"write it as {noun}")
    elif isinstance(shape, StructureShape):
        yield from _check_members(value, shape, path)
    elif isinstance(shape, MapShape):
        yield from _check_size(len(value), shape, path, "entries")
        for key, item in () if _is_too_large(value, shape) else value.items():
            where = json_path(path, key)
            yield from _check_text(key, shape.key, where, "its name")
            yield from _check(item, shape.value, where)
    elif isinstance(shape, ListShape):
        yield from _check_size(len(value), shape, path, "items")
        for i, item in enumerate(() if _is_too_large(value, shape) else value):
            yield from _check(item, shape.member, json_path(path, i))
    elif isinstance(shape, StringShape):
        yield from _check_text(value, shape, path)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from _check_range(value, shape, path)


def _is_too_large(value: Sized, shape: Shape) -> bool:
    """Then nobody looks at what is in it: it has to become another one."""
    limit = shape.metadata.get("max")
    return limit is not None and len(value) > int(limit)


def _check_members(value: Mapping[str, Any], shape: StructureShape, path: str) -> Iterator[Problem]:
    for name in shape.required_members:
        if name not in value:
            yield Problem(json_path(path, name), "is missing", "add it: CreateTrainingJob requires it")
    for name, item in value.items():
        if name in shape.members:
            yield from _check(item, shape.members[name], json_path(path, name))
        else:
            what = f"{shape.name} has no such parameter"
            yield Problem(json_path(path, name), what, _nearest(name, shape))


def _nearest(name: str, shape: StructureShape) -> str:
    folded = {fold_argument(member): member for member in shape.members}
    near = get_close_matches(fold_argument(name), folded, n=1)
    return f"did you mean {folded[near[0]]}?" if near else f"use one of {', '.join(shape.members)}"


def _check_size(size: int, shape: Shape, path: str, unit: str, subject: str = "") -> Iterator[Problem]:
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max")
    has = f"{subject} has".lstrip()
    if size < low:
        yield Problem(path, f"{has} {size} {unit}, the least is {low}", "give more, or leave it out")
    if high is not None and size > high:
        name = path.rpartition(".")[2].partition("[")[0]
        yield Problem(
            path, f"{has} {size} {unit}, SageMaker's limit is {high}", _REMEDIES.get(name, "shorten it")
        )


def _check_text(text: str, shape: Shape, path: str, subject: str = "") -> Iterator[Problem]:
    problems = list(_check_size(len(text), shape, path, "characters", subject))
    yield from problems
    if problems:
        return  # patterns see only text of bounded length, which bounds their time
    pattern = shape.metadata.get("pattern")
    regex = python_pattern(pattern) if pattern else None
    if regex and not regex.fullmatch(text):
        yield Problem(path, f"{subject} does not match {pattern}".lstrip(), _pattern_remedy(text))
    values = getattr(shape, "enum", [])
    if values and text not in values and not _OPEN_ENUM.fullmatch(shape.name):
        yield Problem(path, f"should be one of {', '.join(values)}", "choose one of these")


def _pattern_remedy(text: str) -> str:
    if "${" in text:
        return "only the macros of the launch and LAUNCH_MACRO_* of the worker are substituted"
    return "remove the line breaks" if "\n" in text or "\r" in text else "correct it"


def _check_range(number: int, shape: Shape, path: str) -> Iterator[Problem]:
    low = shape.metadata.get("min", -_RANGES[shape.type_name] - 1)
    high = shape.metadata.get("max", _RANGES[shape.type_name])
    if not low <= number <= high:
        yield Problem(path, f"should be between {low} and {high}", "choose a value in that range")


@cache
def python_pattern(pattern: str) -> re.Pattern[str] | None:
    """AWS writes Java patterns; the Unicode classes in them exist in `re` under other names only.

    None: a newer model has a pattern that `re` cannot express; SageMaker checks that one itself."""
    separators = "\\u0020\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
    classes = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": separators, r"\p{Alnum}": "a-zA-Z0-9"}
    for java, python in classes.items():
        pattern = pattern.replace(java, python)
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _rules(request: Mapping[str, Any]) -> Iterator[Problem]:
    """What the API documentation says and the model does not (parts of a wrong type are reported already)."""
    yield from _image_rules(_object(request, "AlgorithmSpecification"))
    yield from _time_rules(request, _object(request, "StoppingCondition"))
    yield from _machine_rules(_object(request, "ResourceConfig"))
    yield from _warm_pool_rules(request, _object(request, "ResourceConfig"))
    yield from _channel_rules(request)
    yield from _tag_rules(request.get("Tags"))


def _image_rules(algorithm: Mapping[str, Any]) -> Iterator[Problem]:
    path = f"{SAGEMAKER_PATH}.AlgorithmSpecification"
    image, name = algorithm.get("TrainingImage"), algorithm.get("AlgorithmName")
    if image and name and isinstance(name, str):
        yield Problem(path, "has both AlgorithmName and TrainingImage", "give one of them")
    if not image and not name:
        yield Problem(path, "has neither AlgorithmName nor TrainingImage", "give one of them")
    if not image or not isinstance(image, str):
        return
    if not is_image_reference(image):
        yield Problem(f"{path}.TrainingImage", "is not the name of an image", _image_remedy(image))
    elif "TrainingImageConfig" not in algorithm and not _is_pullable(image):
        what = "is not in Amazon ECR, the only registry SageMaker pulls from without TrainingImageConfig"
        yield Problem(f"{path}.TrainingImage", what, "push the image to ECR and name it there")


def _image_remedy(image: str) -> str:
    if "${" in image:
        return "macros are substituted in resource_args only, and only those of the launch and LAUNCH_MACRO_*"
    return "write it as HOST/REPOSITORY:TAG, the repository in lower case"


def _is_pullable(image: str) -> bool:
    """An ECR image, or one on a host that no public name resolves to (the local stack's registry)."""
    host, slash, _ = image.partition("/")
    if not slash:
        return False
    name = host.partition(":")[0]
    is_private = name in {"localhost", "127.0.0.1"} or (":" in host and "." not in name)
    return is_private or _ECR_HOST.fullmatch(host) is not None


def _time_rules(request: Mapping[str, Any], stopping: Mapping[str, Any]) -> Iterator[Problem]:
    path = f"{SAGEMAKER_PATH}.StoppingCondition"
    runtime = stopping.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME)
    wait = stopping.get("MaxWaitTimeInSeconds")
    if isinstance(runtime, int) and runtime > _MAX_RUNTIME:
        what = f"is longer than SageMaker's 28 days ({_MAX_RUNTIME} s)"
        yield Problem(f"{path}.MaxRuntimeInSeconds", what, "shorten it and use checkpoints")
    is_spot = request.get("EnableManagedSpotTraining")
    if wait is not None and is_spot in (None, False):
        what = "is for spot training only"  # AWS refuses it: sagify issue 111
        remedy = "remove it, or set EnableManagedSpotTraining to true"
        yield Problem(f"{path}.MaxWaitTimeInSeconds", what, remedy)
    if is_spot is not True or not isinstance(runtime, int):
        return
    if wait is None:
        what = "is missing, and spot training needs it"
        yield Problem(f"{path}.MaxWaitTimeInSeconds", what, f"set it to at least {runtime}")
    elif isinstance(wait, int) and wait < runtime:
        what = "is shorter than MaxRuntimeInSeconds, and it counts waiting and running together"
        yield Problem(f"{path}.MaxWaitTimeInSeconds", what, f"set it to at least {runtime}")


def _machine_rules(resources: Mapping[str, Any]) -> Iterator[Problem]:
    path = f"{SAGEMAKER_PATH}.ResourceConfig"
    single = [name for name in ("InstanceType", "InstanceCount") if name in resources]
    if resources.get("InstanceGroups"):
        for name in single:
            yield Problem(f"{path}.{name}", "cannot stand beside InstanceGroups", "remove one of them")
    elif resources:
        for name in ("InstanceType", "InstanceCount"):
            if name not in single:
                yield Problem(f"{path}.{name}", "is missing", "add it, or use InstanceGroups")
        if resources.get("InstanceCount") == 0:
            yield Problem(f"{path}.InstanceCount", "is 0", "set it to 1 or more")
    for i, group in enumerate(_objects(resources.get("InstanceGroups"))):
        if group.get("InstanceCount") == 0:
            yield Problem(f"{path}.InstanceGroups[{i}].InstanceCount", "is 0", "set it to 1 or more")
    yield from _twice(resources.get("InstanceGroups"), "InstanceGroupName", f"{path}.InstanceGroups")


def _warm_pool_rules(request: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[Problem]:
    """SageMaker guide, managed warm pools, considerations."""
    if not resources.get("KeepAlivePeriodInSeconds"):
        return
    path = f"{SAGEMAKER_PATH}.ResourceConfig.KeepAlivePeriodInSeconds"
    if request.get("EnableManagedSpotTraining") is True:
        yield Problem(path, "cannot be used with spot training", "remove one of them")
    elif resources.get("InstanceGroups"):
        yield Problem(path, "cannot be used with InstanceGroups", "remove one of them")


def _channel_rules(request: Mapping[str, Any]) -> Iterator[Problem]:
    path = f"{SAGEMAKER_PATH}.InputDataConfig"
    yield from _twice(request.get("InputDataConfig"), "ChannelName", path)
    groups = {
        group.get("InstanceGroupName")
        for group in _objects(_object(request, "ResourceConfig").get("InstanceGroups"))
        if isinstance(group.get("InstanceGroupName"), str)
    }
    for i, channel in enumerate(_objects(request.get("InputDataConfig"))):
        names = _object(_object(channel, "DataSource"), "S3DataSource").get("InstanceGroupNames")
        for j, name in enumerate(names if isinstance(names, list) else ()):
            if isinstance(name, str) and name not in groups:
                where = f"{path}[{i}].DataSource.S3DataSource.InstanceGroupNames[{j}]"
                yield Problem(where, "is no group of ResourceConfig.InstanceGroups", "name one of them")


def _twice(items: Any, name: str, path: str) -> Iterator[Problem]:
    """Items of a list that share what has to be their own."""
    seen: set[str] = set()
    for i, item in enumerate(items if isinstance(items, list) else ()):
        value = item.get(name) if isinstance(item, dict) else None
        if isinstance(value, str):
            if value in seen:
                yield Problem(f"{path}[{i}].{name}", f"{value!r} is given twice", "give each name once")
            seen.add(value)


def _tag_rules(tags: Any) -> Iterator[Problem]:
    path = f"{SAGEMAKER_PATH}.Tags"
    yield from _twice(tags, "Key", path)
    for i, tag in enumerate(tags if isinstance(tags, list) else ()):
        key = tag.get("Key") if isinstance(tag, dict) else None
        if isinstance(key, str) and key.lower().startswith("aws:"):
            yield Problem(f"{path}[{i}].Key", "starts with aws:, which is reserved", "choose another key")


def _object(request: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = request.get(name)
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The items of a list; one that is no object as an empty one, so that positions stay."""
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []
