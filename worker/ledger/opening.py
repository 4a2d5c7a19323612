"""Which ledger: from the address in the settings to an open adapter."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import Again, SettingsError
from worker.ledger.dynamodb import DynamoDbLedger
from worker.ledger.port import Ledger
from worker.ledger.sqlite import open_sqlite_ledger

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient

SQLITE = "sqlite:///"
"""Before the path of a SQLite file."""
_DYNAMODB = "dynamodb://"


async def check_ledger(ledger: Ledger) -> None:
    """Before a worker says that it has started: raises `SettingsError` for a table that is missing or has no index.
    A store that does not answer now is no reason not to start."""
    with contextlib.suppress(Again):
        await ledger.beats()


def sees_ledger(address: str) -> bool:
    """Whether opening a ledger would find one: a SQLite file would be made, and be an empty one. A table never is."""
    return not address.startswith(SQLITE) or Path(address.removeprefix(SQLITE)).is_file()


@contextlib.asynccontextmanager
async def open_ledger(address: str, dynamodb: DynamoDBClient) -> AsyncIterator[Ledger]:
    """Open `sqlite:///PATH` or `dynamodb://TABLE`; raises `SettingsError` for anything else."""
    if address.startswith(SQLITE):
        async with open_sqlite_ledger(Path(address.removeprefix(SQLITE))) as ledger:
            yield ledger
    elif address.startswith(_DYNAMODB):
        yield DynamoDbLedger(dynamodb, address.removeprefix(_DYNAMODB))
    else:
        raise SettingsError(f"LAUNCH_LEDGER: {address!r} is neither sqlite:///PATH nor dynamodb://TABLE")
