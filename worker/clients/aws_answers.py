"""What each answer of AWS tells beside its content: AWS's time, and that credentials do not hold any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from aiobotocore.credentials import AioRefreshableCredentials
from botocore.exceptions import HTTPClientError

from worker.ops.logging import get_logger

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

_RENEWABLE_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
    }
)
_RENEW_EVERY = 10.0
"""Seconds between two renewals: many calls fail at once when credentials do."""

_log = get_logger()


class AwsClock:
    """AWS's time, as the `Date` of its last answer tells it (whole seconds); this host's own may be wrong."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds by which AWS's clock is ahead of this host's; 0 until the first answer."""

    def now(self) -> float:
        """Epoch seconds."""
        return time.time() + self.ahead

    def observe(self, date: str) -> None:
        """Take in the `Date` header of an answer that has just come."""
        try:
            moment = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        # Half a second: the header has none of them.
        self.ahead = moment + 0.5 - time.time()


class AnswerWatch:
    """Sees every answer of every client of a session (botocore's event `after-call`)."""

    def __init__(self, session: AioSession, clock: AwsClock) -> None:
        self._session = session
        self._clock = clock
        self._renewed_at = -_RENEW_EVERY
        self._renewing = asyncio.Lock()

    async def __call__(self, parsed: Mapping[str, Any], http_response: Any, model: Any, **_: Any) -> None:
        """Raises for what is no answer of AWS: botocore takes a proxy's page with status 200 for an empty success."""
        headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if headers.get("content-type", "").startswith("text/html") and "Error" not in parsed:
            # Emulators call their JSON so, too: the text decides.
            page = (await http_response.content).lstrip()[:1] == b"<"
            if page and model.metadata.get("protocol") == "json":
                raise HTTPClientError(error="an HTML page, not from AWS: is a proxy in between?")
        if date := headers.get("date"):
            self._clock.observe(date)
        code = str(parsed.get("Error", {}).get("Code", "")).rpartition("#")[2]
        if code in _RENEWABLE_CODES:
            await self._renew(code)

    async def _renew(self, code: str) -> None:
        """Get new credentials although the ones at hand look valid: revoked, replaced in their file, or a clock that
        is wrong. The call that failed is tried again by its caller."""
        async with self._renewing:
            if time.monotonic() - self._renewed_at < _RENEW_EVERY:
                return
            self._renewed_at = time.monotonic()
            try:
                await self._load()
            except Exception as error:  # of any provider: the next refused call tries again
                _log.warning("aws_credentials_not_renewed", error=f"{type(error).__name__}: {error}")
                return
            _log.warning("aws_credentials_renewed", because=code)

    async def _load(self) -> None:
        # botocore has no public way to do it: it refreshes by the expiry alone, and reads files once.
        held: Any = await self._session.get_credentials()
        if isinstance(held, AioRefreshableCredentials):
            refreshable: Any = held
            async with refreshable._refresh_lock:
                await refreshable._protected_refresh(is_mandatory=True)
            return
        fresh = await self._session.get_component("credential_provider").load_credentials()
        if held is not None and fresh is not None and not isinstance(fresh, AioRefreshableCredentials):
            held.access_key, held.secret_key, held.token = fresh.access_key, fresh.secret_key, fresh.token


def take_events_as_they_are(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """A page of FilterLogEvents holds up to 10,000 flat events, which JSON has read already: botocore's second reading,
    member by member, takes three times as long as the first (event `before-parse`, aiobotocore/endpoint.py)."""
    if response_dict["status_code"] != 200:
        return
    with contextlib.suppress(ValueError):  # botocore tells what is no JSON
        page = json.loads(response_dict["body"])
        if isinstance(page, dict) and isinstance(page.get("events"), list):
            customized_response_dict["events"] = page.pop("events")
            response_dict["body"] = json.dumps(page).encode()
