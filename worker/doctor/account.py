"""Who the worker is in AWS, where, and whether its clock is right."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from worker.clients.aws import AwsClients, Caller
from worker.doctor.check import Check, failed, ok, skipped
from worker.images.reference import parse_ecr_host, parse_reference
from worker.intake.sqs import in_other_region
from worker.settings import Settings

CLOCK_LIMIT = 60.0
"""Seconds. AWS refuses signatures that are five minutes off (Signature Version 4)."""


def credentials_check(caller: Caller, settings: Settings) -> Check:
    """They were accepted; which ones they are."""
    role = f"; SageMaker and logs as {settings.assume_role}" if settings.assume_role else ""
    return ok("credentials", f"{caller.arn}{role}")


def region_check(aws: AwsClients, settings: Settings) -> Check:
    """Queue and registry lie where the worker's clients look, and jobs may run there."""
    region = aws.region
    if elsewhere := in_other_region(settings.queue_url, region):
        what, _, remedy = elsewhere.partition(": ")
        return failed("region", what, remedy)
    registry_region = _region_of_registry(settings.registry)
    if registry_region and registry_region != region:
        return failed(
            "region",
            f"LAUNCH_REGISTRY is in {registry_region}, the worker in {region}: SageMaker pulls in its own Region only",
            f"push to a repository in {region}, or set AWS_REGION={registry_region}",
        )
    if settings.allowed_regions and not any(fnmatchcase(region, glob) for glob in settings.allowed_regions):
        return failed(
            "region",
            f"{region} is not in LAUNCH_ALLOWED_REGIONS: every launch would be refused",
            f"add {region} to it, or set AWS_REGION to one that is allowed",
        )
    return ok("region", region)


def clock_check(ahead: float) -> Check:
    """`ahead`: seconds by which AWS's clock is ahead of this host's (`Date` of its answers); 0 for no answer."""
    if ahead == 0:
        return skipped("clock", "AWS did not tell its time")
    if abs(ahead) > CLOCK_LIMIT:
        slow = "behind" if ahead > 0 else "ahead of"
        return failed(
            "clock",
            f"this host is {abs(ahead):.0f} s {slow} AWS",
            "let NTP set it (chrony, systemd-timesyncd); beyond five minutes AWS refuses every call",
        )
    return ok("clock", f"{abs(ahead):.1f} s from AWS's")


def full_role_arns(settings: Settings) -> Sequence[str]:
    """Role ARNs of jobs that the settings name in full, not as globs."""
    return [arn for arn in settings.allowed_roles if not set("*?[") & set(arn)]


def _region_of_registry(uri: str) -> str:
    try:
        host = parse_ecr_host(parse_reference(uri).host) if uri else None
    except ValueError:
        return ""
    return host.region if host else ""
