"""Pages of the documentation that name tests: each must exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def page(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text()


def missing_tests(text: str) -> list[str]:
    """Return which of the tests that a page names, such as ``tests/test_plan.py::test_the_way``, are not there."""
    named = sorted(set(re.findall(r"`(tests/[^`]+)`", text)))
    assert named, "a page that names none shows nothing"
    return [each for each in named if not _exists(each)]


def _exists(named: str) -> bool:
    path, *names = named.split("::")
    file = REPOSITORY / path
    if not names or not file.exists():  # tests are named, not files
        return False
    found: ast.AST = _parsed(file)
    for name in names:
        inside = [each for each in ast.iter_child_nodes(found) if isinstance(each, _DEFINITIONS) and each.name == name]
        if len(inside) != 1:
            return False
        found = inside[0]
    return True


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables' rows, without their heads."""
    lines = text.splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|---")}
    return [
        line.strip("| ").split(" | ")
        for number, line in enumerate(lines)
        if line.startswith("| ") and number not in heads
    ]
