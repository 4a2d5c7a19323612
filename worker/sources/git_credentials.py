"""`LAUNCH_GIT_CREDENTIALS`: logins that the worker lends to git, host by host, in the format of git's own store.

git's other means (credential helpers, ssh keys, client certificates in its configuration) work beside it; for the
hosts named here, these logins come instead of what the helpers know.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from pydantic import SecretStr

from worker.errors import SettingsError
from worker.launch.redaction import KnownSecrets
from worker.sources.location import GitRemote

_ENTRY = re.compile(
    r"https://(?P<user>[^\s/?#@:]+):(?P<password>[^\s/?#@:]+)@(?P<host>[A-Za-z0-9.:\[\]_-]+)(?:/\S*)?"
)
_SEPARATOR = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Login:
    """A line of a credential store (git-credential-store, "storage format")."""

    address: str
    """`host` or `host:port`, lower case."""
    line: str = field(repr=False)
    password: str = field(repr=False)
    """Percent-encoded, as in `line`."""


class GitCredentials:
    """The logins of the setting; read anew for each fetch when it names a file, for secrets are rotated in place."""

    def __init__(self, setting: SecretStr | None = None, secrets: KnownSecrets | None = None) -> None:
        """`secrets` learns the passwords, so that nothing that is logged or reported shows them."""
        self._setting = setting
        self._secrets = secrets if secrets is not None else KnownSecrets()

    def read(self) -> tuple[Login, ...]:
        """All logins, in order. Blocks. Raises `SettingsError`, which never quotes what it has read."""
        text = self._setting.get_secret_value().strip() if self._setting else ""
        if text and "://" not in text:
            try:
                text = Path(text).expanduser().read_text()
            except (OSError, ValueError) as error:
                raise SettingsError(
                    f"LAUNCH_GIT_CREDENTIALS: neither a list of https://USER:TOKEN@HOST nor a file that can be read "
                    f"({type(error).__name__})"
                ) from None
        logins = tuple(_parse(n, entry) for n, entry in enumerate(filter(None, _SEPARATOR.split(text)), 1))
        for login in logins:
            self._secrets.add(login.password, unquote(login.password))
        return logins


def _parse(number: int, entry: str) -> Login:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise SettingsError(
            f"LAUNCH_GIT_CREDENTIALS: entry {number} is not https://USER:TOKEN@HOST; "
            "percent-encode what is neither letter nor digit in USER and TOKEN"
        )
    return Login(match["host"].lower(), entry, match["password"])


def write_store(remote: GitRemote, logins: tuple[Login, ...], store: Path) -> tuple[tuple[str, str], ...]:
    """Write the credential store of one fetch, and return the git configuration that uses it.

    A login in the remote's own URL comes first, for its own host only. A mere user name there is what helpers are
    asked for, unless the worker has a login for the host: clone URLs of some hosts carry the name of who copied them.
    """
    own = remote.scheme == "https" and remote.password
    lines = [f"https://{remote.user}:{remote.password}@{remote.address}"] if own else []
    addresses = dict.fromkeys([*([remote.address] if own else []), *(login.address for login in logins)])
    lines += [login.line for login in logins]
    configuration: list[tuple[str, str]] = []
    if remote.scheme == "https" and remote.user and remote.address not in addresses:
        configuration.append((f"credential.https://{remote.address}.username", unquote(remote.user)))
    if lines:
        store.touch(mode=0o600)
        store.write_text("".join(f"{line}\n" for line in lines))
    for address in addresses:
        key = f"credential.https://{address}.helper"
        # An empty value forgets the helpers before it (gitcredentials, "helper").
        configuration += [(key, ""), (key, f"store --file={shlex.quote(str(store))}")]
    return tuple(configuration)


def secrets_of(remote: GitRemote, logins: tuple[Login, ...]) -> frozenset[str]:
    """What must not stand in any text about this fetch: encoded and plain."""
    encoded = {remote.password, *(login.password for login in logins)}
    if remote.scheme == "https":
        encoded.add(remote.user)
    return frozenset(text for secret in encoded if secret for text in (secret, unquote(secret)))
