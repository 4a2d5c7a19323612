"""The file of the SQLite ledger: its schema, how it is made ready, and what SQLite's errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import aiosqlite

from worker.aio import backoff
from worker.errors import SettingsError, Unreachable, WorkerError

SCHEMA_VERSION = 1
"""Kept in `PRAGMA user_version`. A file with a newer one was written by a newer worker and is refused."""

_SCHEMA = (
    """CREATE TABLE launches (
        launch_id TEXT PRIMARY KEY, owner TEXT NOT NULL, epoch INTEGER NOT NULL, open INTEGER NOT NULL,
        expires_at REAL NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX launches_open ON launches (owner) WHERE open = 1",
    "CREATE INDEX launches_expiry ON launches (expires_at) WHERE open = 0 AND expires_at > 0",
    """CREATE TABLE workers (
        worker TEXT PRIMARY KEY, version INTEGER NOT NULL, deployment TEXT NOT NULL, host TEXT NOT NULL,
        started_at REAL NOT NULL)""",
    "CREATE TABLE locks (name TEXT PRIMARY KEY, worker TEXT NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_STOPS = """CREATE TABLE IF NOT EXISTS stops (
    launch_id TEXT PRIMARY KEY, reason TEXT NOT NULL, asked_at REAL NOT NULL)"""

_RUNS = """CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, launch_id TEXT NOT NULL, expires_at REAL NOT NULL)"""
_RUNS_EXPIRY = "CREATE INDEX IF NOT EXISTS runs_expiry ON runs (expires_at)"

_PASSING_CODES = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
)
"""Primary result codes after which a later try may succeed (https://www.sqlite.org/rescode.html)."""


async def prepare_patiently(connection: aiosqlite.Connection, path: Path, patience: float) -> None:
    """`_prepare`, again while locked: SQLite's busy handler does not cover the change to WAL."""
    deadline = time.monotonic() + patience
    for tries in itertools.count():
        try:
            await _prepare(connection, path)
        except sqlite3.OperationalError as error:
            await connection.rollback()
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            await asyncio.sleep(backoff(tries, base=0.01, cap=0.2))
        else:
            return


async def _prepare(connection: aiosqlite.Connection, path: Path) -> None:
    if await _schema_version(connection) > SCHEMA_VERSION:
        raise SettingsError(
            f"LAUNCH_LEDGER: {path} was written by a newer launch-worker; upgrade this one or name another file"
        )
    ((mode,),) = await connection.execute_fetchall("PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise SettingsError(f"LAUNCH_LEDGER: {path} cannot use WAL; put it on a local disk")
    await connection.execute("PRAGMA synchronous = FULL")
    if await _schema_version(connection) == 0:
        await connection.execute("BEGIN IMMEDIATE")
        if await _schema_version(connection) == 0:  # nobody else was faster
            for statement in _SCHEMA:
                await connection.execute(statement)
        await connection.commit()
    # Came later; a file that has them is still one of this version, which older workers read.
    for statement in (_STOPS, _RUNS, _RUNS_EXPIRY):
        await connection.execute(statement)


async def _schema_version(connection: aiosqlite.Connection) -> int:
    ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
    return int(version)


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _translate(path: Path, error: sqlite3.Error) -> WorkerError:
    if _primary_code(error) in _PASSING_CODES:
        return Unreachable(f"the ledger {path} does not answer: {error}")
    return SettingsError(f"LAUNCH_LEDGER: {path} cannot be used: {error}; is it a ledger on a writable disk?")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """The worker's errors in place of SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error
