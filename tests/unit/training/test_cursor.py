"""The cursor, as a property: whatever CloudWatch does within its rules, every event gets its lines exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.launch.console import ConsoleLine
from worker.launch.log_state import LogState, StreamPosition
from worker.launch.record import LaunchRecord, LaunchState, RunRef, record_from_json, record_to_json
from worker.training import cursor
from worker.training.cursor import NOTHING_TAKEN, LogEvent

STREAMS = ("job/algo-1-1700000000", "job/algo-2-1700000000")
WINDOW = 25
"""How far back (ms) the machine's running deep sweeps look."""


@dataclass
class Streams:
    """CloudWatch's rules: one PutLogEvents is ingested at one moment and seen as a whole; order is (timestamp,
    ingestion time, id); every page of an answer is read at a moment of its own."""

    now: int = 1000
    events: list[LogEvent] = field(default_factory=list)

    def put(self, stream: str, ages: Sequence[int], texts: Sequence[str]) -> None:
        """One PutLogEvents: all events share the ingestion time, their timestamps lie in the past."""
        self.now += 7
        for age, text in zip(ages, texts, strict=True):
            self.events.append(LogEvent(stream, self.now - age, self.now, text))

    def after(self, streams: Sequence[str], since: int, until: int | None, taken: int) -> list[LogEvent]:
        """Events in the API's order. `taken`: how many of them the caller has read on earlier pages."""
        found = [e for e in self.events if e.stream in streams and since <= e.timestamp]
        found = [e for e in found if until is None or e.timestamp <= until]
        return sorted(found, key=lambda e: (e.timestamp, e.ingested))[taken:]


def round_trip(state: LogState) -> LogState:
    """As another worker finds it in the ledger."""
    record = LaunchRecord(launch_id="a", state=LaunchState.ACCEPTED, run=RunRef("e", "p", "r"), log=state)
    return record_from_json(record_to_json(record)).log


put_events = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(["epoch", "loss", "a\nb"])), min_size=1, max_size=5
)
page_plan = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([None, *STREAMS]), st.integers(0, 60)),
    min_size=1,
    max_size=6,
)
"""For each page: how many events, and a stream that is written to (with an event of this age) after it was read."""


