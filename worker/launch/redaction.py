"""Secrets taken out of what is kept or printed: the ledger's copy of a message, the DLQ, `validate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "***"

_MOST_SECRETS = 100
_MOST_PASSING = 100
_SHORTEST = 8
"""Characters of a known secret: a shorter password may stand anywhere by chance, and to hide it would hide all else."""
_LONGEST_NAME = 512  # of an environment variable (CreateTrainingJob)

_KEYWORDS = r"KEY|TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL"  # TOKENIZERS_PARALLELISM is no secret
# Anywhere in a message: names written like environment variables, and the usual lower-case spellings. `Key` of a
# tag, `KmsKeyId` and `max_tokens` are none.
_SECRET_NAME = re.compile(
    rf"_wandb_api_key|[A-Z0-9_]*(?:{_KEYWORDS})[A-Z0-9_]*"
    r"|(?i:[\w-]*(?:api|access|private|secret)[_-]?key|[\w-]*(?:secret|password|passwd|credentials?)"
    r"|(?:[\w-]*[_-])?token)"
)
_SECRET_VARIABLE = re.compile(_KEYWORDS, re.IGNORECASE)
# Repeats below are bounded: a body has up to 1 MiB, and its sender chooses it.
_URL_LOGIN = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)(?!git@)[^/?#\s\"'<>\\]+@")
# Also a password with a slash in it, which belongs percent-encoded: whatever stands between `user:` and the last @.
_WORD = re.compile(r"[^\s\"'<>\\]+")
_USER = re.compile(r"://[^/?#:@]*:")
_SIGNATURE = re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"'\\]+", re.IGNORECASE)
_OPTION = re.compile(
    r"((?<![\w-])--?[\w-]{0,40}(?:api[_-]?key|token|secret|password|credentials?)(?:=|\s+))(?!-)[^\s\"'\\]+",
    re.IGNORECASE,
)
# `"NAME": "value"` in text that is no JSON (any more); quotes may be escaped, as in a runSpec given as text.
_PAIR = re.compile(
    r"(?P<head>(?P<quote>\\{0,8}[\"'])(?P<name>[\w-]+)(?P=quote)\s*:\s*)"
    r"(?:(?P<open>\\{0,8}[\"'])(?:(?!(?P=open)).)*(?:(?P=open)|\Z)|[\w.+-]+)",
    re.DOTALL,
)
_OWN_KEY = re.compile(r"_wandb_api_key\\{0,8}[\"']?\s*[:=]\s*\\{0,8}[\"']?(?P<value>[\w.-]{8,})")
_ASSIGNMENT = re.compile(r"(?P<head>\b(?P<name>[A-Za-z_][\w]*)\s*=\s*)[^\s\"'\\,;&]+")


class KnownSecrets:
    """The secrets this process has had so far. It grows: keys are replaced and logins fetched while it runs.

    Those that use it iterate each time, so that one `add` is heard everywhere."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._own: dict[str, None] = {}
        self._passing: dict[str, None] = {}
        self.add(*secrets)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._passing))

    def __repr__(self) -> str:
        return f"<{len(self._own) + len(self._passing)} secrets>"

    def add(self, *secrets: str) -> None:
        """Remember secrets of the worker; an ECR login, for example, has a new password every few hours."""
        _remember(self._own, secrets, _MOST_SECRETS)

    def add_passing(self, *secrets: str) -> None:
        """Remember secrets of single launches, which come and go; they push out none of the worker's."""
        _remember(self._passing, secrets, _MOST_PASSING)


def _remember(known: dict[str, None], secrets: Iterable[str], most: int) -> None:
    """The newest stand last, and only so many stay."""
    for secret in (secret for secret in secrets if len(secret) >= _SHORTEST):
        known.pop(secret, None)
        known[secret] = None
    while len(known) > most:
        del known[next(iter(known))]


