"""What the docker daemon's refusals mean. Pure.

The daemon answers in prose, and its HTTP status misleads: a wrong tag and a missing Dockerfile are 500s, and whatever
goes wrong once a stream has begun comes with no status (0) at all. So the text is read first, the status second.
Texts are those of dockerd 20.10 to 29 and of ECR (tests/unit/images/test_docker_errors.py has one of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from worker.errors import Again, Never, Stage, Unreachable, WorkerError

CONNECTION_LOST = 900
"""aiodocker's own status for: no connection to the daemon."""

_LAST_LINES = 15


class DiskFull(Again):
    """The daemon's disk is full."""


class RegistryAuthFailed(Again):
    """The registry does not take the credentials: none, wrong or expired. Fresh ones may do."""


class RegistryDenied(Again):
    """The registry knows us and says no. Somebody can allow it."""


class BuildFailed(Never):
    """A step of the Dockerfile failed. `step` names it, `lines` are the last of the build's output."""

    def __init__(self, step: str, reason: str, lines: Sequence[str]) -> None:
        shown = "\n".join(lines[-_LAST_LINES:])
        text = f"the image build failed at {step or 'a step'}: {reason}"
        super().__init__(f"{text}\n{shown}" if shown else text, code="LW-BUILD-FAILED", stage=Stage.BUILD)
        self.step = step
        self.lines = tuple(lines)


class ImageUnknown(Never):
    """No registry has this image, or none shows it to us."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="LW-BASE-IMAGE", stage=Stage.BUILD)


class RepositoryUnknown(Again):
    """The registry has no such repository. Whoever runs the worker can create it; the launch is not to blame."""


class TagExists(Never):
    """The tag is taken by another image and the repository's tags are immutable."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="LW-TAG-EXISTS", stage=Stage.BUILD)


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_DISK_FULL = _any("no space left on device", "disk quota exceeded", "not enough space on the disk")
_DAEMON_LOST = _any(
    "cannot connect to (the )?docker",
    "(^|: )context cancell?ed$",
    "(^|: )unexpected EOF$",
    "transport is closing",
    "code = (Unavailable|Canceled)",
    "daemon is (shutting down|not running)",
    "containerd.*connection refused",
)
_CACHE_REMOVED = _any(
    "unknown parent image ID",
    "layer does not exist",
    "no such image: sha256:",
    'unable to find image "?sha256:',
)
"""Somebody has removed an image of the build cache beside the build: a clean-up by hand, or by another worker."""
_PARSE_ERROR = _any("dockerfile parse error")
"""Goes on with any text of the file's, and with `unexpected EOF`."""
_STEP_FAILED = _any("returned a non-zero code", "executor failed running", "did not complete successfully")
_DOCKERFILE = _any(
    "dockerfile parse error",
    "unknown instruction",
    "failed to parse",
    "the dockerfile .* cannot be empty",
    "file with no instructions",
    "no build stage in current context",
    "cannot locate specified dockerfile",
    "failed to read dockerfile",
    "forbidden path outside the build context",
    "base name .* should not be blank",
    "invalid reference format",
    "failed to create LLB definition",
    "requires at least (one|two) argument",
    "circular dependency detected",
    "repository name must be lowercase",
)
_AUTH_FAILED = _any(
    "no basic auth credentials",
    "authorization token has expired",
    "unauthorized",
    "authentication required",
    "denied: not authorized",
    r"status(?: code)?:? 401",
    "incorrect username or password",
    "no active sessions",
)
_DENIED = _any(
    "is not authorized to perform",
    r"status(?: code)?:? 403",
    "HTTP 403 response",  # to a HEAD: docker looks for a body and finds none
    "403 forbidden",
    "(^|: )denied: ",
)
_ARCHITECTURE = _any(
    "no matching manifest for", "no match for platform", "does not match the specified platform"
)
_UNKNOWN_IMAGE = _any(
    "pull access denied",
    "repository does not exist",
    "manifest (for .* not found|unknown)",
    "name unknown",
    "repository .* not found",
    "image .* not found",
    "[^ ]+: not found$",
)
_REGISTRY_SILENT = _any(
    "dial tcp",
    "i/o timeout",
    "connection (refused|reset)",
    "no such host",
    "TLS handshake",
    "Client.Timeout",
    "EOF$",
    "server misbehaving",
    "toomanyrequests",
    "too many requests",
    "received unexpected HTTP status: 5",
    r"status(?: code)?:? 5\d\d",
    "bad gateway|service unavailable|gateway timeout",
    "x509:",
)
_NETWORK = _any("network .* not found", "network mode .* not supported by buildkit", "could not find bridge")
_TAG_EXISTS = _any("tag is immutable", "tag invalid: .* already exists")
_UNKNOWN_REPOSITORY = _any("name unknown", "repository with name .* does not exist")
_BAD_REFERENCE = _any("invalid reference format", "must be lowercase")
_FROM_STEP = _any(r"^Step \d+/\d+ : FROM ", r"^\[internal\] load metadata", r"^\[[^\]]*\] FROM ")
_FROM_TEXT = _any("pull access denied", "manifest unknown", "failed to resolve source metadata")
_NOT_LOCAL = _any("image does not exist locally", "tag does not exist", "no such image")


