"""The words of the docker API: credentials and facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """Credentials of one registry. The password stays out of `repr`."""

    username: str
    password: str = field(repr=False)
    server: str
    """`host[:port]`."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image on the daemon."""

    id: str
    repo_digests: tuple[str, ...]
    """`repository@sha256:…`, one for each repository it was pulled from or pushed to."""
    architecture: str
    os: str
    size: int
    """Bytes, unpacked."""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """The daemon itself."""

    version: str
    platform: str
    """As in `linux/amd64`."""
    root: Path
    """Where it keeps images, on its own machine."""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes that the daemon's images and build cache take."""

    images: int
    build_cache: int