class ExactlyOnce(RuleBasedStateMachine):
    """A worker that reads, assigns and crashes at will."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Streams()
        self.state = LogState()
        self.positions = dict.fromkeys(STREAMS, NOTHING_TAKEN)
        self.assigned: list[LogEvent] = []
        self.console: list[ConsoleLine] = []

    @rule(stream=st.sampled_from(STREAMS), events=put_events)
    def containers_print(self, stream: str, events: list[tuple[int, str]]) -> None:
        self.cloud.put(stream, [age for age, _ in events], [text for _, text in events])

    @rule(plan=page_plan, finish=st.booleans(), batch=st.integers(1, 9), skip=st.booleans())
    def sweep(self, plan: list[tuple[int, str | None, int]], finish: bool, batch: int, skip: bool) -> None:
        if any(map(cursor.needs_deep_sweep, self.positions.values())):
            self.deep_sweep(since=None, plan=plan)
        since = max(0, min(position.timestamp for position in self.positions.values()))
        pages, complete = self.read(STREAMS, since, None, plan, finish)
        found = [event for page in pages for event in page]
        fresh: list[LogEvent] = []
        for stream in STREAMS:
            own = [event for event in found if event.stream == stream]
            fresh += cursor.after_position(own, self.positions[stream])
        fresh.sort(key=found.index)
        silent = [stream for stream in STREAMS if all(event.stream != stream for event in fresh)]
        taken = fresh[:batch]
        for stream in STREAMS:
            own = [event for event in taken if event.stream == stream]
            self.positions[stream] = cursor.advance(self.positions[stream], own)
        if taken:
            self.assign(taken)
        if skip:
            through = self.cloud.now - 20 if complete else max((e.timestamp for e in found), default=0)
            for stream in silent:
                self.positions[stream] = cursor.skip_silence(self.positions[stream], through)

    @precondition(lambda self: self.room_for_older_marks())
    @rule(plan=page_plan)
    def running_deep_sweep(self, plan: list[tuple[int, str | None, int]]) -> None:
        self.deep_sweep(since=WINDOW, plan=plan)

    @rule()
    def crash(self) -> None:
        """Another worker goes on from the ledger, and posts the newest batch again."""
        self.state = round_trip(self.state)
        self.positions = {**dict.fromkeys(STREAMS, NOTHING_TAKEN), **self.state.positions}
        batch = self.state.batch
        if batch is None:
            return
        since = min(first for first, _ in batch.streams.values())
        until = max(last for _, last in batch.streams.values())
        again = cursor.replay(batch, self.cloud.after(sorted(batch.streams), since, until, 0))
        lines = [line for event in again for line in cursor.console_lines(event)]
        assert lines == self.console[batch.first_line :]
        assert cursor.lines_digest(lines) == batch.digest

    @invariant()
    def lines_are_contiguous(self) -> None:
        assert self.state.next_line == len(self.console)
        if self.state.batch is not None:
            assert self.state.batch.first_line + self.state.batch.lines == self.state.next_line

    @invariant()
    def nothing_is_doubled(self) -> None:
        assert not Counter(self.assigned) - Counter(self.cloud.events)

    @invariant()
    def marks_stay_bounded(self) -> None:
        assert all(len(position.marks) <= cursor.MAX_MARKS for position in self.positions.values())

    @invariant()
    def no_mark_reaches_less_far_than_the_one_before(self) -> None:
        for position in self.positions.values():
            reached = [mark[0] for mark in position.marks]
            assert reached == sorted(reached)

    def teardown(self) -> None:
        """The job has ended: read what is left, then the one deep sweep over everything."""
        for _ in range(200):
            before = len(self.assigned)
            self.sweep(plan=[(50, None, 0)] * 6, finish=True, batch=9, skip=False)
            if len(self.assigned) == before:
                break
        self.deep_sweep(since=None, plan=[(3, None, 0)])
        missing = Counter(self.cloud.events) - Counter(self.assigned)
        assert not missing, f"lost: {missing}"
        self.nothing_is_doubled()

    def room_for_older_marks(self) -> bool:
        """What is beyond KEPT_MARKS is given up knowingly, so the property does not go there."""
        return all(
            sum(reached <= position.timestamp - WINDOW for reached, _ in position.marks)
            < cursor.KEPT_MARKS // 2
            for position in self.positions.values()
        )

    # What the feed and the delivery do.

    def read(
        self,
        streams: Sequence[str],
        since: int,
        until: int | None,
        plan: list[tuple[int, str | None, int]],
        finish: bool,
    ) -> tuple[list[list[LogEvent]], bool]:
        """Pages as planned; what is written behind a page's end while paging is not seen by this read."""
        pages: list[list[LogEvent]] = []
        last: LogEvent | None = None
        ties = 0
        rest = [(10_000, None, 0)] if finish else []
        for number, (size, writes_to, age) in enumerate([*plan, *rest]):
            ahead = self.cloud.after(streams, since, until, 0)
            if last is not None:
                behind = [e for e in ahead if e.key < last.key]
                ahead = ahead[len(behind) + ties :]
            page = [replace(event, page=number) for event in ahead[:size]]
            for event in page:
                ties = ties + 1 if last is not None and event.key == last.key else 1
                last = event
            pages.append(page)
            if writes_to is not None:
                self.cloud.put(writes_to, [age], ["meanwhile"])
        return pages, finish

    def deep_sweep(self, *, since: int | None, plan: list[tuple[int, str | None, int]]) -> None:
        for stream in STREAMS:
            position = self.positions[stream]
            if not position.marks:
                continue
            start = 0 if since is None else max(0, position.timestamp - since)
            known = position.marks[-1][1]
            everything: list[tuple[int, str | None, int]] = [(10_000, None, 0)]
            for meanwhile in (plan, everything):
                pages, _ = self.read([stream], start, position.timestamp, meanwhile, True)
                search = cursor.LateSearch(position, known)
                for page in pages:
                    search.add(page)
                if search.settled:
                    break
                known = search.newest
            taken = cursor.take_late(search.late)
            self.positions[stream] = cursor.after_deep_sweep(position, search.known, start)
            if taken:
                self.assign(taken)

    def assign(self, events: Sequence[LogEvent]) -> None:
        first_line = self.state.next_line
        self.state, lines = cursor.assign(self.state, self.positions, events)
        assert first_line == len(self.console)
        self.console += lines
        self.assigned += events


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@given(
    reached=st.lists(st.integers(-1, 40), max_size=cursor.MAX_MARKS).map(sorted),
    newest=st.lists(st.integers(-1, 40), min_size=cursor.MAX_MARKS, max_size=cursor.MAX_MARKS).map(sorted),
    seen=st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45))),
)
def test_an_event_is_late_by_the_first_mark_beyond_it(
    reached: list[int], newest: list[int], seen: list[tuple[int, int]]
) -> None:
    marks = tuple(zip(reached, newest, strict=False))
    position = StreamPosition(marks[-1][0] if marks else 20, 0, 1, marks)
    events = [event(*times) for times in seen]
    beyond = [[known for at, known in marks if e.timestamp < at] for e in events]
    late = [e for e, known in zip(events, beyond, strict=True) if known and e.ingested > known[0]]
    assert cursor.late_events(events, position) == late


