"""Whose turn it is: round robin over queues, priority and age within one, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from tests.unit.records import waiting
from worker.launch.record import LaunchRecord
from worker.launch.turns import QueueKey, in_turn, queue_of

NOW = 1_800_000_000.0
HOUR = 3600.0


def launch(
    name: str, queue: str = "a", *, entity: str = "acme", age: float = 0.0, priority: int = 2
) -> LaunchRecord:
    return waiting(name, queue=queue, queue_entity=entity, waiting_at=NOW - age, priority=priority)


def served_one_by_one(launches: list[LaunchRecord], now: float = NOW) -> list[str]:
    """Take the first of those that are left, until none is left."""
    left, served, order = list(launches), dict[QueueKey, int](), list[str]()
    while left:
        first = in_turn(left, served, now)[0]
        served[queue_of(first)] = len(order)
        order.append(first.launch_id)
        left.remove(first)
    return order


def test_a_burst_of_500_lets_another_queues_single_launch_pass_at_its_next_turn() -> None:
    burst = [launch(f"burst-{n}", age=1000 - n) for n in range(500)]
    order = served_one_by_one([*burst, launch("single", "b")])
    assert order.index("single") == 1
    assert [name for name in order if name != "single"] == [record.launch_id for record in burst], (
        "oldest first"
    )


def test_queues_have_turns_alike_whatever_waits_in_them() -> None:
    launches = [
        launch(f"{queue}-{n}", queue, age=n)
        for queue, count in (("a", 50), ("b", 20), ("c", 20))
        for n in range(count)
    ]
    first = Counter(name[0] for name in served_one_by_one(launches)[:30])
    assert first == {"a": 10, "b": 10, "c": 10}


def test_queues_of_one_name_in_two_entities_are_two() -> None:
    burst = [launch(f"burst-{n}", age=100) for n in range(5)]
    assert served_one_by_one([*burst, launch("other", entity="umbrella")]).index("other") == 1


def test_the_longest_waiting_queue_has_the_first_turn() -> None:
    assert served_one_by_one([launch("a", "a", age=1), launch("b", "b", age=2)]) == ["b", "a"]


def test_priority_orders_a_queue_but_not_the_queues() -> None:
    launches = [
        launch("a-low", age=90, priority=3),
        launch("a-medium", age=80),
        launch("a-critical", age=1, priority=0),
        launch("a-high", age=2, priority=1),
        launch("b-low", "b", age=1, priority=3),
    ]
    assert served_one_by_one(launches) == ["a-critical", "b-low", "a-high", "a-medium", "a-low"]


def test_a_low_launch_is_passed_for_three_hours_at_most() -> None:
    low = launch("low", priority=3)

    def first_after(hours: float) -> str:
        now = NOW + hours * HOUR
        newest = launch("critical", age=-hours * HOUR, priority=0)
        return in_turn([newest, low], {}, now)[0].launch_id

    assert first_after(2.9) == "critical"
    assert first_after(3) == "low"


def test_what_earlier_attempts_have_waited_counts() -> None:
    again = waiting("again", queue="a", queue_entity="acme", waiting_at=NOW, waited=3 * HOUR, priority=3)
    assert in_turn([launch("critical", age=1, priority=0), again], {}, NOW)[0] is again


def test_a_launch_noted_by_a_clock_that_is_ahead_is_no_more_urgent() -> None:
    ahead = launch("ahead", age=-5 * HOUR, priority=1)
    assert in_turn([ahead, launch("high", priority=1)], {}, NOW)[0].launch_id == "high"
