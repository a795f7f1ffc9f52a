"""The table of what the guides of the three systems ask for names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "coverage.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))
REASONED = ("no place", "none")


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_exists(named: str) -> None:
    path, *names = named.split("::")
    assert names, "the page names tests, not files"
    found: ast.AST = ast.parse((REPOSITORY / path).read_text())
    for name in names:
        (found,) = [
            each
            for each in ast.iter_child_nodes(found)
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and each.name == name
        ]


def test_every_row_has_a_test_or_a_reason() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    for row in rows:
        if row[0] == "in the guide":
            continue
        tested = len(row) == 3 and "`tests/" in row[2]
        assert tested or any(reason in row[1] for reason in REASONED), row[0]
