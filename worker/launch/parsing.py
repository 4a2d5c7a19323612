"""From an SQS body to a message whose fields are valid one by one, or to all that is wrong with them."""

from __future__ import annotations

import copy
from difflib import get_close_matches
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from worker.errors import BadMessage, Problem
from worker.launch.schema import LaunchMessage
from worker.launch.strict_json import json_path, load_json, type_name

_MAX_SLIPS = 10
"""Unknown keys that are looked at: one slip is a slip, a hundred are something else."""
_STAND_IN = "unreadable"
STAND_IN_IMAGE = f"000000000000.dkr.ecr.us-east-1.amazonaws.com/{_STAND_IN}"
"""In place of an image that is not known, so that the rest can be checked."""
_NAMES_A_SOURCE = ("docker", "image_uri", "job", "uri")


class PartlyBad(BadMessage):
    """A refusal with what is left of the message, or of the launch, so that a caller may look for more problems.

    `rest` holds stand-ins for what could not be read: nothing may be done with it but to check it."""

    def __init__(self, problems: tuple[Problem, ...], rest: object) -> None:
        super().__init__(problems)
        self.rest = rest


def parse_message(body: str) -> LaunchMessage:
    """Read an SQS body; raises `BadMessage` with every field that is missing or of the wrong kind."""
    value = load_json(body)
    if not isinstance(value, dict):
        raise BadMessage((Problem("$", f"is {type_name(value)}", 'send an object: {"runSpec": {…}}'),))
    if isinstance(
        value.get("runSpec"), str
    ):  # pushToRunQueueByName answers with text, popFromRunQueue does not
        value = {**value, "runSpec": load_json(value["runSpec"], "$.runSpec")}
    try:
        return LaunchMessage.model_validate(value)
    except ValidationError as error:
        details = error.errors()
    problems = tuple(_explain(detail) for detail in details)
    rest = _without(value, details)
    raise PartlyBad(problems, rest) if rest else BadMessage(problems)


def unknown_keys(message: LaunchMessage) -> tuple[Problem, ...]:
    """Keys of our envelope that look like a mistake: any unknown option, and what nearly is a key beside `runSpec`."""
    options = message.options
    return (
        *(
            Problem(json_path("$.options", key), "is no option of this worker", _nearest(key, options))
            for key in islice(options.model_extra or (), _MAX_SLIPS)
        ),
        *(
            Problem(json_path("$", key), "is no key of a launch message", f"did you mean {near}?")
            for key in islice(message.model_extra or (), _MAX_SLIPS)
            if (near := _near(key, message))
        ),
    )


def _nearest(key: str, model: BaseModel) -> str:
    near = _near(key, model)
    return f"did you mean {near}?" if near else f"use one of {', '.join(_keys(model))}"


def _near(key: str, model: BaseModel) -> str:
    folded = {name.replace("_", "").lower(): name for name in _keys(model)}
    near = get_close_matches(key.replace("_", "").lower(), folded, n=1, cutoff=0.8)
    return folded[near[0]] if near else ""


def _keys(model: BaseModel) -> list[str]:
    return [field.alias or name for name, field in type(model).model_fields.items()]


def _without(value: dict[str, Any], details: list[ErrorDetails]) -> LaunchMessage | None:
    """The message without its wrong fields; None if nothing can be made of it."""
    rest = copy.deepcopy(value)
    for detail in details:
        _take_out(rest, detail["loc"])
    spec = rest.get("runSpec")
    if not isinstance(spec, dict):
        return None
    broken = {detail["loc"][1] for detail in details if len(detail["loc"]) > 1}
    stand_ins: dict[str, Any] = {name: _STAND_IN for name in ("entity", "project") if name in broken}
    if broken.intersection(_NAMES_A_SOURCE):
        stand_ins["docker"] = {"docker_image": STAND_IN_IMAGE}
    try:
        return LaunchMessage.model_validate({**rest, "runSpec": {**spec, **stand_ins}})
    except ValidationError:
        return None


def _take_out(value: Any, location: tuple[str | int, ...]) -> None:
    """Remove the field at `location`; of a list with a wrong item, the list."""
    for key, following in zip(location, (*location[1:], 0), strict=True):
        if not isinstance(value, dict) or key not in value:
            return
        if isinstance(following, int) or not isinstance(value[key], dict):
            del value[key]
            return
        value = value[key]


_REMEDIES = {
    "missing": "add it",
    "string_type": "write it as a string",
    "tuple_type": "write it as a list of strings",
    "dict_type": "write it as an object",
    "model_type": "write it as an object",
    "literal_error": "choose one of these",
}
# Where pydantic speaks of Python, not of JSON.
_WANTED = {
    "string_type": "should be a string",
    "tuple_type": "should be a list",
    "dict_type": "should be an object",
    "model_type": "should be an object",
}


def _explain(details: ErrorDetails) -> Problem:
    """A pydantic error in our words. Its input is not quoted: it may be a secret."""
    path = json_path("$", *details["loc"])
    kind = details["type"]
    if kind == "launch":
        return Problem(path, details["ctx"]["what"], details["ctx"]["remedy"])
    if kind == "missing":
        return Problem(path, "is missing", _REMEDIES[kind])
    if kind == "literal_error":
        return Problem(path, f"should be {details['ctx']['expected']}", _REMEDIES[kind])
    wanted = _WANTED.get(kind) or details["msg"].removeprefix("Input ")
    return Problem(path, f"{wanted}, not {type_name(details['input'])}", _REMEDIES.get(kind, "correct it"))
