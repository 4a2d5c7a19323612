"""CloudFormation templates as data, and the values of their intrinsic functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.policies import ROOT

TEMPLATES = sorted((ROOT / "deploy" / "cloudformation").glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    """Short forms (`!Sub x`) become long ones (`{"Fn::Sub": "x"}`)."""


def _intrinsic(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _intrinsic)


def load(path: Path) -> dict[str, Any]:
    """A template."""
    template: dict[str, Any] = yaml.load(path.read_text(), _Loader)  # a safe loader with tags
    return template


def resolved(value: Any, names: Mapping[str, str], conditions: Mapping[str, bool]) -> Any:
    """`value` without Ref, Sub and If; `names`: parameters and pseudo parameters."""
    if isinstance(value, list):
        return [resolved(item, names, conditions) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return names[value["Ref"]]
    if set(value) == {"Fn::Sub"} and isinstance(value["Fn::Sub"], str):
        return re.sub(r"\$\{([\w:]+)\}", lambda match: names[match[1]], value["Fn::Sub"])
    if set(value) == {"Fn::If"}:
        condition, yes, no = value["Fn::If"]
        return resolved(yes if conditions[condition] else no, names, conditions)
    return {key: resolved(item, names, conditions) for key, item in value.items()}
