"""deploy/iam: well-formed in every partition, every call of the code is allowed, and nothing else is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.calls import (
    DOCKER_PULL,
    DOCKER_PUSH,
    calls_in,
    calls_in_sources,
    calls_of_the_doctor,
    iam_actions,
)
from tests.deploy.enforcement import Permission
from tests.deploy.policies import (
    IAM,
    PARTITIONS,
    ROOT,
    VALUES,
    actions,
    policy,
    policy_files,
    statements,
)
from tests.deploy.probes import NOT_TRIED
from worker.clients.aws import Caller
from worker.doctor.permissions import wanted_actions
from worker.settings import load_settings

WORKER = [name for name in policy_files() if name != "execution-role.json"]
"""Policies whose calls stand in our sources; the execution role is SageMaker's."""
PERMISSIONS = [*policy_files(), *policy_files("optional")]
DOCUMENT = (ROOT / "docs" / "iam.md").read_text()
ROWS = re.findall(
    r"^\| `(\w+:\w+)`",
    DOCUMENT.partition("## Each action and the call that needs it")[2].partition("\n## ")[0],
    re.MULTILINE,
)
"""The actions that the document explains."""


def test_policies_are_free_of_lint() -> None:
    """Unknown actions, resources that do not fit them, conditions that they do not know (parliament)."""
    # parliament leaves files open and reads stdin, so it gets a process of its own.
    program = (
        "import json, sys, parliament\n"
        "for text in json.load(sys.stdin):\n"
        "    print(*(str(f) for f in parliament.analyze_policy_string(text).findings), sep='\\n', end='')\n"
    )
    # It knows the ARNs of the partition `aws` only; what follows a partition's name is the same everywhere.
    texts = [
        json.dumps(policy(name, partition)).replace(f"arn:{partition}:", "arn:aws:")
        for partition in PARTITIONS
        for name in PERMISSIONS
    ]
    ended = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    assert ended.stdout == ""


@pytest.mark.parametrize("name", [*PERMISSIONS, *policy_files("trust")])
def test_policies_name_no_partition_region_or_account(name: str) -> None:
    text = (IAM / name).read_text()
    assert set(re.findall(r"arn:([^:]+):", text)) <= {"${PARTITION}"}
    assert not re.search(r"\d{12}|[a-z]{2}-[a-z]+-\d", text)
    used = set(re.findall(r"\$\{(\w+)\}", text)) - {"PARTITION", "REGION", "URL_SUFFIX"}
    assert used <= set(VALUES)
    for placeholder in used:
        assert f"`{placeholder}`" in DOCUMENT, "docs/iam.md says what to put in"
    assert f"iam/{name}" in DOCUMENT


@pytest.mark.parametrize("name", [*PERMISSIONS, *policy_files("trust")])
def test_every_statement_says_what_it_is_for(name: str) -> None:
    for statement in policy(name)["Statement"]:
        assert re.fullmatch(r"[A-Z][A-Za-z]{5,}", statement["Sid"])
        assert statement["Effect"] == "Allow"
        assert "*" not in "".join(statement["Action"])
    names = [statement["Sid"] for statement in policy(name)["Statement"]]
    assert len(names) == len(set(names))


def test_every_call_of_the_code_is_allowed_and_nothing_else_is() -> None:
    needed = {action for call in calls_in_sources() for action in iam_actions(call)}
    needed |= {*DOCKER_PUSH, *DOCKER_PULL}
    allowed = {
        action
        for statement in statements([*WORKER, *policy_files("optional")])
        for action in statement["Action"]
    }
    # What AWS asks for by itself: no call of ours has that name.
    allowed -= NOT_TRIED
    assert allowed == needed - {"dynamodb:DescribeTimeToLive", "dynamodb:UpdateTimeToLive"}


