"""The IAM policies of deploy/iam, with their placeholders filled in."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IAM = ROOT / "deploy" / "iam"

PARTITIONS = {
    "aws": ("us-east-1", "amazonaws.com"),
    "aws-cn": ("cn-north-1", "amazonaws.com.cn"),
    "aws-us-gov": ("us-gov-west-1", "amazonaws.com"),
}
"""Partition → a Region of it, and the suffix of its host names."""
VALUES = {
    "ACCOUNT": "123456789012",
    "QUEUE": "launches",
    "DEAD_LETTER_QUEUE": "launches-dlq",
    "TABLE": "launch-ledger",
    "REPOSITORY": "launch-dev",
    "DEPLOYMENT": "default",
    "JOB_ROLE": "launch-training",
    "SOURCE_BUCKET": "launch-dev",
    "INPUT_BUCKET": "launch-in",
    "OUTPUT_BUCKET": "launch-out",
    "TARGET_ACCOUNT": "210987654321",
    "TARGET_ROLE": "launch-target",
    "SECRET": "wandb-key",
    "PARAMETER": "wandb/key",
    "KMS_KEY": "1234abcd-12ab-34cd-56ef-1234567890ab",
    "BASE_ACCOUNT": "763104351884",
    "BASE_REPOSITORY": "pytorch-training",
    "WORKER_REPOSITORY": "launch-worker",
    "OIDC_PROVIDER": "oidc.eks.us-east-1.amazonaws.com/id/0123456789ABCDEF",
    "NAMESPACE": "launch",
    "WORKER_ACCOUNT": "123456789012",
    "WORKER_ROLE": "launch-worker",
    "EXTERNAL_ID": "acme-launch",
}
"""As the local stack names things, where it has them."""

Statement = dict[str, Any]


def policy_files(folder: str = ".") -> list[str]:
    """Names of the policies in `folder`, relative to deploy/iam."""
    return sorted(str(path.relative_to(IAM)) for path in (IAM / folder).glob("*.json"))


def policy(name: str, partition: str = "aws", **values: str) -> dict[str, Any]:
    """A policy, its placeholders filled in."""
    region, suffix = PARTITIONS[partition]
    given = {"PARTITION": partition, "REGION": region, "URL_SUFFIX": suffix, **VALUES, **values}
    text = string.Template((IAM / name).read_text()).substitute(given)
    filled: dict[str, Any] = json.loads(text)
    return filled


def statements(names: Iterable[str]) -> list[Statement]:
    """The statements of several policies together."""
    return [statement for name in names for statement in policy(name)["Statement"]]


def actions(policy_document: Mapping[str, Any]) -> list[str]:
    """The actions that a policy allows, in order."""
    return [action for statement in policy_document["Statement"] for action in statement["Action"]]


def without(policy_document: Mapping[str, Any], action: str, sid: str, resource: str = "") -> dict[str, Any]:
    """The policy without an action of a statement, on one of its resources or on all of them."""
    left = []
    for given in policy_document["Statement"]:
        if given["Sid"] != sid:
            left.append(given)
            continue
        others = [name for name in resources(given) if resource and name != resource]
        left.append({**given, "Action": [name for name in given["Action"] if name != action]})
        left.append({**given, "Action": [action], "Resource": others})
    kept = [statement for statement in left if statement["Action"] and statement["Resource"]]
    return {**policy_document, "Statement": kept}


def resources(statement: Statement) -> list[str]:
    """What a statement is about."""
    given = statement["Resource"]
    return given if isinstance(given, list) else [given]