# The same rules one by one, where the property would seldom come by.


def event(timestamp: int, ingested: int, message: str = "line", *, page: int = 0) -> LogEvent:
    return LogEvent(STREAMS[0], timestamp, ingested, message, page)


def position_after(*events: LogEvent) -> StreamPosition:
    return cursor.advance(NOTHING_TAKEN, events)


def test_what_came_later_in_the_same_millisecond_is_new_and_never_late_afterwards() -> None:
    position = position_after(event(5, 10))
    again = [event(5, 10), event(5, 12)]
    assert cursor.after_position(again, position) == [event(5, 12)]
    position = cursor.advance(position, [event(5, 12)])
    position = cursor.advance(position, [event(7, 13)])
    assert cursor.late_events([*again, event(7, 13)], position) == []
    assert cursor.late_events([event(3, 11)], position) == [event(3, 11)]


def test_what_arrives_between_two_pages_of_one_read_is_late_although_page_two_shows_something_newer() -> None:
    position = position_after(event(10, 20, page=0), event(30, 40, page=1))
    assert cursor.late_events([event(5, 35)], position) == [event(5, 35)]
    assert cursor.late_events([event(20, 35)], position) == [event(20, 35)], (
        "page one may have ended before it"
    )
    assert cursor.late_events([event(10, 20), event(30, 40)], position) == []


def test_a_deep_sweep_leaves_alone_what_may_hide_something_on_a_page_read_before() -> None:
    position = position_after(event(10, 20), event(30, 40))
    search = cursor.LateSearch(position, known=40)
    search.add([event(10, 20)])
    search.add([event(25, 50), event(30, 40)])
    assert not search.settled
    assert (search.known, search.newest) == (40, 50)
    again = cursor.LateSearch(position, known=search.newest)
    again.add([event(5, 45), event(10, 20)])
    again.add([event(25, 50), event(30, 40)])
    assert again.settled
    assert again.late == [event(5, 45), event(25, 50)]


def test_one_page_is_one_moment_so_all_that_is_late_on_it_is_certain() -> None:
    position = position_after(event(10, 20), event(30, 40))
    search = cursor.LateSearch(position, known=40)
    search.add([event(5, 45), event(25, 50)])
    assert search.settled


