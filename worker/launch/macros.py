"""`${name}` in resource arguments, as W&B's agent substitutes them, from a fixed set of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from worker.launch.message import Launch

_MACRO = re.compile(r"\$\{(\w+)\}")


def substitute(value: Any, macros: Mapping[str, str]) -> Any:
    """Replace `${name}` in every string value, once; keys and unknown names stay as they are."""
    if isinstance(value, str):
        return _MACRO.sub(lambda match: macros.get(match[1], match[0]), value)
    if isinstance(value, list):
        return [substitute(item, macros) for item in value]
    if isinstance(value, Mapping):
        return {key: substitute(item, macros) for key, item in value.items()}
    return value


def launch_macros(launch: Launch, *, image_uri: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    """The macros of a launch over the operator's own (`extra`); an absent value renders as nothing.

    The worker's environment is no source: W&B's agent lets a submitter read all of it, credentials too."""
    return {
        **extra,
        "project_name": launch.run.project,
        "entity_name": launch.run.entity,
        "run_id": launch.run.run_id,
        "run_name": launch.name or "",
        "image_uri": image_uri or "",
        "author": launch.author or "",
    }
