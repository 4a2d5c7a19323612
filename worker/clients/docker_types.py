"""The words of the docker API: credentials and facts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def auth_header(auth: RegistryAuth | None) -> str:
    """Value of X-Registry-Auth; the daemon wants one even without credentials."""
    if auth is None:
        return header({})
    return header({"username": auth.username, "password": auth.password, "serveraddress": auth.server})


def header(value: Mapping[str, Any]) -> str:
    """JSON as base64url, as the daemon takes it in a header."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
