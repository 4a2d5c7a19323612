"""What DynamoDB's errors mean to the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from worker.clients.aws import translate
from worker.errors import SettingsError, Throttled
from worker.ledger.dynamodb_items import INDEX, Item

WRITTEN, LOST, CONFLICT = "None", "ConditionalCheckFailed", "TransactionConflict"
PASSING = frozenset({CONFLICT, "ThrottlingError", "ProvisionedThroughputExceeded", "RequestLimitExceeded"})
"""Why a transaction was cancelled (API reference, TransactWriteItems): reasons that pass by themselves."""
MAX_TRIES = 6
"""Tries of one call against conflicts and throttling before `Throttled` is raised."""
_CONFLICT_CODES = frozenset({"TransactionConflictException", "TransactionInProgressException"})


class ConditionFailed(Exception):
    """The stored item did not meet the condition; it comes along where the call asked for it."""

    def __init__(self, item: Item) -> None:
        super().__init__("ConditionalCheckFailedException")
        self.item = item


class Cancelled(Exception):
    """A transaction was cancelled; one reason code an item, in order."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("TransactionCanceledException")
        self.reasons = reasons


@contextlib.contextmanager
def translated(operation: str, table: str) -> Iterator[None]:
    """The worker's errors in place of the SDK's; `ConditionFailed` and `Cancelled` for the ledger itself."""
    try:
        yield
    except ClientError as error:
        raise _translate_client_error(operation, table, error) from error
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:
        raise translate(operation, error) from error


def _translate_client_error(operation: str, table: str, error: ClientError) -> Exception:
    answer = cast("Mapping[str, Any]", error.response)
    code = str(answer.get("Error", {}).get("Code", ""))
    if code == "ConditionalCheckFailedException":
        return ConditionFailed(answer.get("Item", {}))
    if code == "TransactionCanceledException":
        reasons = [str(reason.get("Code", WRITTEN)) for reason in answer.get("CancellationReasons", ())]
        if reasons and PASSING.union((WRITTEN, LOST)).issuperset(reasons):
            return Cancelled(reasons)
    if code in _CONFLICT_CODES:
        return Throttled(f"{operation}: another transaction holds the item")
    if code == "ResourceNotFoundException":
        return SettingsError(f"LAUNCH_LEDGER: DynamoDB has no table {table!r} here; {creation_of(table)}")
    if code == "ValidationException" and operation == "Query":  # its parameters are constant
        return SettingsError(f"LAUNCH_LEDGER: table {table!r} has no index {INDEX!r}; {creation_of(table)}")
    return translate(operation, error)


def creation_of(table: str) -> str:
    """How to make a table of the right shape."""
    return (
        f"create it with: aws dynamodb create-table --table-name {table} --billing-mode PAY_PER_REQUEST "
        "--attribute-definitions AttributeName=pk,AttributeType=S AttributeName=holder,AttributeType=S "
        "--key-schema AttributeName=pk,KeyType=HASH --global-secondary-indexes "
        f"'IndexName={INDEX},KeySchema=[{{AttributeName=holder,KeyType=HASH}}],Projection={{ProjectionType=KEYS_ONLY}}'"
    )
