"""An archive on S3, streamed to a file with its digest."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import aiohttp
from botocore.exceptions import BotoCoreError

from worker.clients.aws import AwsDenied, AwsRefused, call, translate
from worker.errors import Never
from worker.sources.checkout import Budget
from worker.sources.location import S3Object
from worker.sources.stoppable import run_to_end
from worker.sources.tree import CHUNK, storage_error

if TYPE_CHECKING:
    from aiobotocore.response import StreamingBody
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef

NOT_FOUND_CODE = "LW-S3-NOT-FOUND"
REFUSED_CODE = "LW-S3-REFUSED"

_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404"})


async def download(s3: S3Client, location: S3Object, target: Path, budget: Budget) -> str:
    """Write the object to `target`, which does not exist yet; returns its sha256 in hex.

    Raises `Never` (`LW-S3-NOT-FOUND`; `LW-S3-REFUSED`, for example an object in Glacier; the budget's code),
    `AwsDenied`, `Unreachable`, `Throttled`, or `Again` when the disk is full."""
    answer = await _open(s3, location)
    digest = hashlib.sha256()
    body = answer["Body"]
    async with body:  # what it would name is the bare response, whose `read` takes no size
        budget.require(answer.get("ContentLength", 0))
        try:
            with target.open("xb") as file:
                while chunk := await _read(body, location):
                    budget.take_bytes(len(chunk))
                    await run_to_end(partial(_keep, chunk, file, digest))
        except OSError as error:
            raise storage_error(error) from error
    return digest.hexdigest()


def _keep(chunk: bytes, file: IO[bytes], digest: hashlib._Hash) -> None:
    digest.update(chunk)
    file.write(chunk)


async def _open(s3: S3Client, location: S3Object) -> GetObjectOutputTypeDef:
    try:
        return await call("GetObject", lambda: s3.get_object(Bucket=location.bucket, Key=location.key))
    except AwsRefused as error:
        if error.aws_code in _MISSING:
            reason = f"{location.origin} does not exist ({error.aws_code}); check the uri and upload the archive first"
            raise Never(reason, code=NOT_FOUND_CODE) from error
        reason = f"{location.origin} cannot be read: {error.aws_code}: {error.aws_message}"
        raise Never(reason, code=REFUSED_CODE) from error
    except AwsDenied as error:
        raise AwsDenied(
            f"{location.origin}: {error} (S3 answers so for a missing object, too, without s3:ListBucket)"
        ) from error


async def _read(body: StreamingBody, location: S3Object) -> bytes:
    try:
        return await body.read(CHUNK)
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise translate(f"GetObject {location.origin}", error) from error
