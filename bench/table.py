"""Figures beside their aims, as a Markdown table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should be: at least, or at most."""

    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"

    def verdict(self, value: float) -> str:
        """Say whether it is met, or by how much it is missed."""
        if self.least is not None and value < self.least:
            return f"missed by {(1 - value / self.least) * 100:.0f} %"
        if self.most is not None and value > self.most:
            return f"missed by {(value / self.most - 1) * 100:.0f} %" if self.most else f"missed by {value:g}"
        return "met"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row."""

    name: str
    value: float
    unit: str
    aim: Aim | None
    remark: str

    def cells(self) -> tuple[str, ...]:
        """Return what the row shows."""
        digits = 0 if self.value >= 100 or self.value == int(self.value) else 2 if self.value < 10 else 1
        shown = f"{self.value:.{digits}f} {self.unit}".strip()
        aim, verdict = ("", "") if self.aim is None else (str(self.aim), self.aim.verdict(self.value))
        return self.name, shown, aim, verdict, self.remark


def print_table(figures: list[Figure]) -> None:
    """Print the figures with columns of even width."""
    rows = [("figure", "measured", "aim", "verdict", "remark"), *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n".join(lines))
