"""Which calls to AWS stand in the worker's sources, read from the sources; and which IAM actions a call needs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session

from tests.deploy.policies import ROOT

_OPENERS = {
    "secrets_client": "secretsmanager",
    "parameters_client": "ssm",
    "ecr_client": "ecr",
    "iam_client": "iam",
    "quotas_client": "service-quotas",
}
"""Of worker.clients.aws: what is opened without naming a client's type."""
_CLIENTS = ("sqs", "sagemaker", "logs", "sts", "dynamodb", "ecr", "s3")
"""Fields of worker.clients.aws.AwsClients that are a client, named after its service."""
_IAM_ACTIONS = {
    "sts:GetCallerIdentity": (),  # allowed to everybody, whatever a policy says (API reference)
    "sqs:ChangeMessageVisibilityBatch": ("sqs:ChangeMessageVisibility",),
    "dynamodb:TransactWriteItems": (
        "dynamodb:PutItem",
    ),  # of Put alone (developer guide, transactions and IAM)
    # With Tags, and with a role for somebody else to use.
    "sagemaker:CreateTrainingJob": ("sagemaker:CreateTrainingJob", "sagemaker:AddTags", "iam:PassRole"),
    "ecr:CreateRepository": ("ecr:CreateRepository", "ecr:TagResource"),
    "s3:HeadBucket": ("s3:ListBucket",),
    "s3:HeadObject": ("s3:GetObject",),
    "service-quotas:ListServiceQuotas": ("servicequotas:ListServiceQuotas",),
}
"""Where the action is not the call's own name."""
DOCKER_PUSH = (
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
)
"""What `docker push` needs besides a login (ECR user guide, required IAM permissions for pushing an image)."""
DOCKER_PULL = ("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
"""What `docker pull` needs (ECR user guide)."""


def calls_in_sources() -> set[str]:
    """`service:Operation` of every call to AWS in `worker`, the local stack and the doctor aside."""
    paths = (ROOT / "worker").rglob("*.py")
    ours = [path for path in paths if not {"local", "doctor"} & set(path.relative_to(ROOT).parts)]
    return {call for path in ours for call in calls_in(path)}


def calls_of_the_doctor() -> set[str]:
    """The same of `launch-worker doctor`, which looks at more than a worker needs."""
    return {call for path in (ROOT / "worker" / "doctor").glob("*.py") for call in calls_in(path)}


def iam_actions(call: str) -> tuple[str, ...]:
    """The IAM actions that a call needs."""
    return _IAM_ACTIONS.get(call, (call,))


def calls_in(path: Path) -> Iterator[str]:
    """Attributes that are named after an operation: of a service whose client the module has at hand, or of one of
    `AwsClients` (`aws.sqs.send_message`)."""
    tree = ast.parse(path.read_text())
    services = _services(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_all = {node.value.attr} & set(_CLIENTS) if isinstance(node.value, ast.Attribute) else set()
            for service in services | of_all:
                if operation := _operations(service).get(node.attr):
                    yield f"{service}:{operation}"


def _services(tree: ast.Module) -> set[str]:
    services = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if match := re.match(r"types_aiobotocore_(\w+)$", node.module):
                services.add(match[1])
            if node.module == "worker.clients.aws":
                services |= {_OPENERS[alias.name] for alias in node.names if alias.name in _OPENERS}
    return services


@cache
def _operations(service: str) -> dict[str, str]:
    """Method name → operation."""
    names = botocore.session.get_session().get_service_model(service).operation_names
    return {botocore.xform_name(name): name for name in names}
