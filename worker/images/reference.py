"""Image references, ECR host names and the tag by which an image is found again. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

DOCKER_HUB = "docker.io"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")
_ECR_HOST = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9-]+)\."
    r"(?:amazonaws\.(?:com(?:\.cn)?|eu)|on\.(?:aws|amazonwebservices\.(?:com\.cn|eu))"
    r"|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)"
)
"""Registry hosts as in awslabs/amazon-ecr-credential-helper: `dkr.ecr.R.amazonaws.com` and, dual-stack,
`dkr-ecr.R.on.aws`; with `-fips`; GovCloud by its Region; China's, the European and the isolated suffixes."""

_TAG_LENGTH = 56
"""Hex digits of the content address in a tag: 224 bits."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`host/path:tag@digest`, taken apart as docker does (distribution/reference)."""

    host: str
    """With its port; `docker.io` when the text names none."""
    path: str
    """With `library/` where docker adds it."""
    tag: str
    """Empty: none was given (docker takes `latest`, unless there is a digest)."""
    digest: str

    @property
    def repository(self) -> str:
        """Without tag and digest, as the docker daemon lists it: Docker Hub's host and `library/` are left out."""
        if self.host != DOCKER_HUB:
            return f"{self.host}/{self.path}"
        return self.path.removeprefix("library/")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{'@' + self.digest if self.digest else ''}"


@dataclass(frozen=True, slots=True)
class EcrHost:
    """A private ECR registry."""

    account: str
    region: str


def parse_reference(text: str) -> ImageReference:
    """Take an image reference apart. Raises `ValueError` with the reason."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text!r}: {digest!r} is no digest such as sha256:…")
    # A colon is a tag's only behind the last slash; before it, it is a registry's port.
    name, colon, tag = rest, "", ""
    if ":" in rest.rpartition("/")[2]:
        name, colon, tag = rest.rpartition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(f"{text!r}: {tag!r} is no image tag")
    first, slash, remainder = name.partition("/")
    if slash and ({".", ":", "["} & set(first) or first == "localhost" or first != first.lower()):
        host, path = first, remainder
    else:
        host, path = DOCKER_HUB, name
    if host in {DOCKER_HUB, "index.docker.io"}:
        host, path = DOCKER_HUB, path if "/" in path else f"library/{path}"
    if not _HOST.fullmatch(host):
        raise ValueError(f"{text!r}: {host!r} is no registry host")
    if not _PATH.fullmatch(path):
        raise ValueError(f"{text!r}: {path.removeprefix('library/')!r} is no repository name (lower case)")
    return ImageReference(host=host, path=path, tag=tag, digest=digest)


def parse_ecr_host(host: str) -> EcrHost | None:
    """Account and Region of a private ECR registry's host name; None for any other host."""
    match = _ECR_HOST.fullmatch(host.lower().removesuffix(":443"))
    return EcrHost(account=match["account"], region=match["region"]) if match else None


def image_tag(
    *, origin: str, content_id: str, dockerfile: str, bases: Mapping[str, str], platform: str
) -> str:
    """The content address of an image, as a docker tag: what goes in decides, and nothing else does.

    `origin`: the qualified source, so that two projects never share an image; `content_id`: what was fetched;
    `dockerfile`: its text; `bases`: FROM reference → digest."""
    parts = [origin, content_id, dockerfile, platform]
    for reference in sorted(bases):
        parts += [reference, bases[reference]]
    digest = hashlib.sha256(b"launch-worker image 1")
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        # With its length before it, no part can be continued by the next one.
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:_TAG_LENGTH]
