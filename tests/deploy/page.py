"""What docs/deploy.md tells its reader to type, and stand-ins for the programs that it would reach the world with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import botocore.session
from botocore import xform_name

from tests.deploy.policies import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text()


def section(name: str) -> str:
    """The text below one of the page's headings."""
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def blocks_of(name: str, language: str = "sh") -> list[str]:
    """A section's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(name), re.MULTILINE | re.DOTALL)


def stand_in(path: Path, does: str) -> None:
    """Write a program: a shell script."""
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


@cache
def _session() -> botocore.session.Session:
    return botocore.session.Session()


def wrong_options(service: str, command: str, options: Iterable[str]) -> str:
    """What AWS's command line would not take, or misses, of a command's options, named without `--`; empty: nothing."""
    model = _session().get_service_model(service)
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    if command not in operations:
        return f"no {service} {command}"
    shape = model.operation_model(operations[command]).input_shape
    assert shape is not None
    given = set(options)
    known = {xform_name(member, "-") for member in shape.members} | {"query", "output"}
    missing = {xform_name(member, "-") for member in shape.required_members} - given
    return " ".join(sorted(given - known | missing))
