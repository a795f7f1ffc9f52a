"""What happens when a tier of tests cannot run here: said in one clear line, and never green by silence in CI."""

from __future__ import annotations

import os

import pytest

REQUIRED_VARIABLE = "KEYFERRY_REQUIRE_TIERS"


def is_required(tier: str) -> bool:
    """Tell whether ``tier`` must run: always in CI, else if ``KEYFERRY_REQUIRE_TIERS`` names it or says ``all``."""
    named = os.environ.get(REQUIRED_VARIABLE, "").replace(",", " ").split()
    in_ci = os.environ.get("CI", "").strip().lower() not in {"", "0", "false", "no"}
    return in_ci or tier in named or "all" in named


def require(tier: str, problem: str | None) -> None:
    """Go on if ``problem`` is None; else skip the test, or fail it where the tier must run.

    Raises: pytest's own outcome exceptions, with one line that names the tier and the problem.
    """
    if problem is None:
        return
    line = f"the {tier} tier cannot run here: {' '.join(problem.split())}"
    if is_required(tier):
        pytest.fail(line, pytrace=False)
    pytest.skip(line)
