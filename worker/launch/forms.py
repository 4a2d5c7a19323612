"""How single values of a launch message are written, and what is refused: types for the fields of `schema`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from worker.launch.retry import is_instance_type, parse_retry
from worker.launch.strict_json import type_name

# A W&B name ends up in URLs. The SDK refuses the first set in projects, and the second in run ids as well
# (wandb/sdk/wandb_settings.py, validate_project and validate_run_id).
_NOT_IN_PROJECT = "/\\#?%:"
_NOT_IN_RUN_ID = _NOT_IN_PROJECT + ";,'"
_MAX_WANDB_NAME = 128
MAX_WORDS = 100
"""Items of a command or its arguments (CreateTrainingJob, ContainerEntrypoint and ContainerArguments)."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What no name, path or reference holds."""


def _refusal(what: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("launch", "{what}", {"what": what, "remedy": remedy})


def _line(text: str) -> str:
    """One line of text: identities are joined by newlines, and names go into headers and tags."""
    if CONTROL.search(text):
        raise _refusal("holds control characters", "write it on one line")
    return text


def _required(text: str) -> str:
    if not text.strip():
        raise _refusal("is empty", "give it a value")
    return _line(text)


def _wandb_name(text: str, refused: str) -> str:
    _required(text)
    if text != text.strip():
        raise _refusal("starts or ends with white space, which W&B refuses", "trim it")
    if not text.strip("."):
        raise _refusal("consists of dots, which an address cannot hold", "give it a name")
    if len(text) > _MAX_WANDB_NAME:
        raise _refusal(f"has {len(text)} characters, W&B takes {_MAX_WANDB_NAME}", "shorten it")
    if found := sorted({c for c in text if c in refused}):
        raise _refusal(f"holds {' '.join(found)}, which W&B refuses", f"leave out {' '.join(refused)}")
    return text


def _count(value: object) -> int:
    """A number of any spelling (W&B's agent asks only whether it is above 0)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(f"should be a number, not {type_name(value)}", "write it as a whole number")
    return math.ceil(value)


PRIORITIES = {"critical": 0, "high": 1, "medium": 2, "low": 3}
"""W&B's names of priorities (wandb/cli/cli.py, `launch --priority`); 0 is the most urgent."""


def read_priority(value: object) -> int | None:
    """0 to 3 or one of W&B's names as a number; None for anything else."""
    if isinstance(value, str):
        return PRIORITIES.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value in PRIORITIES.values() else None


def _priority(value: object) -> int:
    priority = read_priority(value)
    if priority is None:
        raise _refusal(f"should be 0 to 3 or one of {', '.join(PRIORITIES)}", "choose one of these")
    return priority


def _few(value: object) -> object:
    if isinstance(value, list) and len(value) > MAX_WORDS:
        raise _refusal(f"has {len(value)} items, SageMaker's limit is {MAX_WORDS}", "shorten it")
    return value


def _retry(text: str) -> str:
    try:
        parse_retry(text)
    except ValueError as error:
        raise _refusal(str(error), "correct it") from None
    return text


def _instance_type(text: str) -> str:
    if not is_instance_type(text):
        raise _refusal("is no instance type of SageMaker", "write it as ml.g5.xlarge")
    return text


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is written, in words, for docs/messages.md."""

    words: str


Line = Annotated[str, AfterValidator(_line), Form("text")]
Words = Annotated[tuple[str, ...], BeforeValidator(_few), Form("list of texts")]
Count = Annotated[int, BeforeValidator(_count), Form("number")]
Priority = Annotated[int, BeforeValidator(_priority), Form("0 to 3, or `critical`, `high`, `medium`, `low`")]
Entity = Annotated[
    str,
    AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT)),
    Form("text that W&B takes as a name"),
]
Project = Annotated[
    str,
    AfterValidator(lambda text: _wandb_name(text, _NOT_IN_PROJECT)),
    Form("text that W&B takes as a name"),
]
RunId = Annotated[
    str,
    AfterValidator(lambda text: _wandb_name(text, _NOT_IN_RUN_ID)),
    Form("text that W&B takes as a run id"),
]
Retry = Annotated[
    str, AfterValidator(_retry), Form("`capacity=3,spot=5,internal=2`, any of them, 0 to 20 each")
]
InstanceType = Annotated[str, AfterValidator(_instance_type)]
Anything = Annotated[Any, Form("text")]
"""Checked where it is read: where it means nothing it may be anything."""
LogTarget = Annotated[Literal["companion", "run", "files", "off"], Form("`companion`, `run`, `files`, `off`")]
