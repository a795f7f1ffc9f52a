from __future__ import annotations

import pytest

from tests.support.order import SECONDS, order

SHORT = [f"tests/a/test_{letter}.py::test_{number}" for letter in "bcd" for number in range(40)]
LONG = [f"{name}::test_{number}" for name in SECONDS if name.endswith(".py") for number in range(3)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_every_part_begins_with_what_takes_long_and_none_is_lost(workers: int) -> None:
    names = sorted(SHORT + LONG)
    ordered = [names[place] for place in order(names, workers)]
    assert sorted(ordered) == names
    for number in range(workers):  # the same cuts as pytest-xdist makes
        size = (len(ordered)) // (workers - number)
        part, ordered = ordered[:size], ordered[size:]
        kinds = [name in LONG for name in part]
        assert kinds[0]
        assert kinds == sorted(kinds, reverse=True)
        files = [name.partition("::")[0] for name, long in zip(part, kinds, strict=True) if long]
        assert sorted(map(files.index, files)) == list(map(files.index, files)), "a file's tests stay together"


@pytest.mark.parametrize("names", [[], ["tests/node/test_install.py::test_one"], LONG])
def test_a_few_tests_are_all_run(names: list[str]) -> None:
    assert sorted(order(names, 3)) == list(range(len(names)))
