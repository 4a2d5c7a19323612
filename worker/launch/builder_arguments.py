"""`resource_args.sagemaker.builder`: on which image the queue wants code to be built. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import Problem
from worker.launch.strict_json import json_path, type_name

# As W&B's agent checks it (wandb/sdk/launch/builder/build.py): it becomes a line of a Dockerfile.
_IMAGE = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._\-]*)(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_REMEDY = "write it as a Docker image reference, for example nvidia/cuda:12.4.1-runtime-ubuntu22.04"


@dataclass(frozen=True, slots=True)
class BuilderArguments:
    """Base images of generated Dockerfiles; empty: the worker's own."""

    accelerator: str = ""
    """`accelerator.base_image`, or by its older name `cuda.base_image`: gets a Python if it has none."""
    base_image: str = ""
    """`base_image`: has a Python."""


def builder_arguments(
    sagemaker: Mapping[str, Any], path: str
) -> tuple[BuilderArguments, tuple[Problem, ...]]:
    """The arguments in `sagemaker`, which stands at `path` of the message, and what is wrong with them."""
    problems: list[Problem] = []
    builder = _object(sagemaker.get("builder"), json_path(path, "builder"), problems)
    found = {}
    for name in ("accelerator", "cuda"):
        part = _object(builder.get(name), json_path(path, "builder", name), problems)
        found[name] = _image(part.get("base_image"), json_path(path, "builder", name, "base_image"), problems)
    base = _image(builder.get("base_image"), json_path(path, "builder", "base_image"), problems)
    return BuilderArguments(found["accelerator"] or found["cuda"], base), tuple(problems)


def is_image_reference(text: str) -> bool:
    """Docker takes it for the name of an image: host, path, tag and digest are of the right form."""
    return _IMAGE.fullmatch(text) is not None


def _object(value: Any, path: str, problems: list[Problem]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(
            Problem(path, f"should be an object, not {type_name(value)}", "write it as an object")
        )
        return {}
    return value


def _image(value: Any, path: str, problems: list[Problem]) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        problems.append(Problem(path, f"should be a string, not {type_name(value)}", _REMEDY))
        return ""
    if not is_image_reference(value):
        problems.append(Problem(path, "is not the reference of an image", _REMEDY))
        return ""
    return value
