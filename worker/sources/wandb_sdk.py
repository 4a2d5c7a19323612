"""Which version of an artifact a name means, and where its files are: asked through W&B's own SDK.

The SDK blocks and starts a process (`wandb-core`): it is imported and called in threads of its own, and only when the
first job is asked for. Facts about it were measured with wandb 0.31:

* wandb-core tries a call again that was answered by 429 or 5xx, for as long as the call's timeout lasts; what comes
  then is not distinguished from silence. 401, 403 and 404 come at once, with their status.
* When wandb-core dies, every call fails at once. After `wandb.teardown()` a new `Api` starts another one. That is
  done here; no run of this process hangs on it, because runs are written by the SDK offline only, and jobs are not
  fetched then.
* The SDK's own download is not used: it tries a file again for 20 minutes, writes without a limit, and would follow
  an artifact's references into the files of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from worker.clients.api_key import ApiKey
from worker.errors import Again, Never, Unreachable, WorkerError
from worker.launch.job_spec import ArtifactRef
from worker.ops.logging import get_logger

if TYPE_CHECKING:
    from wandb import Api, Artifact

NOT_FOUND_CODE = "LW-JOB-NOT-FOUND"
DELETED_CODE = "LW-JOB-DELETED"
REFERENCES_CODE = "LW-JOB-REFERENCES"

_T = TypeVar("_T")

_THREADS = 8
_FILES_PER_CALL = 1000
_DELETED = frozenset({"DELETED", "PENDING_DELETION", "GARBAGE_COLLECTED"})

_log = get_logger()


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact."""

    path: str
    size: int
    url: str
    """Where it can be had; holds a signature and is good for a while."""

    def __repr__(self) -> str:
        return f"ArtifactFile({self.path!r}, {self.size})"


@dataclass(frozen=True, slots=True)
class FoundArtifact:
    """One version of an artifact."""

    id: str
    name: str
    """`entity/project/name`."""
    version: str
    """`v3`."""
    digest: str
    """Of its content."""
    files: tuple[ArtifactFile, ...]


class _KeyRefused(Again):
    """W&B does not accept the key."""


class WandbSdk:
    """Looks artifacts up with the worker's own key, as W&B's agent does."""

    def __init__(
        self, threads: ThreadPoolExecutor, base_url: str, api_key: ApiKey, *, timeout: float
    ) -> None:
        """`timeout`: seconds of one call."""
        self._threads = threads
        self._base_url = base_url
        self._api_key = api_key
        self._timeout = timeout
        self._starting = threading.Lock()
        self._api: Api | None = None
        self._key = ""

    async def find(self, ref: ArtifactRef, kind: Literal["job", "code"]) -> FoundArtifact:
        """The version that `ref` means now, and its files.

        Raises `Never` (LW-JOB-NOT-FOUND, LW-JOB-DELETED, LW-JOB-REFERENCES), `Unreachable` when W&B does not answer,
        `Again` when it does not accept the worker's key or the version is not complete yet."""
        return await self._call(f"{kind} {ref}", lambda api: _find(api, ref, kind))

    async def _call(self, what: str, function: Callable[[Api], _T]) -> _T:
        """Once more with a new key, if W&B refuses this one and there is another."""
        loop, key = asyncio.get_running_loop(), self._api_key.value
        # A cancelled caller leaves the thread to its timeouts: it writes nothing but its answer.
        try:
            return await loop.run_in_executor(self._threads, lambda: self._in_thread(what, key, function))
        except _KeyRefused:
            if not await self._api_key.replaced(key):
                raise
        new = self._api_key.value
        return await loop.run_in_executor(self._threads, lambda: self._in_thread(what, new, function))

    def _in_thread(self, what: str, key: str, function: Callable[[Api], _T]) -> _T:
        api: Api | None = None
        try:
            api = self._opened(key)
            return function(api)
        except WorkerError:
            raise
        except Exception as error:
            if _is_core_gone(error):
                self._forget(api)
                raise Unreachable(f"{what}: wandb-core has ended; it is started anew") from None
            # Not chained: the SDK's errors may hold what it was made with.
            raise _translated(what, error) from None

    def _opened(self, key: str) -> Api:
        """One for the process, as long as the key is the same. W&B is asked whether it accepts the key."""
        with self._starting:
            if self._api is None or self._key != key:
                import wandb  # noqa: PLC0415  # 50 MiB and half a second that a worker without jobs does not need

                wandb.setup(wandb.Settings(silent=True))
                overrides = {"base_url": self._base_url}
                self._api = wandb.Api(
                    overrides=overrides,
                    api_key=key,
                    timeout=self._timeout,  # type: ignore[arg-type]  # it takes fractions as well
                )
                self._key = key
            return self._api

    def _forget(self, api: Api | None) -> None:
        """End what is left of the SDK in this process, unless another thread has started it anew already."""
        import wandb  # noqa: PLC0415

        with self._starting:
            if self._api is api:
                _log.warning("wandb_core_gone")
                self._api = None
                with contextlib.suppress(Exception):  # there is nobody to say good-bye to
                    wandb.teardown()


