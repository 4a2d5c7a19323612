"""CloudFormation templates as data, and the values of their intrinsic functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.policies import ROOT

TEMPLATES = sorted((ROOT / "deploy" / "cloudformation").glob("*.yaml"))
BASE = ROOT / "deploy" / "cloudformation" / "base.yaml"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb-key-??????"
PARAMETERS = {
    "Name": "launch",
    "Deployment": "default",
    "Builds": "true",
    "SourceBucket": "launch-code",
    "InputBucket": "launch-in",
    "OutputBucket": "launch-out",
    "WandbSecretArn": SECRET,
    "Mirror": "true",
}
WORKER_IMAGE = "arn:aws:ecr:us-east-1:123456789012:repository/launch-worker"
_ROLES = ("JobRole", "WorkerRole", "MirrorRole")
_NO_VALUE = object()
_READ = ("AWS::IAM::Role", "AWS::IAM::Policy", "AWS::DynamoDB::Table")
"""Types of resources whose intrinsic functions are worked out."""


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


def made_of(**parameters: str) -> dict[str, Any]:
    """The resources that base.yaml makes with these parameters, on PARAMETERS."""
    template = load(BASE)
    names = {**named(template, **{**PARAMETERS, **parameters}), **{role: role for role in _ROLES}}
    assert broken_rules(template, names) == []
    conditions = conditions_of(template, names)
    return {
        name: resolved(item, names, conditions) if item["Type"] in _READ else item
        for name, item in template["Resources"].items()
        if conditions.get(item.get("Condition"), True)
    }


def named(template: Mapping[str, Any], **parameters: str) -> dict[str, Any]:
    """Values of the template's parameters, defaults among them, and of AWS's own for the partition `aws`."""
    pseudo = {
        "AWS::Partition": "aws",
        "AWS::Region": "us-east-1",
        "AWS::AccountId": "123456789012",
        "AWS::URLSuffix": "amazonaws.com",
        "AWS::NoValue": _NO_VALUE,
    }
    given = {name: parameters.get(name, item.get("Default")) for name, item in template["Parameters"].items()}
    lists = [name for name, item in template["Parameters"].items() if item["Type"] == "CommaDelimitedList"]
    return {**pseudo, **given, **{name: given[name].split(",") for name in lists}}


def conditions_of(template: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, bool]:
    """Which of the template's conditions hold."""
    return {name: _holds(item, names, template) for name, item in template["Conditions"].items()}


def broken_rules(template: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """What CloudFormation would say about parameters that do not go together."""
    return [
        assertion["AssertDescription"]
        for rule in template["Rules"].values()
        if _holds(rule["RuleCondition"], names, template)
        for assertion in rule["Assertions"]
        if not _holds(assertion["Assert"], names, template)
    ]


def _holds(value: Mapping[str, Any], names: Mapping[str, Any], template: Mapping[str, Any]) -> bool:
    ((function, argument),) = value.items()
    if function == "Condition":
        return _holds(template["Conditions"][argument], names, template)
    if function in ("Fn::Not", "Fn::And", "Fn::Or"):
        held = [_holds(item, names, template) for item in argument]
        return {"Fn::Not": not held[0], "Fn::And": all(held), "Fn::Or": any(held)}[function]
    one, other = (resolved(item, names, {}) for item in argument)
    return bool(other in one if function == "Fn::Contains" else one == other)


def resolved(value: Any, names: Mapping[str, Any], conditions: Mapping[str, bool]) -> Any:
    """`value` without Ref, Sub, Join and If; `names`: parameters, pseudo parameters, what a Ref to a resource is."""
    if isinstance(value, list):
        return [it for item in value if (it := resolved(item, names, conditions)) is not _NO_VALUE]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("Ref", name)]:
            found: Any = names[name]
        case [("Fn::Sub", str(text))]:
            found = re.sub(r"\$\{([\w:]+)\}", lambda match: names[match[1]], text)
        case [("Fn::Join", [separator, items])]:
            found = separator.join(resolved(items, names, conditions))
        case [("Fn::If", [condition, yes, no])]:
            found = resolved(yes if conditions[condition] else no, names, conditions)
        case items:
            found = {key: resolved(item, names, conditions) for key, item in items}
    return found
