"""The ledger: a file on a disk that stays, or a table of the right shape."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.clients.aws import AwsClients, AwsRefused, NotPermitted, call
from worker.doctor.check import Check, failed, ok, skipped
from worker.ledger.dynamodb_errors import creation_of
from worker.ledger.dynamodb_items import INDEX
from worker.ledger.opening import open_ledger
from worker.settings import Settings

_SQLITE, _DYNAMODB = "sqlite:///", "dynamodb://"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.s3fs"})
_NOT_SHOWN = "seen with dynamodb:DescribeTable and dynamodb:DescribeTimeToLive, which no worker needs"


async def ledger_checks(aws: AwsClients, settings: Settings) -> Sequence[Check]:
    """Reach and shape."""
    if settings.ledger.startswith(_DYNAMODB):
        return await _table(aws, settings)
    if settings.ledger.startswith(_SQLITE):
        found = await asyncio.to_thread(_file, Path(settings.ledger.removeprefix(_SQLITE)))
        if found is not None:
            return [found]
    return [await _answers(aws, settings, "one host only")]


async def _answers(aws: AwsClients, settings: Settings, detail: str) -> Check:
    async with open_ledger(settings.ledger, aws.dynamodb) as ledger:
        beats = await ledger.beats()
    return ok("ledger", f"{settings.ledger}: heartbeats of {len(beats)} worker(s); {detail}")


async def _table(aws: AwsClients, settings: Settings) -> list[Check]:
    table = settings.ledger.removeprefix(_DYNAMODB)
    try:
        answer = await call("DescribeTable", lambda: aws.dynamodb.describe_table(TableName=table))
    except AwsRefused as error:
        return [
            failed("ledger", f"DynamoDB has no table {table!r} here: {error.aws_code}", creation_of(table))
        ]
    except NotPermitted:
        return [await _answers(aws, settings, "any number of hosts"), skipped("ledger expiry", _NOT_SHOWN)]
    description: Mapping[str, Any] = answer["Table"]
    if wrong := _wrong_shape(table, description):
        return [wrong]
    detail = f"{description['TableStatus']}, any number of hosts{_price_of_index(description)}"
    checks = [await _answers(aws, settings, detail)]
    try:
        to_live = await call(
            "DescribeTimeToLive", lambda: aws.dynamodb.describe_time_to_live(TableName=table)
        )
    except NotPermitted:
        return [*checks, skipped("ledger expiry", _NOT_SHOWN)]
    told = to_live["TimeToLiveDescription"]
    on = told.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") and told.get("AttributeName") == "expires"
    if on:
        return [*checks, ok("ledger expiry", "finished launches leave by the attribute `expires`")]
    command = f"aws dynamodb update-time-to-live --table-name {table} --time-to-live-specification"
    return [
        *checks,
        failed(
            "ledger expiry",
            "time to live is off: finished launches stay for ever, and so does their price",
            f"{command} Enabled=true,AttributeName=expires",
        ),
    ]


def _wrong_shape(table: str, description: Mapping[str, Any]) -> Check | None:
    keys = [(key["AttributeName"], key["KeyType"]) for key in description.get("KeySchema", ())]
    if keys != [("pk", "HASH")]:
        return failed(
            "ledger",
            f"the key of table {table!r} is {keys}, not pk",
            _another(table),
        )
    if _index(description) is None:
        return failed(
            "ledger",
            f"table {table!r} has no index {INDEX!r}",
            f"add it, or {_another(table)}",
        )
    return None


def _another(table: str) -> str:
    other = f"{table}-launches"
    return f"set LAUNCH_LEDGER=dynamodb://{other} and {creation_of(other)}"


def _price_of_index(description: Mapping[str, Any]) -> str:
    """Of a table with an index as earlier versions made it. It works: the keys are all that is read of it."""
    index = _index(description)
    if index is None or index["Projection"]["ProjectionType"] != "ALL":
        return ""
    return f"; {INDEX} projects ALL, so each write is paid twice (docs/deploy.md, Upgrade)"


def _index(description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((i for i in description.get("GlobalSecondaryIndexes", ()) if i["IndexName"] == INDEX), None)


def _file(path: Path) -> Check | None:
    """What is wrong with where the SQLite file is, or is to be; None: it is there and can be opened."""
    path = path.absolute()
    folder = path.parent
    if not folder.is_dir():
        return failed(
            "ledger", f"{path}: its folder does not exist", f"mkdir -p {folder}, or set LAUNCH_LEDGER"
        )
    kind = file_system_of(folder, Path("/proc/self/mounts"))
    if kind in _IN_MEMORY:
        return failed(
            "ledger",
            f"{path} lies in memory ({kind}): every launch is forgotten with this container or host",
            "name a path on a volume in LAUNCH_LEDGER, or use dynamodb://TABLE",
        )
    if kind in _REMOTE:
        return failed(
            "ledger",
            f"{path} lies on a network file system ({kind}), where SQLite cannot lock",
            "name a path on a local disk in LAUNCH_LEDGER, or use dynamodb://TABLE",
        )
    wanted = path if path.exists() else folder
    if not os.access(wanted, os.R_OK | os.W_OK):
        return failed("ledger", f"{wanted} cannot be written by this user", f"chown {os.getuid()} {wanted}")
    return None if path.exists() else ok("ledger", f"{path}: is made by the first worker; one host only")


def file_system_of(folder: Path, mounts: Path) -> str:
    """The type of the file system that holds a folder, by the mount table (proc(5)); empty if nobody knows."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, place, type_, *_ = line.split(" ")
        mount = Path(place.replace("\\040", " "))
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), type_
    return kind