def test_a_window_keeps_what_was_known_about_the_time_before_it() -> None:
    position = position_after(event(100, 101))
    position = cursor.advance(position, [event(200, 201)])
    position = cursor.after_deep_sweep(position, 210, 150)
    assert cursor.late_events([event(149, 205)], position) == [event(149, 205)], (
        "behind the window, and not looked at"
    )
    assert cursor.late_events([event(150, 205)], position) == [], "in the window, taken by the sweep"
    assert cursor.late_events([event(50, 150)], position) == [event(50, 150)]
    position = cursor.after_deep_sweep(position, 220, 180)
    assert cursor.late_events([event(50, 150)], position) == [event(50, 150)], (
        "a second window forgets nothing"
    )


def test_a_sweep_over_everything_leaves_one_mark() -> None:
    position = position_after(*(event(n, n + 1, page=n) for n in range(1, 20)))
    assert len(position.marks) > 10
    assert cursor.after_deep_sweep(position, 30, 0).marks == ((19, 30),)


def test_marks_are_used_up_before_one_must_be_forgotten() -> None:
    position = NOTHING_TAKEN
    steps = 0
    while not cursor.needs_deep_sweep(position):
        steps += 1
        position = cursor.advance(position, [event(10 * steps, 10 * steps + 1)])
    assert cursor.DEEP_SWEEP_MARKS - 1 <= steps < cursor.MAX_MARKS
    assert cursor.late_events([event(5, 12)], position) == [event(5, 12)], "the oldest step is still known"
    for step in range(steps + 1, steps + 200):
        position = cursor.advance(position, [event(10 * step, 10 * step + 1)])
    assert len(position.marks) == cursor.MAX_MARKS


def test_nothing_newly_ingested_adds_no_mark() -> None:
    position = position_after(event(1, 50))
    marks = len(position.marks)
    for timestamp in range(2, 40):
        position = cursor.advance(position, [event(timestamp, 50)])
    assert len(position.marks) == marks


def test_silence_moves_a_position_and_what_turns_up_behind_it_is_late() -> None:
    position = cursor.skip_silence(position_after(event(10, 20)), 1000)
    assert cursor.after_position([event(10, 20), event(999, 1500)], position) == []
    assert cursor.late_events([event(10, 20), event(999, 1500)], position) == [event(999, 1500)]
    assert cursor.after_position([event(1000, 1500)], position) == [event(1000, 1500)]
    assert cursor.skip_silence(position, 500) is position, "it never moves back"


def test_the_unread_stream_can_be_skipped_too() -> None:
    position = cursor.skip_silence(NOTHING_TAKEN, 1000)
    assert cursor.late_events([event(0, 1500)], position) == [event(0, 1500)]


def test_late_events_go_by_ingestion_time_and_none_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "MAX_BATCH_EVENTS", 3)
    position = position_after(event(100, 10))
    late = [event(1, 30), event(2, 20), event(3, 21), event(4, 30), event(5, 40)]
    taken = cursor.take_late(late)
    assert [(e.ingested, e.timestamp) for e in taken] == [(20, 2), (21, 3), (30, 1), (30, 4)]
    position = cursor.after_late(position, taken)
    assert cursor.late_events(late, position) == [event(5, 40)]


