"""What the worker's credentials may do: asked of IAM where that is allowed, else tried with calls that change nothing.

`SimulatePrincipalPolicy` knows every action, service control policies and boundaries not fully. Where the worker may
not call it, each action that has a harmless call is tried: with a name that cannot exist AWS answers AccessDenied or,
when the call is allowed, that there is no such thing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.clients.aws import AwsClients, AwsDenied, AwsRefused, Caller, call, iam_client
from worker.doctor.check import Check, failed, ok, skipped
from worker.doctor.images import builds
from worker.errors import Again
from worker.images.reference import parse_reference
from worker.ledger.dynamodb_items import INDEX
from worker.settings import Settings
from worker.training.log_feed import LOG_GROUP

NO_SUCH_JOB = "launch-worker-doctor-no-such-job"
_POLICIES = "docs/iam.md has the policy; give the worker's role {actions}"
_SESSION = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([^/]+)/.+")
_IS_THERE = "attribute_exists(pk)"
_NO_DIGEST = "sha256:" + "0" * 64
_PUSH = (
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:CompleteLayerUpload",
    "ecr:DescribeRepositories",
    "ecr:InitiateLayerUpload",
    "ecr:PutImage",
    "ecr:UploadLayerPart",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Actions on one resource."""

    resource: str
    actions: tuple[str, ...]
    context: Mapping[str, str] = field(default_factory=dict)
    """Condition keys and values that the real calls come with."""


def wanted_actions(
    settings: Settings, caller: Caller, region: str, *, queue_arn: str, dlq_arn: str, roles: Sequence[str]
) -> list[Wanted]:
    """What `run` with these settings calls; `roles`: execution roles that jobs get."""
    here = f"{caller.partition}:{{}}:{region}:{caller.account}"
    jobs = f"arn:{here.format('sagemaker')}:training-job/{NO_SUCH_JOB}"
    ours = {"aws:ResourceTag/LaunchWorker": settings.deployment}
    describing = ("sagemaker:DescribeTrainingJob", "sagemaker:ListTags", "sagemaker:StopTrainingJob")
    sqs = ("ChangeMessageVisibility", "DeleteMessage", "GetQueueAttributes", "ReceiveMessage")
    found = [
        Wanted(queue_arn, tuple(f"sqs:{name}" for name in sqs)),
        Wanted(dlq_arn, ("sqs:SendMessage",)),
        Wanted(jobs, ("sagemaker:CreateTrainingJob",)),
        Wanted(jobs, ("sagemaker:AddTags",), {"sagemaker:TaggingAction": "CreateTrainingJob"}),
        Wanted(jobs, describing, ours),
        Wanted("*", ("sagemaker:ListTrainingJobs",)),
        Wanted(
            f"arn:{here.format('logs')}:log-group:{LOG_GROUP}:*",
            ("logs:DescribeLogStreams", "logs:FilterLogEvents"),
        ),
        *[
            Wanted(role, ("iam:PassRole",), {"iam:PassedToService": "sagemaker.amazonaws.com"})
            for role in roles
        ],
    ]
    if settings.ledger.startswith("dynamodb://"):
        table = f"arn:{here.format('dynamodb')}:table/{settings.ledger.removeprefix('dynamodb://')}"
        items = ("BatchGetItem", "DeleteItem", "GetItem", "PutItem", "UpdateItem")
        found.append(Wanted(table, tuple(f"dynamodb:{name}" for name in items)))
        found.append(Wanted(f"{table}/index/{INDEX}", ("dynamodb:Query",)))
    if builds(settings):
        repository = parse_reference(settings.registry).path
        found.append(Wanted("*", ("ecr:GetAuthorizationToken",)))
        found.append(Wanted(f"arn:{here.format('ecr')}:repository/{repository}", _PUSH))
    return [wanted for wanted in found if wanted.resource]


async def permission_checks(
    aws: AwsClients, settings: Settings, caller: Caller, wanted: Sequence[Wanted]
) -> Sequence[Check]:
    """A cross for each action that is denied, a tick for all that are not."""
    principal = principal_of(caller.arn)
    if caller.arn.endswith(":root"):
        return [ok("IAM", "root may do everything; a worker should have a role of its own (docs/iam.md)")]
    denied: set[str] | None = None
    if not settings.assume_role:
        denied = await _simulated(principal, aws.region, wanted)
    if denied is not None:
        return _told(wanted, denied, set(), f"by SimulatePrincipalPolicy for {principal}")
    denied, tried = set(), set()
    for action, send in _probes(aws, settings).items():
        if not any(action in one.actions for one in wanted):
            continue
        allowed = await _allowed(action, send)
        if allowed is not None:
            tried.add(action)
        if allowed is False:
            denied.add(action)
    untried = {action for one in wanted for action in one.actions} - tried
    return _told(wanted, denied, untried, "tried")


def principal_of(arn: str) -> str:
    """The user or role behind the caller's ARN; of a session its role, whose path STS does not tell."""
    match = _SESSION.fullmatch(arn)
    return f"arn:{match[1]}:iam::{match[2]}:role/{match[3]}" if match else arn


