"""The shape of a JSON body, for comparing what two clients post; and what the SDK was seen to post.

`sdk_shapes.json` was recorded from unmodified wandb 0.31 by `python -m tests.contract.test_wandb_double`;
`test_wandb_double.py` keeps it true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("sdk_shapes.json")


def shape_of(value: Any) -> Any:
    """Types instead of values: objects keep their keys, a list is the set of its elements' shapes.

    Text that is itself a JSON object is looked into, as `{"json": …}`: W&B nests JSON in JSON."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        unique = {json.dumps(shape_of(item), sort_keys=True) for item in value}
        return [json.loads(text) for text in sorted(unique)]
    if isinstance(value, str):
        return _shape_of_text(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "boolean", False: "boolean"}[value]
    return "integer" if isinstance(value, int) else "number"


def _shape_of_text(text: str) -> Any:
    if text.startswith("{"):
        try:
            return {"json": shape_of(json.loads(text))}
        except ValueError:
            return "string"
    return "string"


def file_stream_shapes(bodies: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """The shapes seen per part of file_stream bodies: `files.NAME`, `uploaded`, `complete`, …; `empty` for `{}`.

    Rows, summaries and events hold the user's own keys, so only the outer shape of their lines is kept."""
    seen: dict[str, set[str]] = {}
    for body in bodies:
        if not body:
            seen.setdefault("empty", set()).add("{}")
        for key, value in body.items():
            if key != "files":
                seen.setdefault(key, set()).add(_text(shape_of(value)))
                continue
            for name, chunk in value.items():
                shape = shape_of(chunk)
                if name != "output.log":
                    shape = {**shape, "content": sorted({_outer(line) for line in shape["content"]})}
                seen.setdefault(f"files.{name}", set()).add(_text(shape))
    return {part: [json.loads(text) for text in sorted(texts)] for part, texts in sorted(seen.items())}


def variables_shape(variables: dict[str, Any]) -> dict[str, Any]:
    """The shape of GraphQL variables; a `config` keeps only the shape of one entry, `{"value": …}`."""
    shape: dict[str, Any] = shape_of(variables)
    if isinstance(shape.get("config"), dict):
        entries = shape["config"]["json"].values()
        shape["config"] = {"json": {"*": sorted({_text(sorted(entry)) for entry in entries})}}
    return shape


def _outer(line: Any) -> str:
    return "json object" if isinstance(line, dict) else str(line)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