def test_a_batch_is_bounded_in_events_and_bytes_but_never_empty() -> None:
    many = [event(n, n) for n in range(cursor.MAX_BATCH_EVENTS + 1)]
    assert len(cursor.take(many)) == cursor.MAX_BATCH_EVENTS
    big = event(1, 1, "x" * (cursor.MAX_BATCH_BYTES + 1))
    assert cursor.take([big, big]) == [big]
    half = event(1, 1, "x" * (cursor.MAX_BATCH_BYTES // 2))
    assert len(cursor.take([half] * 5)) == 1


def test_a_batch_whose_events_are_gone_cannot_be_replayed() -> None:
    events = [event(1, 1), event(2, 2, "gone")]
    state, _ = cursor.assign(LogState(), {}, events)
    assert state.batch is not None
    with pytest.raises(cursor.EventsGone, match="1 of 2 events"):
        cursor.replay(state.batch, events[:1])


def test_a_batch_is_replayed_in_its_own_order_among_strangers() -> None:
    late_first = [event(9, 1, "b"), event(3, 8, "a"), event(9, 1, "b")]
    state, _ = cursor.assign(LogState(), {}, late_first)
    assert state.batch is not None
    assert cursor.replay(state.batch, [event(4, 4), *reversed(late_first)]) == late_first


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("", [""]),
        ("\n", [""]),
        ("one", ["one"]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two"]),
        (" 10%\r 50%\r100%", ["100%"]),
        (" 10%\r100%\r\nnext", ["100%", "next"]),
        ("a\x00b\ud800c", ["ab?c"]),
        ("\n\nafter", ["", "", "after"]),
    ],
)
def test_an_event_becomes_lines(message: str, lines: list[str]) -> None:
    made = cursor.console_lines(event(7, 9, message))
    assert [line.content for line in made] == lines
    assert {(line.timestamp, line.label) for line in made} == {(7, "algo-1")}


@pytest.mark.parametrize(
    ("stream", "label"),
    [("job/algo-1-1700000000", "algo-1"), ("job/algo-12", "algo"), ("job/tail-x", "tail-x"), ("7", "7")],
)
def test_streams_are_labelled_by_host(stream: str, label: str) -> None:
    assert cursor.stream_label(stream) == label


def test_lines_are_assigned_from_where_the_log_stands_with_the_span_of_each_stream() -> None:
    other = LogEvent(STREAMS[1], 4, 4, "x")
    state = LogState(next_line=7, positions={"kept": NOTHING_TAKEN})
    position = position_after(event(9, 9))
    state, lines = cursor.assign(state, {STREAMS[0]: position}, [event(9, 9, "a\nb"), other, event(2, 12)])
    assert state.next_line == 7 + 4 == 7 + len(lines)
    assert state.positions == {"kept": NOTHING_TAKEN, STREAMS[0]: position}
    assert state.batch is not None
    assert (state.batch.first_line, state.batch.lines) == (7, 4)
    assert state.batch.streams == {STREAMS[0]: (2, 9), STREAMS[1]: (4, 4)}


def test_short_sweeps_keep_a_busy_stream_exact() -> None:
    position = NOTHING_TAKEN
    stored: list[LogEvent] = []
    taken: list[LogEvent] = []

    def deep_sweep(since: int) -> StreamPosition:
        search = cursor.LateSearch(position, position.marks[-1][1])
        search.add(
            [e for e in sorted(stored, key=lambda e: e.key) if since <= e.timestamp <= position.timestamp]
        )
        assert search.settled
        taken.extend(search.late)
        return cursor.after_deep_sweep(position, search.known, since)

    sweeps = 0
    for step in range(10, 500):
        stored.append(event(10 * step, 10 * step + 1))
        taken.append(stored[-1])
        position = cursor.advance(position, [stored[-1]])
        if step % 7 == 0:
            stored.append(event(10 * step - 10 * (step % 9) - 5, 10 * step + 2, "late"))
        if cursor.needs_deep_sweep(position):
            sweeps += 1
            position = deep_sweep(cursor.newer_marks_since(position))
            assert not cursor.needs_deep_sweep(position)
    position = deep_sweep(0)
    assert 5 < sweeps < 490 / 40, "rare"
    assert Counter(taken) == Counter(stored)


def test_a_new_batch_is_not_acknowledged_because_the_last_one_was() -> None:
    first, _ = cursor.assign(LogState(), {}, [LogEvent("job/algo-1-17", 1, 1, "one")])
    second, _ = cursor.assign(replace(first, acknowledged=True), {}, [LogEvent("job/algo-1-17", 2, 2, "two")])
    assert second.batch is not None
    assert not second.acknowledged
