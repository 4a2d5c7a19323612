"""The execution roles that jobs get: do they exist, and may SageMaker take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from worker.clients.aws import AwsDenied, AwsRefused, call, iam_client
from worker.doctor.check import Check, failed, ok, skipped

_SERVICE = "sagemaker.amazonaws.com"


async def role_checks(roles: Sequence[str], account: str, region: str, *, given: bool) -> Sequence[Check]:
    """Trust of each role; `account`: the one whose IAM can be asked; `given`: there is a message, if a bad one."""
    if not roles:
        wanted = "correct the message" if given else "give --message"
        return [skipped("execution role", f"none is named: {wanted}, or a full ARN in LAUNCH_ALLOWED_ROLES")]
    return [await _role(arn, account, region) for arn in roles]


async def _role(arn: str, account: str, region: str) -> Check:
    if f":{account}:" not in arn:
        return skipped("execution role", f"{arn} is of another account, whose IAM does not answer here")
    name = arn.rpartition("/")[2]
    try:
        async with iam_client(region) as iam:
            answer: Mapping[str, Any] = await call("GetRole", lambda: iam.get_role(RoleName=name))
    except AwsDenied:
        return skipped("execution role", f"{arn}: allow iam:GetRole on it to have its trust policy checked")
    except AwsRefused as error:
        if error.aws_code != "NoSuchEntity":
            raise
        return failed("execution role", f"{arn} does not exist", "correct RoleArn, or create the role")
    document = answer["Role"].get("AssumeRolePolicyDocument", {})
    policy = json.loads(unquote(document)) if isinstance(document, str) else document
    if trusts_sagemaker(policy):
        return ok("execution role", f"{arn} trusts {_SERVICE}")
    return failed(
        "execution role",
        f"{arn} does not trust {_SERVICE}: every job would be refused",
        "let its trust policy allow sts:AssumeRole to Service sagemaker.amazonaws.com",
    )


def trusts_sagemaker(policy: Mapping[str, Any]) -> bool:
    """A trust policy lets SageMaker assume its role. Conditions are not weighed."""
    for statement in _list(policy.get("Statement")):
        principal = statement.get("Principal", {})
        services = _list(principal.get("Service")) if isinstance(principal, Mapping) else [principal]
        actions = _list(statement.get("Action"))
        assumes = any(action in ("sts:AssumeRole", "sts:*", "*") for action in actions)
        if statement.get("Effect") == "Allow" and assumes and (_SERVICE in services or "*" in services):
            return True
    return False


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
