"""The network of RUN steps: foreign code that must not meet the machine's own credentials.

Link-local addresses serve credentials: 169.254.169.254 (EC2 instance metadata), 169.254.170.2 (ECS tasks),
169.254.170.23 (EKS pods). Docker's API has no switch that keeps a container from them and lets it reach the
internet: `none` and an internal network cut off everything, routes and firewall rules cannot be set over the API.
So:

* classic builder, nothing configured: builds get a bridge of their own, whose interface has a fixed name
  (`launch-build0`), so that one firewall rule of the operator holds for all builds and for nothing else. Builds
  cannot reach each other nor other containers (no inter-container traffic; docker isolates bridges). Without the
  rule link-local addresses ARE reachable, unless IMDSv2 is enforced with hop limit 1 (the answer's TTL then ends
  before the container).
  The rule belongs into the raw table: it is passed before ECS's redirect of 169.254.170.2 to an agent on the host,
  and dockerd leaves that table alone: `iptables -t raw -A PREROUTING -i launch-build0 -d 169.254.0.0/16 -j DROP`,
  and before it ACCEPT for port 53 of 169.254.169.253 where that is the resolver. IPv6 is off on this network.
* BuildKit over the API knows only `default`, `none` and `host` (dockerd: 'network mode not supported by buildkit'):
  builds run on docker's default bridge, and the rule has to name that one (`docker0`).
* `LAUNCH_BUILD_NETWORK` names any other network; `none` is airtight for both builders.

`ImageBuilder.reaches` tells what a RUN step can reach, by running one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from worker.errors import Again, SettingsError, Unreachable

if TYPE_CHECKING:
    from worker.clients.docker import DockerEngine

NETWORK = "launch-worker-build"
INTERFACE = "launch-build0"
"""The host's name of that bridge; the kernel allows 15 characters."""
LABEL = "launch-worker"
METADATA = (("169.254.169.254", 80), ("169.254.170.2", 80), ("169.254.170.23", 80))
"""Where credentials are served: EC2, ECS, EKS."""

_BUILDKIT_NETWORKS = frozenset({"", "default", "none", "host"})
_OPTIONS: Mapping[str, str] = {
    "com.docker.network.bridge.name": INTERFACE,
    "com.docker.network.bridge.enable_icc": "false",
}


class BuildNetwork:
    """Which network a build gets. Raises `SettingsError` for one that the builder cannot use."""

    def __init__(self, docker: DockerEngine, configured: str, *, buildkit: bool) -> None:
        if buildkit and configured not in _BUILDKIT_NETWORKS:
            raise SettingsError(
                f"LAUNCH_BUILD_NETWORK: over docker's API BuildKit has only `none`, `host` and `default`, not"
                f" `{configured}`; take one of them, or LAUNCH_BUILDER=docker"
            )
        self._docker = docker
        self._configured = configured
        self._buildkit = buildkit
        self._lock = asyncio.Lock()

    async def name(self) -> str | None:
        """The network for the next build, created if it is ours; None: docker's default. Raises `Again`."""
        if self._configured:
            return self._configured
        if self._buildkit:
            return None
        async with self._lock:
            try:
                await self._docker.ensure_network(NETWORK, options=_OPTIONS, label=LABEL)
            except Unreachable as error:
                raise Again(
                    f"the network {NETWORK} for builds cannot be made: {error}; make one yourself and name it with"
                    " LAUNCH_BUILD_NETWORK (`host` and `none` exist always)"
                ) from error
        return NETWORK
