import math

from hypothesis import given
from hypothesis import strategies as st

from keyferry.model import ObjectKey
from keyferry.scheduler import Agenda

KEYS = [ObjectKey("n", f"i{index}") for index in range(8)]


def test_what_is_due_comes_earliest_first_and_once() -> None:
    agenda = Agenda()
    for index, at in enumerate((30.0, 10.0, 20.0)):
        agenda.put(KEYS[index], at)
    assert agenda.next_time() == 10.0
    assert [agenda.pop_due(25.0) for _ in range(3)] == [KEYS[1], KEYS[2], None]
    assert len(agenda) == 1


def test_a_new_time_replaces_the_old_one_either_way() -> None:
    agenda = Agenda()
    agenda.put(KEYS[0], 10.0)
    agenda.put(KEYS[0], 50.0)
    assert agenda.pop_due(20.0) is None
    agenda.put(KEYS[0], 5.0)
    assert agenda.pop_due(5.0) == KEYS[0]
    assert agenda.next_time() == math.inf


def test_infinity_takes_a_key_off() -> None:
    agenda = Agenda()
    agenda.put(KEYS[0], 10.0)
    agenda.put(KEYS[0], math.inf)
    assert agenda.time_of(KEYS[0]) == math.inf
    assert agenda.pop_due(1e12) is None


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0, 100)), max_size=300))
def test_it_agrees_with_a_plain_dictionary_however_often_times_change(puts: list[tuple[ObjectKey, float]]) -> None:
    agenda, model = Agenda(), {}
    for key, at in puts:
        agenda.put(key, at)
        model[key] = at
    popped = []
    while (key_due := agenda.pop_due(50.0)) is not None:
        popped.append(model[key_due])
    assert popped == sorted(at for at in model.values() if at <= 50.0)
    assert len(agenda) == sum(at > 50.0 for at in model.values())


def test_churn_leaves_no_garbage_behind() -> None:
    agenda = Agenda()
    for turn in range(10_000):
        agenda.put(KEYS[turn % 8], float(turn))
    assert len(agenda._heap) < 200
