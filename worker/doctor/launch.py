"""One launch message against all that it needs; nothing is started, fetched whole or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worker.clients.api_key import ApiKey
from worker.clients.aws import AwsClients, AwsDenied, AwsRefused, call, ecr_client, quotas_client
from worker.doctor.check import Check, failed, guarded, ok, skipped
from worker.doctor.images import builds
from worker.errors import Again, Never
from worker.images.reference import ImageReference, parse_ecr_host, parse_reference
from worker.launch.job_spec import parse_artifact_ref
from worker.launch.message import CodeSource, JobSource, Launch, interpret, parse_message
from worker.operating.sender import planned_request
from worker.settings import Settings, inherited_environment
from worker.sources.checkout import SourceLimits
from worker.sources.git import GitClient
from worker.sources.git_command import INHERITED, INHERITED_PREFIXES
from worker.sources.git_credentials import GitCredentials
from worker.sources.location import GitRemote, S3Object, parse_location
from worker.sources.scratch import scratch_folder
from worker.sources.wandb_job import wandb_jobs
from worker.training.request import AccountFacts

_IS_CODE = "launch-worker-doctor"
"""Tag of the image that code would get: it is never asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that is right in itself, and the CreateTrainingJob request it leads to."""

    launch: Launch
    request: Mapping[str, Any]
    has_id: bool
    """Sent again, it is the same launch: it names its id, or the item of W&B's queue."""

    @property
    def job(self) -> str:
        """The training job that it becomes; `enqueue` gives a message without an id a new one each time."""
        if self.has_id:
            return f"becomes the training job {self.request['TrainingJobName']}"
        return "becomes a training job; it has no launchId: a new id each time it is sent"

    @property
    def roles(self) -> tuple[str, ...]:
        """The execution role."""
        return (str(self.request["RoleArn"]),)


def read_message(body: str, settings: Settings, account: AccountFacts) -> Asked:
    """The message as a worker would take it. Raises `BadMessage` with all that is wrong with it, or `Never`."""
    message = parse_message(body)
    launch = interpret(message, launch_id="doctor", default_log_target=settings.log_target)
    image = None
    if isinstance(launch.source, CodeSource | JobSource):
        if isinstance(launch.source, CodeSource) and not builds(settings):
            raise Never(
                "the launch is code, and this worker builds no images; set LAUNCH_REGISTRY and LAUNCH_BUILDER",
                code="LW-NO-BUILDER",
            )
        image = f"{settings.registry or 'image-of-the-job'}:{_IS_CODE}"
    planned = planned_request(body, settings, account=account, image=image)
    return Asked(launch, planned.request, bool(message.launch_id or message.item_id))


async def launch_checks(
    asked: Asked, aws: AwsClients, settings: Settings, api_key: ApiKey | None, work_dir: Path
) -> list[Check]:
    """Source or image, quota, output."""
    found: list[Check] = [ok("message", asked.job)]
    for name, examine in (
        ("image", partial(_image, asked, aws, settings)),
        ("source", partial(_source, asked, aws, settings, api_key, work_dir)),
        ("quota", partial(_quota, asked, aws, settings)),
        ("output", partial(_output, asked, aws)),
    ):
        found += await guarded(name, examine)
    return found


async def _image(asked: Asked, aws: AwsClients, settings: Settings) -> Sequence[Check]:
    image = asked.request["AlgorithmSpecification"].get("TrainingImage", "")
    if not image:
        return [skipped("image", "an algorithm of SageMaker brings its own")]
    if image.endswith(f":{_IS_CODE}"):
        return [skipped("image", "it is built from the source, or named by the W&B job")]
    reference = parse_reference(image)
    host = parse_ecr_host(reference.host)
    ours = settings.registry and reference.host == parse_reference(settings.registry).host
    if not host and not ours:
        return [
            skipped(
                "image", f"{image} is not in ECR: only SageMaker itself can tell whether it may be pulled"
            )
        ]
    if host and host.region != aws.region:
        what = f"{image} is in {host.region}, the job would run in {aws.region}"
        return [failed("image", what, f"push it to a repository in {aws.region}")]
    return [await _image_in_ecr(reference, aws, {"registryId": host.account} if host else {})]


async def _image_in_ecr(reference: ImageReference, aws: AwsClients, account: Mapping[str, str]) -> Check:
    wanted: Any = (
        {"imageDigest": reference.digest} if reference.digest else {"imageTag": reference.tag or "latest"}
    )
    parameters: Any = {"repositoryName": reference.path, "imageIds": [wanted], **account}
    remedy = "push it first, or correct the image's name"
    try:
        async with ecr_client(aws.region) as ecr:
            answer = await call("BatchGetImage", lambda: ecr.batch_get_image(**parameters))
    except AwsRefused as error:
        if error.aws_code != "RepositoryNotFoundException":
            raise
        return failed("image", f"ECR has no repository {reference.path}", remedy)
    except AwsDenied as error:
        return skipped("image", f"{reference}: {error}")
    if not answer.get("images"):
        return failed("image", f"{reference} is not in ECR", remedy)
    return ok("image", f"{reference} is in ECR")


