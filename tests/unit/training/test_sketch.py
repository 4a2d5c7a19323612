"""The sketch tells exactly which events two readings of a log differ in, or that it cannot tell."""

from __future__ import annotations

import hashlib
from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings

from worker.training.sketch import CELLS, Sketch, key_of


def hashes(*names: object) -> list[bytes]:
    return [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names]


def sketch_of(*names: object) -> Sketch:
    sketch = Sketch()
    sketch.add(hashes(*names))
    return sketch


def keys(*names: object) -> dict[int, int]:
    return dict(Counter(map(key_of, hashes(*names))))


def test_what_is_missing_among_many_is_told() -> None:
    missing = [3, 77_777, 99_999]
    taken = sketch_of(*(n for n in range(100_000) if n not in missing))
    assert sketch_of(*range(100_000)).without(taken) == keys(*missing)


def test_what_is_gone_is_told_apart_from_what_is_missing() -> None:
    (gone,) = keys("gone")
    assert sketch_of("kept", "new").without(sketch_of("kept", "gone")) == {**keys("new"), gone: -1}


def test_equal_events_are_counted() -> None:
    assert sketch_of(*["."] * 7, "a").without(sketch_of(*["."] * 2)) == {**keys(*["."] * 5), **keys("a")}


def test_too_large_a_difference_is_not_guessed() -> None:
    assert sketch_of(*range(5 * CELLS)).without(Sketch()) is None


def test_order_is_no_matter_and_text_keeps_everything() -> None:
    sketch = Sketch(sketch_of(*range(1000)).text)
    sketch.add(hashes(*range(1000, 2000)))
    assert sketch.text == sketch_of(*reversed(range(2000))).text
    assert len(sketch.text) <= 1400
    assert Sketch().without(Sketch("")) == {}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 500), max_size=300),
    st.lists(st.integers(501, 1000), max_size=12),
    st.lists(st.integers(1001, 1500), max_size=8),
)
def test_it_is_right_or_says_nothing(both: list[int], new: list[int], gone: list[int]) -> None:
    told = sketch_of(*both, *new).without(sketch_of(*both, *gone))
    wanted = keys(*new) | {key: -count for key, count in keys(*gone).items()}
    assert told in (wanted, None)  # None: by chance a few may share all of their cells


def test_a_small_difference_is_nearly_always_told() -> None:
    differences = [range(10 * i, 10 * i + CELLS // 2) for i in range(500)]
    silent = [some for some in differences if sketch_of(*some).without(Sketch()) is None]
    assert len(silent) <= 5