def _wrong_architecture(text: str) -> WorkerError:
    message = f"the image does not exist for this platform: {text}"
    return Never(message, code="LW-ARCHITECTURE", stage=Stage.BUILD)


_Rules = Sequence[tuple[re.Pattern[str], Callable[[str], WorkerError]]]
"""What a text means: the first pattern that is found in it decides."""

_IMAGE_RULES: _Rules = (
    (
        _UNKNOWN_IMAGE,
        lambda text: ImageUnknown(f"no such image: {text}; check its name and that the worker may pull it"),
    ),
    (_AUTH_FAILED, lambda text: RegistryAuthFailed(f"the image's registry wants other credentials: {text}")),
    (
        _DENIED,
        lambda text: RegistryDenied(f"the image's registry refuses: {text}; allow the worker to pull it"),
    ),
)
_COMMON_RULES: _Rules = (
    (_DISK_FULL, lambda text: DiskFull(f"the docker daemon's disk is full: {text}")),
    (_DAEMON_LOST, lambda text: Unreachable(f"the docker daemon went away: {text}")),
)
_BUILD_RULES: _Rules = (
    (
        _CACHE_REMOVED,
        lambda text: Again(f"an image that this build goes on from was removed meanwhile: {text}"),
    ),
    (
        _NETWORK,
        lambda text: Again(f"{text}; set LAUNCH_BUILD_NETWORK to a network that the docker daemon has"),
    ),
    (_ARCHITECTURE, _wrong_architecture),
    (_REGISTRY_SILENT, lambda text: Unreachable(f"a registry does not answer: {text}")),
)
_DOCKERFILE_RULES: _Rules = (
    (
        _DOCKERFILE,
        lambda text: Never(f"the Dockerfile is wrong: {text}", code="LW-DOCKERFILE", stage=Stage.BUILD),
    ),
)
_PULL_RULES: _Rules = (
    (_ARCHITECTURE, _wrong_architecture),
    (_REGISTRY_SILENT, lambda text: Unreachable(f"its registry does not answer: {text}")),
    (_BAD_REFERENCE, lambda text: ImageUnknown(f"this is no image name: {text}")),
    *_IMAGE_RULES,
)
_PUSH_RULES: _Rules = (
    (_TAG_EXISTS, TagExists),
    (_UNKNOWN_REPOSITORY, RepositoryUnknown),
    (_AUTH_FAILED, RegistryAuthFailed),
    (_REGISTRY_SILENT, lambda text: Unreachable(f"the registry does not answer: {text}")),
    (_DENIED, lambda text: RegistryDenied(f"{text}; allow the worker to push there")),
    (_NOT_LOCAL, lambda text: Again(f"the image is no longer on the docker daemon: {text}")),
)


def _judge(rules: _Rules, text: str) -> WorkerError | None:
    return next((meaning(text) for pattern, meaning in rules if pattern.search(text)), None)


def build_error(status: int, text: str, step: str, lines: Sequence[str]) -> WorkerError:
    """What a failed build means. `step` and `lines`: what the build told before."""
    text = text.strip()
    if status == CONNECTION_LOST:
        return Unreachable(f"the docker daemon went away during the build: {text}")
    if _STEP_FAILED.search(text):
        full = _DISK_FULL.search("\n".join((text, *lines)))
        return DiskFull(f"a disk is full: {full[0]}, at {step}") if full else BuildFailed(step, text, lines)
    image_rules = _IMAGE_RULES if _about_base_image(step, text) else ()
    rules: _Rules = (*_COMMON_RULES, *_BUILD_RULES, *image_rules, *_DOCKERFILE_RULES)
    if _PARSE_ERROR.search(text):
        rules = _DOCKERFILE_RULES
    if known := _judge(rules, text):
        return known
    if status >= 500:
        return Unreachable(f"the docker daemon failed with {status}: {text}")
    return BuildFailed(step, text, lines)


def _about_base_image(step: str, text: str) -> bool:
    """A COPY, too, says 'not found'."""
    return not step or bool(_FROM_STEP.match(step) or _FROM_TEXT.search(text))


def pull_error(reference: str, status: int, text: str) -> WorkerError:
    """What a failed pull means."""
    text = f"{reference}: {text.strip()}"
    if status == CONNECTION_LOST:
        return Unreachable(f"the docker daemon went away: {text}")
    return _judge((*_COMMON_RULES, *_PULL_RULES), text) or Unreachable(f"pull of {text}")


def push_error(target: str, status: int, text: str) -> WorkerError:
    """What a failed push means."""
    text = f"push of {target}: {text.strip()}"
    if status == CONNECTION_LOST:
        return Unreachable(f"the docker daemon went away: {text}")
    return _judge((*_COMMON_RULES, *_PUSH_RULES), text) or Unreachable(text)


def daemon_error(what: str, status: int, text: str) -> WorkerError:
    """What any other refused request means."""
    if _DISK_FULL.search(text):
        return DiskFull(f"{what}: the docker daemon's disk is full: {text}")
    return Unreachable(f"{what}: the docker daemon answered {status}: {text}")
