"""`docs/settings.md` is rendered from the settings: `python -m tests.unit.test_settings_page > docs/settings.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from tests.unit.test_env_example import GROUPS, shown_default
from worker.settings import Settings, load_settings, variable_name

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

HEADER = """\
# Settings

Every setting is an environment variable, or a line of `.env` (`--env-file`); variables of the process win over the
file, both over W&B's `launch-config.yaml` ([moving](migration.md)). An empty value means the default. Durations are
seconds, or `25s`, `10m`, `12h`, `14d`; lists are comma separated. A wrong value ends the command with exit code 2 and
names the variable; a variable `LAUNCH_…` that is no setting is warned of (`LW-SETTING-UNKNOWN`).
`launch-worker doctor` looks at what the values lead to.

Variables `LAUNCH_MACRO_*` are what `${NAME}` in a message stands for, beside [W&B's own macros](messages.md).
This page is rendered from `worker/settings.py`; a test keeps it current.
"""


def default_of(name: str) -> str:
    field = Settings.model_fields[name]
    value: Any = field.default
    if value is PydanticUndefined or value in (None, "", ()) or isinstance(value, SecretStr):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{shown_default(name)}`"


def limits_of(name: str) -> str:
    """What pydantic checks beside the type."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found: dict[str, float] = {}
    for rule in Settings.model_fields[name].metadata:
        for key, sign in signs.items():
            if hasattr(rule, key):
                narrower = max if sign in "≥>" else min
                found[sign] = narrower(getattr(rule, key), found.get(sign, getattr(rule, key)))
    if ">" in found:
        found.pop("≥", None)
    return ", ".join(f"{sign} {limit:g}" for sign, limit in sorted(found.items(), key=lambda one: one[1]))


def render() -> str:
    parts = [HEADER]
    for title, names in GROUPS.items():
        rows = [
            f"| `{variable_name(name)}` | {default_of(name)} | {limits_of(name)} | {description_of(name)} |"
            for name in names
        ]
        parts.append(
            "\n".join(
                [
                    f"## {title}",
                    "",
                    "| variable | default | limits | meaning |",
                    "|---|---|---|---|",
                    *rows,
                    "",
                ]
            )
        )
    return "\n".join(parts)


def description_of(name: str) -> str:
    return (Settings.model_fields[name].description or "").replace("|", "\\|").replace("<", "&lt;")


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text() == render(), "python -m tests.unit.test_settings_page > docs/settings.md"


def test_the_defaults_of_the_page_can_be_pasted() -> None:
    shown = {variable_name(name): default_of(name).strip("`") for names in GROUPS.values() for name in names}
    assert load_settings(None, shown) == load_settings(None, {})


def test_a_setting_has_one_limit_on_each_side() -> None:
    assert limits_of("lease") == "≥ 2, ≤ 43200"
    assert limits_of("receive_wait") == "≥ 0, ≤ 20"
    assert limits_of("heartbeat") == "> 0"


def test_every_setting_is_on_the_page() -> None:
    shown = {name for names in GROUPS.values() for name in names}
    assert Settings.model_fields.keys() - shown <= {"macros", "crash_at"}


if __name__ == "__main__":
    sys.stdout.write(render())