@contextlib.contextmanager
def wandb_sdk(base_url: str, api_key: ApiKey, *, timeout: float = 15.0) -> Iterator[WandbSdk]:
    """The SDK for one server and key; nothing is started before it is needed. Calls underway at the end are left."""
    threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="wandb-artifacts")
    try:
        yield WandbSdk(threads, base_url, api_key, timeout=timeout)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _find(api: Api, ref: ArtifactRef, kind: str) -> FoundArtifact:
    artifact = _by_id(api, ref.id, kind) if ref.id else api.artifact(ref.name, type=kind)
    state = str(getattr(artifact.state, "value", artifact.state))
    if state in _DELETED:
        raise Never(f"{kind} {ref} has been deleted in W&B; create it again", code=DELETED_CODE)
    files = tuple(
        ArtifactFile(file.name, file.size or 0, file.direct_url)
        for file in artifact.files(per_page=_FILES_PER_CALL)
    )
    if artifact.file_count > len(files):
        raise Never(
            f"{kind} {ref} has {artifact.file_count - len(files)} references to files elsewhere, which are not"
            " followed; add the files themselves to the artifact",
            code=REFERENCES_CODE,
        )
    name = f"{artifact.entity}/{artifact.project}/{artifact.name.partition(':')[0]}"
    return FoundArtifact(artifact.id or "", name, artifact.version, artifact.digest, files)


def _by_id(api: Api, artifact_id: str, kind: str) -> Artifact:
    from wandb.sdk.artifacts.artifact_instance_cache import artifact_instance_cache  # noqa: PLC0415

    artifact_instance_cache.pop(artifact_id, None)  # what was there may have been deleted meanwhile
    artifact = api._artifact_from_id(
        artifact_id
    )  # as `wandb.apis.public.Job` does: the SDK has no public way
    if artifact is None:
        raise ValueError("there is no artifact of this id")
    if artifact.type != kind:
        raise ValueError(f"it is an artifact of type {artifact.type!r}, not {kind!r}")
    return artifact


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: the SDK wraps its own errors in CommError."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _is_core_gone(error: BaseException) -> bool:
    return any(
        isinstance(one, ConnectionError)
        or type(one).__name__ in ("MailboxClosedError", "HandleAbandonedError")
        or "service process is not running" in str(one)
        for one in _chain(error)
    )


def _translated(what: str, error: Exception) -> WorkerError:
    """The SDK's error in ours."""
    from wandb.errors import AuthenticationError  # noqa: PLC0415
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # noqa: PLC0415

    failed = next((one for one in _chain(error) if isinstance(one, WandbApiFailedError)), None)
    if failed is not None:
        if failed.response is None:
            return Unreachable(f"{what}: no answer from W&B")
        return _answered(what, failed.response.http_status, str(failed).strip())
    if isinstance(error, AuthenticationError):
        return _KeyRefused(f"W&B cannot be asked for {what}: {error}; give the worker another WANDB_API_KEY")
    if any(isinstance(one, AssertionError) for one in _chain(error)):  # the SDK's word for the state PENDING
        return Again(f"{what} is not complete in W&B yet")
    if any(type(one) is ValueError for one in _chain(error)):
        return _not_found(what, str(error))
    return Unreachable(f"{what}: the wandb SDK failed: {type(error).__name__}: {error}")


def _answered(what: str, status: int, message: str) -> WorkerError:
    if status == 401 or "401" in message:
        return _KeyRefused(f"W&B does not accept the worker's key ({message}); give it another WANDB_API_KEY")
    refused = status in (403, 404) or "error 403" in message or "error 404" in message
    if refused or "permission" in message.lower() or "not found" in message.lower():
        return _not_found(what, message)
    return Unreachable(f"{what}: W&B answered: {message}")


def _not_found(what: str, message: str) -> Never:
    return Never(
        f"W&B has no {what}, or the worker's key may not see it ({message}); check the name and the key's rights",
        code=NOT_FOUND_CODE,
    )
