"""`docs/messages.md`: its tables are rendered from the models, the prose around them stays as it is on the page.

`python -m tests.unit.test_messages_page > page.md; mv page.md docs/messages.md`"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from worker.launch.forms import Form
from worker.launch.schema import LaunchMessage, RunSpec

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"
COLUMNS = "| key | type | meaning | default |\n|---|---|---|---|\n"
_TABLES: dict[str, type[BaseModel]] = {"Envelope": LaunchMessage, "`runSpec`": RunSpec}
"""Section of the page → what its table has."""


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A row a key; the keys of an object that has some follow in its place."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        form = form_of(field)
        inner = field.annotation
        if not form and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from rows(inner, f"{key}.")
            continue
        assert form, f"{key}: say with Form how it is written"
        assert field.description, f"{key}: its description is missing"
        yield f"| `{key}` | {form} | {field.description} | {default_of(field)} |\n"


def form_of(field: FieldInfo) -> str:
    """How a value is written; empty: it is an object with keys of its own."""
    given = [*field.metadata, *_metadata(field.annotation)]
    words = [item.words for item in given if isinstance(item, Form)]
    if words:
        return str(words[0])
    return "object" if _holds_dict(field.annotation) else ""


def default_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "otherwise" in extra:
        return str(extra["otherwise"])
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, dict):
        return f"`{value}`"
    return "\N{EN DASH}" if value in (None, "", ()) else str(value)


def _metadata(annotation: Any) -> Iterator[Any]:
    """What stands beside a type in `Annotated`, also within `… | None`."""
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _metadata(part)


def _holds_dict(annotation: Any) -> bool:
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))


def render(page: str) -> str:
    """The page with its tables as the models have them."""
    for title, model in _TABLES.items():
        before, section, after = page.partition(f"\n## {title}\n")
        assert section, title
        start = after.index(COLUMNS)
        end = after.index("\n\n", start) + 1
        page = before + section + after[:start] + COLUMNS + "".join(rows(model)) + after[end:]
    return page


def test_the_page_is_what_the_models_say() -> None:
    page = PAGE.read_text()
    again = "python -m tests.unit.test_messages_page > page.md; mv page.md docs/messages.md"
    assert page == render(page), again


def test_every_key_is_on_the_page() -> None:
    """Aliases included, whatever the nesting."""
    page = PAGE.read_text()
    for model in _TABLES.values():
        for row in rows(model):
            key = row.split("`")[1]
            assert f"| `{key}` |" in page, key


if __name__ == "__main__":
    sys.stdout.write(render(PAGE.read_text()))
