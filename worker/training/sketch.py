"""Which events of two large sets differ, told by one kilobyte: pure.

An invertible Bloom lookup table (Eppstein, Goodrich, Uyeda, Varghese: "What's the Difference?", SIGCOMM 2011). Each
event is added to four cells; subtracting the table of what was taken from the table of what CloudWatch holds leaves
the events of one side only, and those are read off cell by cell as long as they are few. It asks nothing of order,
time or completeness of what was read while the job ran.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping

CELLS = 16
"""Cells of each of the four tables; 20 different events are told nearly always, whatever the size of the sets."""
_TABLES = 4
_CELL = struct.Struct("<IQI")
_PRIME = 2**61 - 1
_CHECK_PRIME = 2**31 - 1
# A cell while it is added to: count, sum of checks and sum of keys in one integer, wide enough for 2**40 events.
_CHECK_SHIFT, _COUNT_SHIFT = 104, 184
_CHECK_MASK = (1 << (_COUNT_SHIFT - _CHECK_SHIFT)) - 1
_KEY_MASK = (1 << _CHECK_SHIFT) - 1

Cell = tuple[int, int, int]
"""Count (modulo 2**32), sum of keys and sum of checks (modulo their primes)."""


def key_of(event_hash: bytes) -> int:
    """An event's key in a sketch, from its 8-byte hash."""
    return int.from_bytes(event_hash, "little") % _PRIME


class Sketch:
    """A multiset of events that can be added to and compared; `text` is for the ledger."""

    __slots__ = ("_cells",)

    def __init__(self, text: str = "") -> None:
        self._cells = [0] * (_TABLES * CELLS)
        if text:
            self._cells = [
                (count << _COUNT_SHIFT) + (check << _CHECK_SHIFT) + key
                for count, key, check in _CELL.iter_unpack(base64.b64decode(text))
            ]

    def add(self, hashes: Iterable[bytes]) -> None:
        """Add events by their 8-byte hashes."""
        cells = self._cells
        for event_hash in hashes:
            key = key_of(event_hash)
            value = (1 << _COUNT_SHIFT) + (_check(key) << _CHECK_SHIFT) + key
            for index in _indexes(key):
                cells[index] += value

    @property
    def text(self) -> str:
        """1.4 KB of base64."""
        return base64.b64encode(b"".join(_CELL.pack(*cell) for cell in self._read())).decode()

    def without(self, other: Sketch) -> Mapping[int, int] | None:
        """Key → how many more of it are here than in `other` (negative: fewer). None: too many differ to tell."""
        cells = [_minus(mine, theirs) for mine, theirs in zip(self._read(), other._read(), strict=True)]
        found: dict[int, int] = {}
        pure = True
        while pure:
            pure = False
            for index, cell in enumerate(cells):
                if (told := _alone(cell, index)) is None:
                    continue
                key, count = told
                found[key] = found.get(key, 0) + count
                if len(found) > _TABLES * CELLS:
                    return None  # no honest difference is that large: a check has lied
                amount = (count % 2**32, key * count % _PRIME, _check(key) * count % _CHECK_PRIME)
                for place in _indexes(key):
                    cells[place] = _minus(cells[place], amount)
                pure = True
        if any(any(cell) for cell in cells):
            return None
        return {key: count for key, count in found.items() if count}

    def _read(self) -> list[Cell]:
        return [
            (
                (cell >> _COUNT_SHIFT) % 2**32,
                (cell & _KEY_MASK) % _PRIME,
                (cell >> _CHECK_SHIFT & _CHECK_MASK) % _CHECK_PRIME,
            )
            for cell in self._cells
        ]


def _indexes(key: int) -> tuple[int, int, int, int]:
    return (
        key % CELLS,
        CELLS + (key >> 8) % CELLS,
        2 * CELLS + (key >> 16) % CELLS,
        3 * CELLS + (key >> 24) % CELLS,
    )


def _check(key: int) -> int:
    # Not linear in the key: a sum of several keys does not look like one.
    return key * key % _CHECK_PRIME


def _minus(cell: Cell, other: Cell) -> Cell:
    return (
        (cell[0] - other[0]) % 2**32,
        (cell[1] - other[1]) % _PRIME,
        (cell[2] - other[2]) % _CHECK_PRIME,
    )


def _alone(cell: Cell, index: int) -> tuple[int, int] | None:
    """(key, how often) if one key only is left in the cell; equal events, so also more than once."""
    count = cell[0] - 2**32 if cell[0] >= 2**31 else cell[0]
    if count == 0:
        return None
    key = cell[1] * pow(count, -1, _PRIME) % _PRIME
    if cell[2] != _check(key) * count % _CHECK_PRIME or index not in _indexes(key):
        return None
    return key, count