def redact_body(body: str, secrets: Iterable[str] = ()) -> str:
    """An SQS body without its secrets: W&B keys, values under secret-looking names, logins in URLs, `secrets`.

    Works on any text and never raises; what cannot be parsed is treated as text."""
    literals = {secret for secret in secrets if secret} | _own_keys(body)
    try:
        return _dumps(_redact(json.loads(body), literals))
    except (ValueError, RecursionError):
        return _redact_text(body, literals)


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Any text, an error of AWS for example, without `secrets` and without what looks like one."""
    return _redact_text(text, {secret for secret in secrets if secret})


def hide_secrets(text: str, secrets: Iterable[str]) -> str:
    """A name, which may be a secret that was put in the wrong place."""
    return _hide_literals(text, {secret for secret in secrets if secret})


def is_secret_variable(name: str) -> bool:
    """An environment variable of this name holds a secret, by the look of it."""
    return _is_secret(name, variables=True)


def redact_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A CreateTrainingJob request for printing; the request itself is left as it is."""
    environment = request.get("Environment")
    key = environment.get("WANDB_API_KEY") if isinstance(environment, Mapping) else None
    redacted: dict[str, Any] = _redact(dict(request), {key} if isinstance(key, str) and key else set())
    return redacted


def _redact(value: Any, literals: set[str], *, variables: bool = False) -> Any:
    """`variables`: inside an Environment, where every name is a variable's."""
    if isinstance(value, str):
        return _redact_string(value, literals)
    if isinstance(value, list | tuple):
        return [_redact(item, literals) for item in value]
    if not isinstance(value, Mapping):
        return value
    redacted = {}
    for name, item in value.items():
        if _is_secret(name, variables) and item is not None and not isinstance(item, bool):
            redacted[_hide_literals(name, literals)] = HIDDEN
        else:
            inside = name.lower() == "environment"
            redacted[_hide_literals(name, literals)] = _redact(item, literals, variables=inside)
    return _redact_tag(redacted)


def _redact_tag(pair: dict[str, Any]) -> dict[str, Any]:
    """`{"Key": "API_TOKEN", "Value": …}` names a secret by value."""
    name = pair.get("Key", pair.get("Name"))
    if isinstance(name, str) and "Value" in pair and _SECRET_NAME.fullmatch(name):
        return {**pair, "Value": HIDDEN}
    return pair


def _redact_string(text: str, literals: set[str]) -> str:
    if text.lstrip().startswith("{"):  # a runSpec given as text
        try:
            value = json.loads(text)
            redacted = _redact(value, literals)
        except (ValueError, RecursionError):
            return _redact_text(text, literals)
        return text if redacted == value else _dumps(redacted)  # what hides nothing stays as it was written
    return _redact_patterns(text, literals)


def _redact_text(text: str, literals: set[str]) -> str:
    for pattern in (_PAIR, _ASSIGNMENT):
        text = pattern.sub(_hide_value, text)
    return _redact_patterns(text, literals)


def _redact_patterns(text: str, literals: set[str]) -> str:
    text = _WORD.sub(_hide_password, _hide_literals(text, literals))
    text = _URL_LOGIN.sub(rf"\1{HIDDEN}@", text)
    for pattern in (_SIGNATURE, _OPTION):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _hide_password(match: re.Match[str]) -> str:
    word, end = match[0], match[0].rfind("@")
    user = _USER.search(word, 0, end) if end > 0 else None
    return f"{word[: user.start()]}://{HIDDEN}{word[end:]}" if user else word


def _hide_literals(text: str, literals: set[str]) -> str:
    for literal in sorted(literals, key=len, reverse=True):
        text = text.replace(literal, HIDDEN).replace(json.dumps(literal)[1:-1], HIDDEN)
    return text


def _hide_value(match: re.Match[str]) -> str:
    if not _is_secret(match["name"], variables=True):
        return match[0]
    quote = match.groupdict().get("open") or ""
    return f"{match['head']}{quote}{HIDDEN}{quote}"


def _is_secret(name: str, variables: bool) -> bool:
    if variables and _SECRET_VARIABLE.search(name):
        return True
    return len(name) <= _LONGEST_NAME and _SECRET_NAME.fullmatch(name) is not None


def _own_keys(body: str) -> set[str]:
    """The message's W&B keys, however the text around them is quoted, to hide them wherever else they stand."""
    return {match["value"] for match in _OWN_KEY.finditer(body)}


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only escapes can carry it
        return json.dumps(value)
    return text
