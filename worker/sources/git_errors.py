"""What git's messages mean for a launch: again, or never?

git has one exit status for everything, so its (untranslated) texts are all there is. What is not known is tried again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.errors import Again, Never, Throttled, Unreachable, WorkerError
from worker.sources.checkout import SourceLimits
from worker.sources.location import SCHEME_CODE, GitRemote, without_login

AUTH_CODE = "LW-GIT-AUTH"
REF_CODE = "LW-GIT-REF"
NOT_FOUND_CODE = "LW-GIT-NOT-FOUND"
TOO_LARGE_CODE = "LW-GIT-TOO-LARGE"
UNSAFE_CODE = "LW-GIT-UNSAFE"
MOVED_CODE = "LW-GIT-MOVED"

HIDDEN = "***"
_SHOWN = 400

UNADVERTISED = re.compile(
    r"unadvertised object|want [0-9a-f]+ not valid|does not support shallow", re.IGNORECASE
)
"""The server gives out no single commit; its branches and tags have to be fetched whole."""

_GIVE_LOGIN = (
    "give the worker a login (LAUNCH_GIT_CREDENTIALS, a credential helper, or an ssh key), and check that "
    "the repository exists: many hosts ask for a login instead of telling that it does not"
)

# First match wins. The patterns are git's, curl's and ssh's words, and those of the well-known hosts.
_NEVER: tuple[tuple[str, str, str], ...] = (
    (
        r"transport '[^']*' not allowed|Protocol \S+ (?:not supported|disabled)",
        SCHEME_CODE,
        "leads to a transport other than https and ssh",
    ),
    (
        r"File too large",
        TOO_LARGE_CODE,
        "is larger than {max_bytes} bytes; leave data out of it, or raise LAUNCH_SOURCE_MAX_BYTES",
    ),
    (
        r"returned error: 30\d",
        MOVED_CODE,
        "is elsewhere now, and this worker follows no redirects; use the new URL",
    ),
    (
        r"could not read (?:Username|Password)|Authentication failed|terminal prompts disabled"
        r"|Permission denied \(|returned error: 40[13]|HTTP Basic: Access denied|Invalid username or "
        r"|Too many authentication failures|Access denied",
        AUTH_CODE,
        f"asks for a login that the worker does not have; {_GIVE_LOGIN}",
    ),
    (
        r"repository .*not found|Repository not found|does not appear to be a git repository"
        r"|returned error: (?:404|410)|could not be found|no such repository|not valid: is this a git repository",
        NOT_FOUND_CODE,
        "does not exist, or the worker's login may not see it; check the URL",
    ),
    (
        r"couldn't find remote ref|not our ref|unadvertised object|want [0-9a-f]+ not valid|no such remote ref",
        REF_CODE,
        "has no such branch, tag or commit as {version}; push it, or correct git.version",
    ),
    (
        r"invalid path",
        UNSAFE_CODE,
        "holds files that git does not write",
    ),
)
_HOST_KEY = re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED")
_THROTTLED = re.compile(r"returned error: 429|[Tt]oo many requests")
_DISK_FULL = re.compile(r"No space left on device|[Dd]isk quota exceeded")
_NOISE = re.compile(r"(?:hint|warning): |Please make sure you have|and the repository exists")
_CERTIFICATE = re.compile(r"certificate", re.IGNORECASE)


def explain_failure(
    messages: str, remote: GitRemote, *, version: str, limits: SourceLimits, secrets: Iterable[str]
) -> WorkerError:
    """The error that git's `messages` about `remote` stand for; none of `secrets` is in its text."""
    said = _summary(messages, secrets)
    if _HOST_KEY.search(messages):
        return Again(
            f"{remote.origin} has an ssh host key that the worker does not know; check the key, and add it to "
            f"the worker's known_hosts (git: {said})"
        )
    for pattern, code, meaning in _NEVER:
        if re.search(pattern, messages):
            wanted = repr(version) if version else "its default branch"
            told = meaning.format(version=wanted, max_bytes=limits.source_max_bytes)
            return Never(f"{remote.origin} {told} (git: {said})", code=code)
    if _THROTTLED.search(messages):
        return Throttled(f"{remote.origin} asks for fewer requests (git: {said})")
    if _DISK_FULL.search(messages):
        return Again("The worker's disk is full; it needs room in LAUNCH_WORK_DIR")
    if _CERTIFICATE.search(messages):
        return Unreachable(
            f"{remote.origin} has a certificate that the worker's git does not trust; "
            f"configure its CA (GIT_SSL_CAINFO, http.sslCAInfo) (git: {said})"
        )
    return Unreachable(f"{remote.origin} could not be fetched (git: {said})")


def _summary(messages: str, secrets: Iterable[str]) -> str:
    """The lines that tell the cause, without secrets, on one line."""
    text = messages
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    lines = [line.strip() for line in re.split(r"[\r\n]+", without_login(text)) if line.strip()]
    summary = "; ".join(dict.fromkeys(line for line in lines if not _NOISE.match(line))) or "no message"
    printable = "".join(c if c.isprintable() else " " for c in summary)
    return (
        printable if len(printable) <= _SHOWN else f"{printable[: _SHOWN // 2]} … {printable[-_SHOWN // 2 :]}"
    )