async def _source(
    asked: Asked, aws: AwsClients, settings: Settings, api_key: ApiKey | None, work_dir: Path
) -> Sequence[Check]:
    source = asked.launch.source
    if isinstance(source, JobSource):
        return [await _job(source.job, settings, api_key)]
    if not isinstance(source, CodeSource):
        return []
    location = parse_location(source.uri)
    if isinstance(location, S3Object):
        return [await _archive(location, aws)]
    return [await _remote(location, source.version, settings, work_dir)]


async def _job(job: str, settings: Settings, api_key: ApiKey | None) -> Check:
    if api_key is None:
        return failed("source", f"{job} is a W&B job, and there is no login to W&B", "set WANDB_API_KEY")
    reference = parse_artifact_ref(job)
    if reference is None:
        return failed("source", f"{job!r} names no job", "write entity/project/name:alias")
    async with wandb_jobs(settings.wandb_base_url, api_key) as jobs:
        found = await jobs.job(reference)
    return ok("source", f"{job} is {found.artifact.id}")


async def _archive(location: S3Object, aws: AwsClients) -> Check:
    try:
        await call("HeadObject", lambda: aws.s3.head_object(Bucket=location.bucket, Key=location.key))
    except AwsDenied as error:
        return failed("source", f"{location.origin}: {error}", "allow s3:GetObject on it (docs/iam.md)")
    except AwsRefused as error:
        what = f"{location.origin} does not exist ({error.aws_code})"
        return failed("source", what, "check the uri and upload the archive first")
    return ok("source", location.origin)


async def _remote(remote: GitRemote, version: str, settings: Settings, work_dir: Path) -> Check:
    git = GitClient(
        environ=inherited_environment(INHERITED, INHERITED_PREFIXES),
        credentials=GitCredentials(settings.git_credentials),
        allowed_hosts=settings.allowed_git_hosts,
    )
    async with scratch_folder(work_dir) as scratch:
        commit = await git.look_up(remote, version, scratch=scratch, limits=SourceLimits())
    return ok("source", f"{remote.origin} {version or 'HEAD'} is {commit[:12]}")


async def _quota(asked: Asked, aws: AwsClients, settings: Settings) -> Sequence[Check]:
    if settings.assume_role:
        return [skipped("quota", "Service Quotas of the account of LAUNCH_ASSUME_ROLE do not answer here")]
    request = asked.request
    use = "spot training job usage" if request.get("EnableManagedSpotTraining") else "training job usage"
    wanted = {f"{kind} for {use}": count for kind, count in _machines(request["ResourceConfig"]).items()}
    try:
        quotas = await _quotas(aws.region)
    except (Again, AwsRefused) as error:
        return [skipped("quota", f"{error} (servicequotas:ListServiceQuotas)")]
    checks = []
    for name, count in wanted.items():
        value = quotas.get(name)
        if value is None:
            checks.append(skipped("quota", f"Service Quotas lists no {name!r}"))
        elif value < count:
            what = f"{name}: the quota is {value:g}, the launch asks for {count}"
            checks.append(
                failed("quota", what, "ask for more in Service Quotas, or use another instance type")
            )
        else:
            checks.append(ok("quota", f"{name}: {value:g}, {count} wanted"))
    return checks


def _machines(resources: Mapping[str, Any]) -> dict[str, int]:
    """Instance type → how many of it."""
    groups = resources.get("InstanceGroups") or [resources]
    counts: dict[str, int] = {}
    for group in groups:
        kind = str(group["InstanceType"])
        counts[kind] = counts.get(kind, 0) + int(group.get("InstanceCount", 1))
    return counts


async def _quotas(region: str) -> dict[str, float]:
    """SageMaker's quotas in this account, by name."""
    found: dict[str, float] = {}
    page: dict[str, Any] = {}
    async with quotas_client(region) as client:
        while True:
            answer = await call(
                "ListServiceQuotas",
                lambda page=page: client.list_service_quotas(ServiceCode="sagemaker", **page),  # type: ignore[misc]
            )
            found |= {quota["QuotaName"]: float(quota["Value"]) for quota in answer["Quotas"]}
            if not answer.get("NextToken"):
                return found
            page = {"NextToken": answer["NextToken"]}


async def _output(asked: Asked, aws: AwsClients) -> Sequence[Check]:
    uri = str(asked.request["OutputDataConfig"]["S3OutputPath"])
    bucket = uri.removeprefix("s3://").partition("/")[0]
    try:
        await call("HeadBucket", lambda: aws.s3.head_bucket(Bucket=bucket))
    except AwsDenied:
        why = "exists, or may: this worker may not look into it. The job's role must be allowed s3:PutObject there"
        return [skipped("output", f"{bucket} {why}")]
    except AwsRefused as error:
        if error.aws_code in ("301", "400"):
            what = f"the bucket {bucket} is not in {aws.region}"
            return [failed("output", what, "name a bucket in the Region of the job")]
        what = f"the bucket {bucket} does not exist"
        return [failed("output", what, "create it, or correct OutputDataConfig.S3OutputPath")]
    return [ok("output", f"{uri}: the bucket exists; the job's role must be allowed s3:PutObject there")]