def test_the_doctor_asks_for_little_that_no_policy_has() -> None:
    """Where it is refused it says so, and looks no further."""
    allowed = {
        action
        for statement in statements([*WORKER, *policy_files("optional")])
        for action in statement["Action"]
    }
    asked = {action for call in calls_of_the_doctor() for action in iam_actions(call)}
    assert asked - allowed == {
        "dynamodb:DescribeTable",
        "dynamodb:DescribeTimeToLive",
        "iam:GetRole",
        "iam:SimulatePrincipalPolicy",
        "s3:ListBucket",
        "servicequotas:ListServiceQuotas",
    }


def test_a_call_is_seen_however_its_client_is_named(tmp_path: Path) -> None:
    """By the client's type, by the opener of worker.clients.aws, or as one of all clients."""
    (tmp_path / "by_type.py").write_text(
        "from types_aiobotocore_sqs import SQSClient\nasync def f(it: SQSClient): await it.purge_queue()\n"
    )
    (tmp_path / "by_opener.py").write_text(
        "from worker.clients.aws import ecr_client\nasync def f(it): await it.delete_repository()\n"
    )
    (tmp_path / "of_all.py").write_text(
        "from worker.clients.aws import AwsClients\n"
        "async def f(aws: AwsClients, it): await aws.dynamodb.delete_table(); it._aws.sts.get_session_token\n"
    )
    found = {call for path in tmp_path.iterdir() for call in calls_in(path)}
    assert found == {
        "sqs:PurgeQueue",
        "ecr:DeleteRepository",
        "dynamodb:DeleteTable",
        "sts:GetSessionToken",
    }


def test_a_call_that_is_not_named_after_its_action_is_still_in_the_sources() -> None:
    """Else the table that says so is stale."""
    assert calls_in_sources() >= {"sqs:ChangeMessageVisibilityBatch", "dynamodb:TransactWriteItems"}


def test_only_what_has_no_narrower_resource_is_allowed_on_all_of_them() -> None:
    everywhere = {
        action
        for statement in statements(PERMISSIONS)
        if statement["Resource"] == "*"
        for action in statement["Action"]
    }
    # None of them has a resource (service authorization reference).
    assert everywhere == {
        "sagemaker:ListTrainingJobs",
        "sagemaker:Search",
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "ec2:DeleteNetworkInterfacePermission",
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcs",
    }


def test_a_worker_with_builds_may_do_what_one_without_may() -> None:
    plain, with_builds = policy("worker.json")["Statement"], policy("worker-builds.json")["Statement"]
    assert with_builds[: len(plain)] == plain
    of_jobs = policy("assumed-role.json")["Statement"]
    assert [statement for statement in plain if statement in of_jobs] == of_jobs


@pytest.mark.parametrize("name", ["worker.json", "worker-builds.json"])
def test_the_doctor_asks_for_what_the_policy_gives(name: str) -> None:
    """With the condition keys that the real calls come with: else it would find fault with a role that has it all."""
    builds = name == "worker-builds.json"
    queue = "arn:aws:sqs:us-east-1:123456789012:launches"
    settings = load_settings(
        None,
        {
            "LAUNCH_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/launches",
            "LAUNCH_LEDGER": "dynamodb://launch-ledger",
            "LAUNCH_BUILDER": "docker" if builds else "none",
            "LAUNCH_REGISTRY": "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-dev" if builds else "",
        },
    )
    wanted = wanted_actions(
        settings,
        Caller("123456789012", "aws"),
        "us-east-1",
        queue_arn=queue,
        dlq_arn=f"{queue}-dlq",
        roles=["arn:aws:iam::123456789012:role/launch-training"],
    )
    given = policy(name)["Statement"]
    asked = [Permission(action, one.resource, one.context) for one in wanted for action in one.actions]
    assert [it for it in asked if not any(it.is_given_by(statement) for statement in given)] == []


def test_the_document_has_one_row_for_each_action() -> None:
    assert sorted(ROWS) == sorted({action for name in PERMISSIONS for action in actions(policy(name))})
