"""A message's SageMaker arguments under CreateTrainingJob's own spelling, at every depth.

W&B's runner turns snake case into CreateTrainingJob's names at the top level, for some of its steps. Here
`resource_config: {instance_type: …}` and `ResourceConfig: {InstanceType: …}` are the same, wherever the model has a
name. Keys that belong to the user (variables, hyperparameters) stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from worker.errors import Problem
from worker.launch.message import SAGEMAKER_PATH, fold_argument
from worker.launch.strict_json import json_path
from worker.training.create_training_job import create_training_job

# Arguments to W&B's agent, not to SageMaker (wandb/sdk/launch/runner/sagemaker_runner.py takes them out too).
_NOT_FOR_SAGEMAKER = {name.lower(): name for name in ("EcrRepoName", "region", "profile", "builder")}

_MAX_PATH = 2_000
"""Characters of a path that is translated; names of parameters are shorter."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a message gives to CreateTrainingJob; macros are not substituted."""

    values: Mapping[str, Any]
    """Known names in the model's spelling, no nulls; unknown ones stay, for limits to name."""
    for_agent: Mapping[str, Any]
    """`EcrRepoName`, `region`, `profile`, `builder`."""
    written: Mapping[str, str]
    """JSON path of each renamed argument → the path that its sender wrote."""
    doubles: tuple[Problem, ...]
    """One argument in two spellings with two values: the exact spelling counts, else the first."""


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """Spell and sort the arguments of a message."""
    for_agent: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    speller = _Speller()
    for key, value in given.items():
        own = _NOT_FOR_SAGEMAKER.get(fold_argument(key))
        if own is None:
            rest[key] = value
        elif value is not None and (key == own or own not in for_agent):
            for_agent[own] = value
            speller.written[json_path(SAGEMAKER_PATH, own)] = json_path(SAGEMAKER_PATH, key)
    values = speller.structure(rest, create_training_job(), SAGEMAKER_PATH, SAGEMAKER_PATH)
    return Arguments(values, for_agent, speller.written, tuple(speller.doubles))


class _Speller:
    """One walk over the arguments. `path` is in the model's spelling, `origin` in the sender's."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.doubles: list[Problem] = []

    def structure(
        self, given: Mapping[str, Any], shape: StructureShape, path: str, origin: str
    ) -> dict[str, Any]:
        names = _folded_names(shape)
        spelled: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for key in sorted(given, key=lambda key: key not in shape.members):  # the exact spelling comes first
            if given[key] is None:
                continue
            name = key if key in shape.members else names.get(fold_argument(key), key)
            member, here, there = shape.members.get(name), json_path(path, name), json_path(origin, key)
            if name in spelled:
                if _Speller().value(given[key], member, here, there) != spelled[name]:
                    what = f"is ignored: {origins[name]} is the same argument and has another value"
                    self.doubles.append(Problem(there, what, "give one of them"))
                continue
            spelled[name], origins[name] = self.value(given[key], member, here, there), there
            if here != there:
                self.written[here] = there
        return spelled

    def value(self, given: Any, shape: Shape | None, path: str, origin: str) -> Any:
        if isinstance(given, dict):
            if isinstance(shape, StructureShape):
                return self.structure(given, shape, path, origin)
            inner = shape.value if isinstance(shape, MapShape) else None
            return {
                key: self.value(item, inner, json_path(path, key), json_path(origin, key))
                for key, item in given.items()
                if item is not None
            }
        if isinstance(given, list):
            inner = shape.member if isinstance(shape, ListShape) else None
            return [
                self.value(item, inner, json_path(path, i), json_path(origin, i))
                for i, item in enumerate(given)
            ]
        return given


def where_written(path: str, written: Mapping[str, str]) -> str:
    """`path` as the sender of the message spelled it."""
    if len(path) > _MAX_PATH:
        return path
    ends = [len(path), *(i for i in range(len(path) - 1, 0, -1) if path[i] in ".[")]
    nearest = next((path[:end] for end in ends if path[:end] in written), "")
    return written[nearest] + path.removeprefix(nearest) if nearest else path


def _folded_names(shape: StructureShape) -> dict[str, str]:
    return {fold_argument(name): name for name in shape.members}
