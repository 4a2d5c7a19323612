"""The operator's policy, from the settings."""

from __future__ import annotations

from worker.errors import SettingsError
from worker.launch.retry import RetryRules, parse_instance_types, parse_retry
from worker.settings import Settings
from worker.training.policy import Policy


def policy_of(settings: Settings) -> Policy:
    """What the operator allows messages to ask for (`LAUNCH_ALLOWED_*`, `LAUNCH_MAX_INSTANCES`,
    `LAUNCH_MAX_RUNTIME`, `LAUNCH_LOCK_ENTRYPOINT`, `LAUNCH_SECURE_MODE`, `LAUNCH_CONTAINER_API_KEY`)."""
    return Policy(
        secure_mode=settings.secure_mode,
        lock_entrypoint=settings.lock_entrypoint,
        container_key=settings.container_api_key == "environment",
        roles=settings.allowed_roles,
        images=settings.allowed_images,
        instance_types=settings.allowed_instance_types,
        regions=settings.allowed_regions,
        git_hosts=settings.allowed_git_hosts,
        subnets=settings.allowed_subnets,
        security_groups=settings.allowed_security_groups,
        environment=settings.allowed_environment,
        outputs=settings.allowed_outputs,
        max_instances=settings.max_instances,
        max_runtime=None if settings.max_runtime is None else int(settings.max_runtime),
    )


def retry_rules_of(settings: Settings) -> RetryRules:
    """Further attempts, and what may stand for what, as the operator says. Raises `SettingsError`."""
    try:
        allowed = parse_retry(settings.retry)
    except ValueError as error:
        raise SettingsError(f"LAUNCH_RETRY: {error}") from error
    try:
        types = parse_instance_types(settings.instance_types)
    except ValueError as error:
        raise SettingsError(f"LAUNCH_INSTANCE_TYPES: {error}") from error
    return RetryRules(allowed, types)
