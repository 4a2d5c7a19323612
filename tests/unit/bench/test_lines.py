"""What a virtual container prints: counting, timing and ingestion agree exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.simulator.lines import PUT_EVERY, Printer

RATES = st.sampled_from([0.1, 0.5, 1.0, 3.0, 7.0, 10.0, 999.0, 5000.0])


@given(rate=RATES, start=st.integers(0, 10_000), until=st.integers(0, 30_000))
def test_a_line_counts_from_its_own_millisecond_on(rate: float, start: int, until: int) -> None:
    printer = Printer(0)
    printer.print_from(start, rate)
    count = printer.count(until)
    times = [at for _, at in printer.times(0, count + 1)]
    assert all(at <= until for at in times[:count])
    assert times[count] > until


@given(rates=st.lists(RATES, min_size=1, max_size=4), length=st.integers(1, 5000))
def test_phases_follow_each_other_without_a_gap(rates: list[float], length: int) -> None:
    printer = Printer(0)
    for number, rate in enumerate(rates):
        printer.print_from(number * length, rate)
    end = len(rates) * length
    printer.print_from(end, 0)
    count = printer.count(end * 10)
    lines = printer.times(0, count)
    assert [number for number, _ in lines] == list(range(count))
    assert [at for _, at in lines] == sorted(at for _, at in lines)
    assert printer.times(3, 5) == lines[3:5]


def test_a_phase_ends_after_its_most_lines() -> None:
    printer = Printer(0)
    printer.print_from(0, 1000.0, 5)
    printer.print_from(100, 1000.0, 2)
    assert printer.count(1_000_000) == 7
    assert [at for _, at in printer.times(0, 7)] == [0, 1, 2, 3, 4, 100, 101]


@given(shift=st.integers(0, 3000), printed=st.integers(0, 100_000), now=st.integers(0, 100_000))
def test_cloudwatch_has_a_line_exactly_from_its_ingestion_on(shift: int, printed: int, now: int) -> None:
    printer = Printer(shift)
    ingested = printer.ingested(printed)
    assert printed < ingested <= printed + PUT_EVERY
    assert (printed <= printer.seen_until(now)) == (ingested <= now)
