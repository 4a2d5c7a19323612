"""One poller for the states of all jobs: ListTrainingJobs by LastModifiedTimeAfter, Describe only for what changed.

A page of 100 summaries replaces 100 DescribeTrainingJob calls. LastModifiedTime has whole seconds on the wire and
lists lag a little, so each look overlaps the one before; summaries carry TrainingJobStatus, which is enough to see
a change, and their filters are applied after paging, so every page is read (SageMaker API, ListTrainingJobs).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from worker.aio import backoff
from worker.clients.aws import call
from worker.errors import Throttled, Unreachable, WorkerError
from worker.ops.logging import get_logger
from worker.training.status_news import Summary

if TYPE_CHECKING:
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_sagemaker.type_defs import ListTrainingJobsResponseTypeDef

    from worker.ops.rates import Rates

_OVERLAP = 5.0
"""Seconds looked back behind the newest change seen (DESIGN: at least 2)."""
_LISTS_LAG = 30.0
"""Seconds by AWS's clock after which a change is in every list; a look does not go further back for it."""
_CLOCKS_APART = 3600.0
"""Seconds by which the clock of the worker that noted a time may be ahead of SageMaker's."""
_MAX_TRIES = 8
"""Further tries of a page that gets no answer; about half a minute."""

_log = get_logger()


class StatusFeed:
    """Sees which jobs changed; remembers only up to when it has looked."""

    def __init__(
        self, sagemaker: SageMakerClient, rates: Rates, *, since: float, now: Callable[[], float]
    ) -> None:
        """`since`: epoch seconds from which to look; well before now, for AWS's clock is not ours. From then on it is
        moved by times that SageMaker has told, and by `now`, which is AWS's clock as well."""
        self._sagemaker = sagemaker
        self._rate = rates["ListTrainingJobs"]
        self._now = now
        self._seen_until = since
        self._look_back = math.inf

    def look_back_to(self, moment: float) -> None:
        """Let the next look start at `moment` (epoch seconds, by any worker's clock) at the latest: an adopted job may
        have changed then."""
        self._look_again(moment - _CLOCKS_APART)

    def _look_again(self, moment: float) -> None:
        self._look_back = min(self._look_back, moment)

    async def changes(self) -> Mapping[str, Summary]:
        """Job name → state of every job of the account that changed since the last look, and a little more."""
        since = min(self._seen_until, self._look_back)
        # A wish to look back that comes while this look is under way is for the next one.
        self._look_back = math.inf
        try:
            return await self._look(since)
        except WorkerError:
            self._look_again(since)
            raise

    async def _look(self, since: float) -> Mapping[str, Summary]:
        # A thousand jobs that changed in one second are ten pages: not for as long as nothing newer comes.
        seen_until = newest = max(self._seen_until, self._now() - _LISTS_LAG)
        began = time.monotonic()
        after = datetime.fromtimestamp(max(0.0, since - _OVERLAP), UTC)
        request: dict[str, Any] = {"LastModifiedTimeAfter": after, "MaxResults": 100}
        found: dict[str, Summary] = {}
        while True:
            page = await self._page(request)
            for item in page["TrainingJobSummaries"]:
                modified = item.get("LastModifiedTime") or item["CreationTime"]
                summary = Summary(
                    item["TrainingJobName"],
                    item["TrainingJobStatus"],
                    item.get("SecondaryStatus", ""),
                    modified.timestamp(),
                )
                found[summary.name] = summary
                newest = max(newest, summary.modified_at)
            if not page.get("NextToken"):
                break
            request["NextToken"] = page["NextToken"]
        if "NextToken" in request:
            # A job of a page that was read may have changed before the newest one of a later page, though not before
            # the look began. How long that is ago tells this host's clock, what AWS's says of the newest may be off.
            newest -= time.monotonic() - began
        self._seen_until = max(seen_until, newest)
        return found

    async def _page(self, request: Mapping[str, Any]) -> ListTrainingJobsResponseTypeDef:
        """One page; a further one that fails is asked for again, since starting over might never come to the end of
        many pages while others use the quota as well. What is refused (a token that has expired) starts over, and so
        does what has no answer for long: that may be the token's fault, too."""
        unanswered = 0
        for tries in itertools.count():
            try:
                return await call(
                    "ListTrainingJobs", lambda: self._sagemaker.list_training_jobs(**request), self._rate
                )
            except (Throttled, Unreachable) as error:
                unanswered += isinstance(error, Unreachable)
                if "NextToken" not in request or unanswered > _MAX_TRIES:
                    raise
                _log.warning("status_feed_failed", error=str(error))
                await asyncio.sleep(error.retry_after or backoff(tries, base=0.5, cap=8))
        raise AssertionError
