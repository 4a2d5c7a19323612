"""For each IAM action, the worker's own code making a call that needs it."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.deploy.calls import DOCKER_PUSH
from tests.deploy.policies import actions, policy
from tests.e2e.bench import Clients
from tests.fakes.aws_server import quick_rates
from tests.unit.records import WORKER, record
from worker.aio import Breather
from worker.clients.api_key import KeyPlaces
from worker.clients.aws import AwsClients
from worker.clients.aws_role import TargetRole, with_role
from worker.images.registry import EcrRegistry
from worker.intake.dead_letter_queue import DeadLetterQueue
from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage, queue_facts
from worker.launch.record import LaunchRecord
from worker.ledger.dynamodb import DynamoDbLedger
from worker.local.aws import REGION
from worker.local.stack import LocalServices
from worker.operating.rebuilding import Rebuilding
from worker.ops.metrics import Metrics
from worker.settings import load_settings
from worker.sources.checkout import Budget, SourceLimits
from worker.sources.location import S3Object
from worker.sources.s3 import download
from worker.training.log_feed import LogFeed
from worker.training.sagemaker import SageMaker
from worker.training.status_feed import StatusFeed

if TYPE_CHECKING:
    from worker.clients.docker import DockerEngine

DEPLOYMENT = "default"
SOURCE = "code.tar.gz"
BASE_REPOSITORY = "bases"


@dataclass(frozen=True)
class Field:
    """The worker's clients, with its role's credentials; and those of the test, who may do everything."""

    services: LocalServices
    aws: AwsClients
    admin: Clients
    docker: DockerEngine | None = None

    @property
    def facts(self) -> QueueFacts:
        services = self.services
        return QueueFacts(services.queue_url, "", fifo=False, dlq_url=services.dlq_url)

    @property
    def queue(self) -> LaunchQueue:
        return LaunchQueue(self.aws.sqs, self.facts)

    @property
    def sagemaker(self) -> SageMaker:
        return SageMaker(self.aws.sagemaker, quick_rates())

    @property
    def log_feed(self) -> LogFeed:
        return LogFeed(self.aws.logs, quick_rates(), Metrics(), breather=Breather())

    @property
    def ledger(self) -> DynamoDbLedger:
        return DynamoDbLedger(self.aws.dynamodb, self.services.table)

    @property
    def registry(self) -> EcrRegistry:
        """Without a docker daemon it can do all but push."""
        docker = cast("DockerEngine", self.docker)
        return EcrRegistry(self.aws.ecr, docker, self.services.registry, create_repository=True)

    async def an_image(self) -> str:
        """A small image like no other, on the docker daemon."""
        tag, context = f"launch-local/probe:{uuid.uuid4().hex}", io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as packed:
            for name, text in {"Dockerfile": b"FROM scratch\nCOPY file /\n", "file": tag.encode()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                packed.addfile(member, io.BytesIO(text))
        context.seek(0)
        assert self.services.docker is not None
        await self.services.docker.images.build(fileobj=context, encoding="identity", tag=tag, rm=True)
        return tag

    def job_request(self, **changes: Any) -> dict[str, Any]:
        name = f"job-{uuid.uuid4().hex[:8]}"
        return {
            "TrainingJobName": name,
            "RoleArn": self.services.role_arn,
            "AlgorithmSpecification": {
                "TrainingImage": "an-image",
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["true"],
            },
            "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "Environment": {"LAUNCH_ID": name},
            "Tags": [{"Key": "LaunchWorker", "Value": DEPLOYMENT}],
            **changes,
        }

    async def a_job(self, **changes: Any) -> str:
        """The name of a training job that exists."""
        request = self.job_request(**changes)
        await self.admin.sagemaker.create_training_job(**request)
        return str(request["TrainingJobName"])

    async def a_message(self) -> SqsMessage:
        """A launch message under a lease."""
        url = self.services.queue_url
        await self.admin.sqs.send_message(QueueUrl=url, MessageBody="{}")
        answer = await self.admin.sqs.receive_message(QueueUrl=url, VisibilityTimeout=30)
        raw = answer["Messages"][0]
        return SqsMessage(raw["MessageId"], raw["ReceiptHandle"], raw["Body"], 1, "")

    async def a_record(self) -> LaunchRecord:
        """An open launch in the ledger, held by WORKER."""
        made = record(f"launch-{uuid.uuid4().hex[:8]}")
        await DynamoDbLedger(self.admin.dynamodb, self.services.table).create(made)
        return made


async def create_training_job(field: Field) -> None:
    await field.sagemaker.create_or_adopt(field.job_request())


async def describe_training_job(field: Field) -> None:
    await field.sagemaker.describe(await field.a_job())


async def list_training_jobs(field: Field) -> None:
    await StatusFeed(field.aws.sagemaker, quick_rates(), since=0, now=time.time).changes()


async def list_tags(field: Field) -> None:
    described = await field.admin.sagemaker.describe_training_job(TrainingJobName=await field.a_job())
    await field.sagemaker.tags(described["TrainingJobArn"])


async def stop_training_job(field: Field) -> None:
    await field.sagemaker.stop(await field.a_job())


async def describe_log_streams(field: Field) -> None:
    await field.log_feed.streams("job")


async def filter_log_events(field: Field) -> None:
    async for _ in field.log_feed.pages(["job/algo-1"], 0, None):
        pass


async def read_queue_attributes(field: Field) -> None:
    await queue_facts(field.aws.sqs, field.services.queue_url, field.services.dlq_url)


async def find_dead_letter_queue(field: Field) -> None:
    await queue_facts(field.aws.sqs, field.services.queue_url, "")


async def receive(field: Field) -> None:
    await field.a_message()
    await field.queue.receive(1, wait=0, visibility=1)


async def delete(field: Field) -> None:
    await field.queue.delete(await field.a_message())


async def extend_lease(field: Field) -> None:
    message = await field.a_message()
    await field.queue.hide(message, 1)
    await field.queue.extend([message], 1)


async def refuse(field: Field) -> None:
    await field.queue.copy_to_dlq("{}", "launch", {"code": "LW-TEST"})


async def send(field: Field) -> None:
    await field.queue.send("{}", "launch")


async def look_at_dead_letters(field: Field) -> None:
    letters = DeadLetterQueue(field.aws.sqs, field.services.dlq_url)
    for launch in ("one that is deleted", "one that is shown again"):
        await LaunchQueue(field.admin.sqs, field.facts).copy_to_dlq("{}", launch, {})
    found = await letters.look()
    await letters.release(found.letters[1:])
    await letters.delete(found.letters[0])


async def read_ledger(field: Field) -> None:
    await field.ledger.read("launch")


async def write_ledger(field: Field) -> None:
    one, other = await field.a_record(), await field.a_record()
    await field.ledger.save([one], owner=WORKER)
    await field.ledger.save([replace(one, tries=1), replace(other, tries=1)], owner=WORKER)


async def claim(field: Field) -> None:
    assert await field.ledger.claim(await field.a_record(), "somebody else") is not None


async def forget_worker(field: Field) -> None:
    await field.ledger.forget_worker(WORKER)


async def find_launches(field: Field) -> None:
    made = await field.a_record()
    assert made in await field.ledger.open_records(WORKER)


async def fetch_source(field: Field) -> None:
    await field.admin.s3.put_object(Bucket="launch-dev", Key=SOURCE, Body=b"code")
    budget = Budget(SourceLimits(100, 100, 10), code="LW-TEST")
    with tempfile.TemporaryDirectory() as folder:
        await download(field.aws.s3, S3Object("launch-dev", SOURCE), Path(folder) / "source", budget)


async def log_in_to_ecr(field: Field) -> None:
    await field.registry.auth()


async def find_image(field: Field) -> None:
    await field.registry.find("latest")


async def push_image(field: Field) -> None:
    assert field.docker is not None
    image = await field.an_image()
    try:
        await field.registry.push(image, image.rpartition(":")[2], lambda _: None)
    finally:
        await field.docker.remove_image(image)


async def pull_base(field: Field) -> None:
    services, docker = field.services, field.docker
    assert services.ecr is not None
    assert services.docker is not None
    assert docker is not None
    image = await field.an_image()
    reference = await services.ecr.seed_image(services.docker, image, BASE_REPOSITORY, "base")
    await docker.remove_image(image)
    await docker.pull(reference, await field.registry.auth_for(reference))
    await docker.remove_image(reference)


async def find_repository(field: Field) -> None:
    await field.registry.ensure_repository()


async def create_repository(field: Field) -> None:
    await field.registry._create()


async def assume_role(field: Field) -> None:
    async with with_role(field.aws, TargetRole("arn:aws:iam::210987654321:role/launch-target")):
        pass


async def read_secret(field: Field) -> None:
    await _key("secretsmanager:wandb-key")


async def read_parameter(field: Field) -> None:
    await _key("ssm:/wandb/key")


async def _key(source: str) -> None:
    place = KeyPlaces(source=source, environment="", base_url="", netrc=None, region=REGION)
    assert await place.read() == "a" * 40


async def search_jobs(field: Field) -> None:
    settings = load_settings(None, {"LAUNCH_DEPLOYMENT": DEPLOYMENT})
    await Rebuilding(field.ledger, field.aws, settings).rebuild(dry_run=True)


async def list_launches(field: Field) -> None:
    await field.ledger.records(over=False)
    await field.ledger.records(over=True)


PROBES: Mapping[str, Callable[[Field], Awaitable[None]]] = {
    "sqs:GetQueueAttributes": read_queue_attributes,
    "sqs:GetQueueUrl": find_dead_letter_queue,
    "sqs:ReceiveMessage": receive,
    "sqs:DeleteMessage": delete,
    "sqs:ChangeMessageVisibility": extend_lease,
    "sqs:SendMessage": refuse,
    "sagemaker:CreateTrainingJob": create_training_job,
    "sagemaker:AddTags": create_training_job,
    "iam:PassRole": create_training_job,
    "sagemaker:DescribeTrainingJob": describe_training_job,
    "sagemaker:ListTrainingJobs": list_training_jobs,
    "sagemaker:ListTags": list_tags,
    "sagemaker:Search": search_jobs,
    "sagemaker:StopTrainingJob": stop_training_job,
    "logs:DescribeLogStreams": describe_log_streams,
    "logs:FilterLogEvents": filter_log_events,
    "dynamodb:GetItem": read_ledger,
    "dynamodb:BatchGetItem": find_launches,
    "dynamodb:PutItem": write_ledger,
    "dynamodb:UpdateItem": claim,
    "dynamodb:DeleteItem": forget_worker,
    "dynamodb:Query": find_launches,
    "dynamodb:Scan": list_launches,
    "s3:GetObject": fetch_source,
    "ecr:GetAuthorizationToken": log_in_to_ecr,
    "ecr:BatchGetImage": find_image,
    "ecr:DescribeRepositories": find_repository,
    **dict.fromkeys(DOCKER_PUSH, push_image),
    "ecr:GetDownloadUrlForLayer": pull_base,
    "ecr:CreateRepository": create_repository,
    "ecr:TagResource": create_repository,
    "sts:AssumeRole": assume_role,
    "secretsmanager:GetSecretValue": read_secret,
    "ssm:GetParameter": read_parameter,
}
SENDING = {"sqs:SendMessage": send}
"""Where a policy sends to the queue itself."""
DEAD_LETTERS = dict.fromkeys(
    ("sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
    look_at_dead_letters,
)
"""Where a policy reads the dead-letter queue."""
OF_STATEMENT = {
    ("mirror.json", "SendLaunchMessages"): SENDING,
    ("sender.json", "SendLaunchMessages"): SENDING,
    ("operator.json", "SendLaunchesBack"): SENDING,
    ("optional/base-images.json", "PullBaseImages"): {"ecr:BatchGetImage": pull_base},
    ("optional/worker-image.json", "PullTheWorkersImage"): {"ecr:BatchGetImage": pull_base},
    ("operator.json", "LookAtRefusedMessages"): DEAD_LETTERS,
}
"""Statements that allow an action for another purpose than the worker's."""
NOT_TRIED = {"kms:CreateGrant", "kms:Decrypt", "sts:TagSession", *actions(policy("optional/job-vpc.json"))}
"""What AWS itself asks for on behalf of a call: moto's services use no keys, pass no tags on, know no VPC of jobs."""
