"""moto with IAM: who calls is told by signed credentials, and what he may is read from the policies of his role.

moto itself knows neither the resources of most services nor conditions, and asks for nothing but the call's own action.
So it does what it does well (keys, sessions, signatures), and here stands which permissions a call needs, on which
resource and in which circumstances (service authorization reference).
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aiohttp import web
from moto import settings as moto_settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.ecr.responses import ECRResponse
from moto.iam.access_control import IAMRequestBase
from moto.iam.models import iam_backends
from moto.sagemaker.models import sagemaker_backends
from moto.sts.models import sts_backends

from tests.deploy.calls import iam_actions
from worker.local.aws import ACCESS_KEY, ACCOUNT, REGION, replaced
from worker.local.ecr import LocalEcr, _Refused


@dataclass(frozen=True)
class Permission:
    """What a call needs: an action on a resource, in circumstances."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)

    def is_given_by(self, statement: Mapping[str, Any]) -> bool:
        """By a statement that allows; policies of ours deny nothing."""
        return (
            self.action in statement["Action"]
            and any(fnmatch.fnmatchcase(self.resource, pattern) for pattern in _list(statement["Resource"]))
            and all(
                any(fnmatch.fnmatchcase(self.context.get(key, ""), str(value)) for value in _list(values))
                for condition in statement.get("Condition", {}).values()
                for key, values in condition.items()
            )
        )


@dataclass(frozen=True)
class Denial:
    """A call that IAM did not allow."""

    role: str
    """Name of the caller's role."""
    permission: Permission
    """What it lacks."""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def permissions(service: str, operation: str, request: Mapping[str, Any]) -> list[Permission]:
    """What a call needs. Raises `KeyError` for one that the worker does not make."""
    resource = _resource(service, operation, request)
    needed = []
    for action in iam_actions(f"{service}:{operation}"):
        if action == "iam:PassRole":
            context = {"iam:PassedToService": "sagemaker.amazonaws.com"}
            needed.append(Permission(action, request["RoleArn"], context))
        elif action == "sagemaker:AddTags" and operation != "AddTags":
            if request.get("Tags"):
                needed.append(Permission(action, resource, {"sagemaker:TaggingAction": operation}))
        else:
            needed.append(Permission(action, resource, _circumstances(operation, request)))
    return needed


def _resource(service: str, operation: str, request: Mapping[str, Any]) -> str:
    """The ARN that a call is about; `*`: it has none."""
    named: dict[str, Callable[[], str]] = {
        "sqs": lambda: _queue(request),
        "sagemaker": lambda: _training_job(operation, request),
        "logs": lambda: f"{_arn('logs', 'log-group')}:{request['logGroupName']}:log-stream:",
        "dynamodb": lambda: _table(operation, request),
        "ecr": lambda: _repository(operation, request),
        "s3": lambda: f"arn:aws:s3:::{request['path']}",
        "secretsmanager": lambda: _secret(request["SecretId"]),
        "ssm": lambda: f"{_arn('ssm', 'parameter')}/{request['Name'].lstrip('/')}",
        "iam": lambda: "*",
        "sts": lambda: str(request.get("RoleArn", "*")),
    }
    return named[service]()