def _told(wanted: Sequence[Wanted], denied: set[str], untried: set[str], how: str) -> list[Check]:
    resources = {action: one.resource for one in wanted for action in one.actions}
    checks = [
        failed(f"IAM {action}", f"denied on {resources[action]}", _POLICIES.format(actions=action))
        for action in sorted(denied)
    ]
    allowed = sorted(resources.keys() - denied - untried)
    if allowed:
        checks.append(ok("IAM", f"{', '.join(allowed)}: {how}"))
    if untried:
        why = "no call without effect; allow iam:SimulatePrincipalPolicy on the worker's role to have them checked"
        checks.append(skipped("IAM, not tried", f"{', '.join(sorted(untried))}: {why}"))
    return checks


async def _simulated(principal: str, region: str, wanted: Sequence[Wanted]) -> set[str] | None:
    """The actions that IAM says would be denied; None: it does not tell us."""
    denied: set[str] = set()
    async with iam_client(region) as iam:
        for one in wanted:
            request: dict[str, Any] = {
                "PolicySourceArn": principal,
                "ActionNames": list(one.actions),
                "ResourceArns": [one.resource],
                "ContextEntries": [
                    {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
                    for key, value in one.context.items()
                ],
            }
            try:
                answer = await call(
                    "SimulatePrincipalPolicy",
                    lambda request=request: iam.simulate_principal_policy(**request),  # type: ignore[misc]
                )
            except (AwsRefused, Again):
                return None
            denied |= {
                result["EvalActionName"]
                for result in answer["EvaluationResults"]
                if result["EvalDecision"] != "allowed"
            }
    return denied


async def _allowed(action: str, send: Callable[[], Awaitable[object]]) -> bool | None:
    """None: the service did not answer."""
    try:
        await call(action, send)
    except AwsDenied:
        return False
    except AwsRefused:  # there is no such thing: the call was let through
        return True
    except Again:
        return None
    return True


def _probes(aws: AwsClients, settings: Settings) -> dict[str, Callable[[], Awaitable[object]]]:
    """The cheapest harmless call of each action that has one. StopTrainingJob has none: it is allowed for jobs with our
    tag, and a job that does not exist has no tag."""
    queue, no_receipt = settings.queue_url, {"ReceiptHandle": "doctor"}
    missing: dict[str, Any] = {
        "Key": {"pk": {"S": "doctor#none"}},
        "TableName": settings.ledger.removeprefix("dynamodb://"),
    }
    only_if_there: dict[str, Any] = {**missing, "ConditionExpression": _IS_THERE}
    put: dict[str, Any] = {"TableName": missing["TableName"], "Item": missing["Key"]}
    query: dict[str, Any] = {
        "TableName": missing["TableName"],
        "IndexName": INDEX,
        "KeyConditionExpression": "#holder = :none",
        "ExpressionAttributeNames": {"#holder": "holder"},
        "ExpressionAttributeValues": {":none": {"S": "doctor"}},
    }
    probes: dict[str, Callable[[], Awaitable[object]]] = {
        "sqs:GetQueueAttributes": lambda: aws.sqs.get_queue_attributes(
            QueueUrl=queue, AttributeNames=["QueueArn"]
        ),
        "sqs:ChangeMessageVisibility": lambda: aws.sqs.change_message_visibility(
            QueueUrl=queue, VisibilityTimeout=0, **no_receipt
        ),
        "sqs:DeleteMessage": lambda: aws.sqs.delete_message(QueueUrl=queue, **no_receipt),
        "sagemaker:DescribeTrainingJob": lambda: aws.sagemaker.describe_training_job(
            TrainingJobName=NO_SUCH_JOB
        ),
        "sagemaker:ListTrainingJobs": lambda: aws.sagemaker.list_training_jobs(MaxResults=1),
        "logs:DescribeLogStreams": lambda: aws.logs.describe_log_streams(logGroupName=LOG_GROUP, limit=1),
        "logs:FilterLogEvents": lambda: aws.logs.filter_log_events(
            logGroupName=LOG_GROUP, limit=1, startTime=0, endTime=1
        ),
        "dynamodb:GetItem": lambda: aws.dynamodb.get_item(**missing),
        "dynamodb:BatchGetItem": lambda: aws.dynamodb.batch_get_item(
            RequestItems={missing["TableName"]: {"Keys": [missing["Key"]]}}
        ),
        "dynamodb:PutItem": lambda: aws.dynamodb.put_item(
            **put,
            ConditionExpression=_IS_THERE,
        ),
        "dynamodb:UpdateItem": lambda: aws.dynamodb.update_item(**only_if_there),
        "dynamodb:DeleteItem": lambda: aws.dynamodb.delete_item(**only_if_there),
        "dynamodb:Query": lambda: aws.dynamodb.query(**query),
    }
    if builds(settings):
        repository: Any = {"repositoryName": parse_reference(settings.registry).path}
        probes |= {
            "ecr:GetAuthorizationToken": aws.ecr.get_authorization_token,
            "ecr:DescribeRepositories": lambda: aws.ecr.describe_repositories(
                repositoryNames=[repository["repositoryName"]]
            ),
            "ecr:BatchGetImage": lambda: aws.ecr.batch_get_image(
                imageIds=[{"imageTag": "launch-worker-doctor"}], **repository
            ),
            "ecr:BatchCheckLayerAvailability": lambda: aws.ecr.batch_check_layer_availability(
                layerDigests=[_NO_DIGEST], **repository
            ),
        }
    return probes
