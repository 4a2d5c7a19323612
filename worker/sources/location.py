"""Where a source is: an object on S3 or a git remote, read from the `uri` of a message or of a submodule.

The patterns are strict: what git or ssh could take for an option, and what two parsers could read as two hosts, does
not get through them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from worker.errors import Never

SCHEME_CODE = "LW-SOURCE-SCHEME"
URI_CODE = "LW-SOURCE-URI"

ACCEPTED = (
    "write s3://BUCKET/KEY.tar.gz (or .tgz, .tar, .zip), https://HOST/PATH.git, ssh://USER@HOST/PATH "
    "or USER@HOST:PATH"
)

_HOST = r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
_PATH_CHARACTER = r"[^\x00-\x20\x7f\\?#]"
_URL = re.compile(
    r"(?P<scheme>https|ssh)://"
    r"(?:(?P<user>[^\x00-\x20\x7f\\/?#@:-][^\x00-\x20\x7f\\/?#@:]*)"
    r"(?::(?P<password>[^\x00-\x20\x7f\\/?#@:]*))?@)?"
    rf"{_HOST}(?::(?P<port>[0-9]{{1,5}}))?/(?P<path>(?!-){_PATH_CHARACTER}+)",
    re.IGNORECASE,
)
_SCP = re.compile(rf"(?P<user>[A-Za-z0-9_][A-Za-z0-9._+-]*)@{_HOST}:(?P<path>(?![-:]){_PATH_CHARACTER}+)")
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>[^\x00]+)", re.IGNORECASE)
_SCHEME = re.compile(r"(https|ssh|s3)://", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/?#\s]*@")
_WORD = re.compile(r"[^\s\"'<>]+")
_USER = re.compile(r"://[^/?#:@]*:")
_SHOWN_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{0,255}")


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object on S3."""

    bucket: str
    key: str

    @property
    def origin(self) -> str:
        """Its URI."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class GitRemote:
    """A git repository on another host."""

    scheme: Literal["https", "ssh", "scp"]
    host: str
    """Lower case."""
    path: str
    """Without a leading `/`; in `scp` form it starts at the user's home."""
    port: int | None = None
    user: str = field(default="", repr=False)
    """Percent-encoded, as in the URI. Some hosts take a token in its place."""
    password: str = field(default="", repr=False)
    """Percent-encoded, as in the URI."""

    @property
    def address(self) -> str:
        """`host` or `host:port`."""
        return self.host if self.port is None else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What git is given: no login over https, for it would show in the list of processes."""
        if self.scheme == "https":
            return f"https://{self.address}/{self.path}"
        user = f"{self.user}@" if self.user else ""
        return (
            f"{user}{self.host}:{self.path}"
            if self.scheme == "scp"
            else f"ssh://{user}{self.address}/{self.path}"
        )

    @property
    def origin(self) -> str:
        """`scheme://host/path` without login."""
        scheme = "https" if self.scheme == "https" else "ssh"
        return f"{scheme}://{self.address}/{self.path.lstrip('/')}"

    def relative(self, url: str) -> GitRemote | None:
        """The remote that `url`, `./x` or `../x` of a submodule, means here; None when it leads above the host.

        As git reads it (git-submodule, "add": relative to the superproject's own URL)."""
        path = self.path.rstrip("/")
        root = path[: len(path) - len(path.lstrip("/"))]
        parts = path.lstrip("/").split("/")
        rest = url.rstrip("/")
        while rest.startswith(("./", "../")) or rest in (".", ".."):
            step, _, rest = rest.partition("/")
            if step == "..":
                if not parts:
                    return None
                parts.pop()
        joined = root + "/".join([*parts, *([rest] if rest else [])])
        moved = replace(self, path=joined)
        try:
            parsed = parse_remote(moved.url)
        except Never:
            return None
        return replace(parsed, user=self.user, password=self.password)


Location = S3Object | GitRemote


def parse_location(uri: str) -> Location:
    """Read a source's URI; raises `Never` (`LW-SOURCE-SCHEME`, `LW-SOURCE-URI`) saying what is accepted."""
    if uri[:5].lower() == "s3://":
        match = _S3.fullmatch(uri)
        if match is None or match["key"].endswith("/"):
            raise Never(f"{without_login(uri)!r} does not name an object on S3; {ACCEPTED}", code=URI_CODE)
        return S3Object(match["bucket"].lower(), match["key"])
    return parse_remote(uri)


def parse_remote(url: str) -> GitRemote:
    """Read the URL of a git remote; raises `Never` as `parse_location` does."""
    shown = repr(without_login(url))
    if match := _SCP.fullmatch(url):
        return GitRemote("scp", match["host"].lower(), match["path"], user=match["user"])
    if not _SCHEME.match(url):
        raise Never(f"Refusing to fetch from {shown}; {ACCEPTED}", code=SCHEME_CODE)
    shown = repr(_scheme_and_host(url))
    match = _URL.fullmatch(url)
    if match is None:
        raise Never(f"{shown} does not name a git repository; {ACCEPTED}", code=URI_CODE)
    scheme: Literal["https", "ssh"] = "https" if match["scheme"].lower() == "https" else "ssh"
    if scheme == "ssh" and match["password"] is not None:
        raise Never(f"{shown}: ssh takes no password here; give the worker a key", code=URI_CODE)
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise Never(f"{shown}: {port} is no port", code=URI_CODE)
    return GitRemote(
        scheme,
        match["host"].lower(),
        match["path"],
        port=None if port == _DEFAULT_PORTS[scheme] else port,
        user=match["user"] or "",
        password=match["password"] or "",
    )


_DEFAULT_PORTS = {"https": 443, "ssh": 22}


def without_login(text: str) -> str:
    """`text` with the login of every URL in it taken out, also of one whose password has a raw slash."""
    return _LOGIN.sub("://", _WORD.sub(_without_password, text))


def _without_password(match: re.Match[str]) -> str:
    """From `user:` to the last `@` everything may be password."""
    word, end = match[0], match[0].rfind("@")
    user = _USER.search(word, 0, end) if end > 0 else None
    return f"{word[: user.start()]}://{word[end + 1 :]}" if user else word


def _scheme_and_host(url: str) -> str:
    """All that is told of a URL that cannot be read: where its password ends is not known either."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#\s]", rest, maxsplit=1)[0]
    if "@" in rest and (":" in authority or "@" in authority):
        authority = re.split(r"[/?#\s]", rest.rpartition("@")[2], maxsplit=1)[0]
    return f"{scheme}://{authority if _SHOWN_HOST.fullmatch(authority) else '…'}"
