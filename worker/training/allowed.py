"""The operator's policy, from the settings."""

from __future__ import annotations

from worker.settings import Settings
from worker.training.policy import Policy


def policy_of(settings: Settings) -> Policy:
    """What the operator allows messages to ask for (`LAUNCH_ALLOWED_*`, `LAUNCH_SECURE_MODE`)."""
    return Policy(
        secure_mode=settings.secure_mode,
        roles=settings.allowed_roles,
        images=settings.allowed_images,
        instance_types=settings.allowed_instance_types,
        regions=settings.allowed_regions,
        git_hosts=settings.allowed_git_hosts,
    )