def _arn(service: str, kind: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{kind}"


def _queue(request: Mapping[str, Any]) -> str:
    name = request.get("QueueName") or request["QueueUrl"].rpartition("/")[2]
    return _arn("sqs", name)


def _secret(identity: str) -> str:
    """AWS adds six characters to a secret's name."""
    return (
        identity if identity.startswith("arn:") else f"{_arn('secretsmanager', 'secret')}:{identity}-AbCdEf"
    )


def _training_job(operation: str, request: Mapping[str, Any]) -> str:
    if operation in ("ListTrainingJobs", "Search"):
        return "*"
    return request.get("ResourceArn") or f"{_arn('sagemaker', 'training-job')}/{request['TrainingJobName']}"


def _table(operation: str, request: Mapping[str, Any]) -> str:
    if operation == "BatchGetItem":
        (table,) = request["RequestItems"]
    elif operation == "TransactWriteItems":
        (table,) = {item["Put"]["TableName"] for item in request["TransactItems"]}
    else:
        table = request["TableName"]
    index = f"/index/{request['IndexName']}" if "IndexName" in request else ""
    return f"{_arn('dynamodb', 'table')}/{table}{index}"


def _repository(operation: str, request: Mapping[str, Any]) -> str:
    if operation == "GetAuthorizationToken":
        return "*"
    name = request.get("repositoryName") or request["repositoryNames"][0]
    return f"{_arn('ecr', 'repository')}/{name}"


def _circumstances(operation: str, request: Mapping[str, Any]) -> dict[str, str]:
    """Condition keys: the tags of the job that is to be stopped."""
    if operation != "StopTrainingJob":
        return {}
    job = sagemaker_backends[ACCOUNT][REGION].training_jobs.get(request["TrainingJobName"])
    return {f"aws:ResourceTag/{tag['Key']}": tag["Value"] for tag in (job.tags or [])} if job else {}


@dataclass(frozen=True)
class Role:
    """A role and a session of it."""

    name: str
    environment: Mapping[str, str]
    """AWS's variables with the session's credentials."""

    def allow(self, policy: Mapping[str, Any]) -> None:
        """Replace what the role may do."""
        iam = iam_backends[ACCOUNT]["aws"]
        if policy["Statement"]:
            iam.put_role_policy(self.name, "only", json.dumps(policy))
        else:  # no policy may be empty
            iam.delete_role_policy(self.name, "only")


def new_role(name: str, policy: Mapping[str, Any]) -> Role:
    """A role with one policy, and a session of it."""
    statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = {"Version": "2012-10-17", "Statement": [statement]}
    iam_backends[ACCOUNT]["aws"].create_role(name, json.dumps(trust), "/", None, "", [], "3600")
    made = session_of(name)
    made.allow(policy)
    return made


def session_of(name: str) -> Role:
    """A session of a role that is there."""
    role = iam_backends[ACCOUNT]["aws"].get_role(name)
    session = sts_backends[ACCOUNT]["aws"].assume_role(REGION, "worker", role.arn, "", 3600, "")
    return Role(
        name,
        {
            "AWS_ACCESS_KEY_ID": session.access_key_id,
            "AWS_SECRET_ACCESS_KEY": session.secret_access_key,
            "AWS_SESSION_TOKEN": session.session_token,
        },
    )


@contextlib.contextmanager
def enforced() -> Iterator[list[Denial]]:
    """IAM holds for everybody but the test's own clients; yields what was asked for and refused."""
    refused: list[Denial] = []
    authenticate = ActionAuthenticatorMixin._authenticate_and_authorize_action

    def unless_local(self: Any, iam_request_cls: type, resource: str = "*") -> None:
        if f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            authenticate(self, iam_request_cls, resource)

    def check_action_permitted(self: Any, resource: str) -> None:
        service, _, operation = self._action.partition(":")
        needed = permissions(service, operation, _request(service, self))
        statements = [
            statement for policy in self._access_key.collect_policies() for statement in _statements(policy)
        ]
        for permission in needed:
            if not any(permission.is_given_by(statement) for statement in statements):
                refused.append(Denial(self._access_key._owner_role_name, permission))
                self._raise_access_denied()

    before = moto_settings.INITIAL_NO_AUTH_ACTION_COUNT
    moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    try:
        with (
            replaced(ActionAuthenticatorMixin, _authenticate_and_authorize_action=unless_local),
            replaced(IAMRequestBase, check_action_permitted=check_action_permitted),
            _registry_enforced(refused),
        ):
            yield refused
    finally:
        moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = before


@contextlib.contextmanager
def _registry_enforced(refused: list[Denial]) -> Iterator[None]:
    """The registry asks IAM, too: a token has the rights of the role that it was given to. What has a token of the
    local stack's own may do everything."""
    roles: dict[str, str] = {}
    hand_out, send = ECRResponse.get_authorization_token, LocalEcr._send

    def get_authorization_token(self: ECRResponse) -> Any:
        answer = hand_out(self)
        key = re.findall(r"Credential=([^/]+)/", self.headers["Authorization"])[0]
        for session in sts_backends[ACCOUNT]["aws"].assumed_roles:
            if session.access_key_id == key:
                result: Any = answer.result
                (data,) = result["authorizationData"]
                roles[_password(data["authorizationToken"])] = session.role_arn.rpartition("/")[2]
        return answer

    def asking(self: LocalEcr, request: web.Request, body: Any) -> Any:
        role = roles.get(_password(request.headers["Authorization"].removeprefix("Basic ")))
        permission = _of_registry(request.method, request.path)
        if role and permission and not _may(role, permission):
            refused.append(Denial(role, permission))
            told = f"role/{role} is not authorized to perform: {permission.action} on {permission.resource}"
            raise _Refused(403, "DENIED", told)
        return send(self, request, body)

    with (
        replaced(ECRResponse, get_authorization_token=get_authorization_token),
        replaced(LocalEcr, _send=asking),
    ):
        yield


def _password(login: str) -> str:
    return base64.b64decode(login).decode().partition(":")[2]


def _of_registry(method: str, path: str) -> Permission | None:
    """What a docker client's request needs (ECR user guide, permissions for pushing and pulling); None: no more than a
    login."""
    found = re.fullmatch(r"/v2/(.+)/(manifests|blobs/uploads|blobs)/.*", path)
    if found is None:
        return None
    action = _OF_REQUEST[found[2], method]
    return Permission(f"ecr:{action}", f"{_arn('ecr', 'repository')}/{found[1]}")


_OF_REQUEST = {
    ("manifests", "HEAD"): "BatchGetImage",
    ("manifests", "GET"): "BatchGetImage",
    ("manifests", "PUT"): "PutImage",
    ("blobs", "HEAD"): "BatchCheckLayerAvailability",
    ("blobs", "GET"): "GetDownloadUrlForLayer",
    ("blobs/uploads", "POST"): "InitiateLayerUpload",
    ("blobs/uploads", "PATCH"): "UploadLayerPart",
    ("blobs/uploads", "PUT"): "CompleteLayerUpload",
}


def _may(role: str, permission: Permission) -> bool:
    iam = iam_backends[ACCOUNT]["aws"]
    policies = [iam.get_role_policy(role, name)[1] for name in iam.list_role_policies(role)]
    return any(permission.is_given_by(given) for policy in policies for given in _statements(policy))


def _statements(policy: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a policy as moto keeps it: text, or from CloudFormation an object."""
    statements: list[dict[str, Any]] = (_parsed(policy) if isinstance(policy, str) else policy)["Statement"]
    return statements


@cache
def _parsed(policy: str) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(policy)
    return document


def _request(service: str, request: Any) -> dict[str, Any]:
    """The call's parameters, as far as a permission depends on them."""
    if service == "s3":
        return {"path": request._path.partition("?")[0].lstrip("/")}
    if service == "sts":
        return {key: value[0] if isinstance(value, list) else value for key, value in request._data.items()}
    parsed: dict[str, Any] = json.loads(request._body or b"{}")
    return parsed
