import math
import random

from keyferry.model import ObjectKey
from keyferry.scheduler import Lane, LaneLimits, Queue

KEYS = [ObjectKey("n", f"i{index}") for index in range(6)]


def lanes(**concurrency: int) -> dict[str, Lane]:
    return {
        name: Lane(LaneLimits(1000.0, 1000, slots), 0.0, random.Random(1))  # noqa: S311
        for name, slots in concurrency.items()
    }


def test_the_one_with_the_least_time_left_goes_first_over_all_providers() -> None:
    queue, ways = Queue(), lanes(a=10, b=10)
    for lane, key, deadline in (("a", KEYS[0], 30.0), ("b", KEYS[1], 10.0), ("a", KEYS[2], 20.0)):
        queue.put(lane, key, deadline)
    assert [queue.take(ways, 0.0) for _ in range(4)] == [("b", KEYS[1]), ("a", KEYS[2]), ("a", KEYS[0]), None]


def test_a_key_waits_once_however_often_it_is_asked_for() -> None:
    queue, ways = Queue(), lanes(a=10)
    queue.put("a", KEYS[0], 30.0)
    queue.put("a", KEYS[0], 10.0)
    assert len(queue) == 1
    assert KEYS[0] in queue
    assert queue.take(ways, 0.0) == ("a", KEYS[0])
    assert queue.take(ways, 0.0) is None


def test_a_busy_provider_holds_nobody_else_up() -> None:
    queue, ways = Queue(), lanes(slow=1, fast=10)
    queue.put("slow", KEYS[0], 1.0)
    queue.put("slow", KEYS[1], 2.0)
    queue.put("fast", KEYS[2], 99.0)
    assert queue.take(ways, 0.0) == ("slow", KEYS[0])
    assert queue.take(ways, 0.0) == ("fast", KEYS[2])
    assert queue.take(ways, 0.0) is None
    assert queue.next_wait(ways, 0.0) == math.inf
    ways["slow"].finish()
    assert queue.take(ways, 0.0) == ("slow", KEYS[1])


def test_a_forgotten_key_is_not_handed_out() -> None:
    queue, ways = Queue(), lanes(a=10)
    queue.put("a", KEYS[0], 1.0)
    queue.put("a", KEYS[1], 2.0)
    queue.discard(KEYS[0])
    assert queue.depth("a") == 1
    assert queue.take(ways, 0.0) == ("a", KEYS[1])


def test_a_lane_can_be_emptied_and_used_again() -> None:
    queue, ways = Queue(), lanes(a=10, b=10)
    queue.put("a", KEYS[0], 1.0)
    queue.put("a", KEYS[1], 2.0)
    queue.put("b", KEYS[2], 3.0)
    assert set(queue.drain_lane("a")) == {KEYS[0], KEYS[1]}
    assert len(queue) == 1
    queue.put("a", KEYS[0], 9.0)
    assert queue.take(ways, 0.0) == ("b", KEYS[2])
    assert queue.take(ways, 0.0) == ("a", KEYS[0])
