"""The live table of ``keyferry run`` on a terminal, and the same table once for ``keyferry status``.

Drawing happens in a thread of its own: a terminal that is stopped (Ctrl-S) must not stop the renewals.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from keyferry.engine.status import State
from keyferry.run.prompt import lines, qr_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from keyferry.engine import IdentityStatus
    from keyferry.question import Account

STYLES: Final = {
    State.FRESH: "green",
    State.RENEWING: "cyan",
    State.RETRYING: "yellow",
    State.EXPIRED: "bold red",
    State.ASKING: "bold magenta",
    State.STALLED: "bold red",
    State.PENDING: "dim",
    State.SUSPENDED: "dim",
}
_URGENCY: Final = (
    State.EXPIRED, State.ASKING,
    State.STALLED, State.RETRYING, State.PENDING, State.RENEWING, State.FRESH, State.SUSPENDED,
)  # fmt: skip
MESSAGES_KEPT: Final = 500
PROMPTS_SHOWN: Final = 3
ENDING_SOON: Final = 2 * 86400.0
"""Seconds before a login's end from which on the statuses say so."""
FRAME: Final = 1.0
"""Seconds between drawings when nothing new arrives: the times shown are relative."""
_MIDDLE: Final = 72
_WIDE: Final = 104
"""Columns below which the last error, and then provider and grant, are left out."""
GAP: Final = 2
"""Columns between two columns of the table."""
_GIVES_WAY: Final = (
    ("LAST ERROR", 40), ("PROVIDER", 12), ("APPROVED BY", 20), ("IDENTITY", 32), ("GRANT", 10),
    ("LAST ERROR", 10), ("IDENTITY", 12), ("PROVIDER", 4), ("GRANT", 4), ("APPROVED BY", 8), ("IDENTITY", 4),
)  # fmt: skip
"""Which columns are cut in turn where there is not room for all, and to what width."""
_AROUND: Final = 6
"""Lines of a terminal that are not rows of the table."""
_DAY: Final = 86400
_HOUR: Final = 3600
_MINUTE: Final = 60


def relative(at: float | None, now: float) -> str:
    """Return a time as people say it: ``in 4m 12s``, ``3h 5m ago``; two units are enough."""
    if at is None:
        return "-"
    seconds = round(abs(at - now))
    if seconds == 0:
        return "now"
    if seconds >= _DAY:
        text = f"{seconds // _DAY}d {seconds % _DAY // _HOUR}h"
    elif seconds >= _HOUR:
        text = f"{seconds // _HOUR}h {seconds % _HOUR // _MINUTE}m"
    elif seconds >= _MINUTE:
        text = f"{seconds // _MINUTE}m {seconds % _MINUTE}s"
    else:
        text = f"{seconds}s"
    return f"in {text}" if at > now else f"{text} ago"


def render(
    statuses: Sequence[IdentityStatus],
    now: float,
    *,
    width: int,
    height: int | None = None,
    wide: bool = False,
    namespaces: bool = False,
) -> RenderableType:
    """Return the table. Where the terminal is too low for all, the most urgent are shown and the others counted.

    Namespaces are shown where there are several, or where ``namespaces`` asks for them.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    full = wide or width >= _WIDE
    names = ["IDENTITY", "PROVIDER", "GRANT", "STATE", "EXPIRES", "RENEWS", "LAST ERROR"]
    if not full:
        names = names[:-1]
    if not wide and width < _MIDDLE:
        names = ["IDENTITY", "STATE", "EXPIRES", "RENEWS"]
    if wide and any(status.authorized_as for status in statuses):
        names.insert(-1, "APPROVED BY")
    asked = 5 * min(PROMPTS_SHOWN, sum(status.prompt is not None for status in statuses))
    shown = _most_urgent(statuses, now, height - _AROUND - asked if height is not None else None)
    namespaces = namespaces or len({status.key.namespace for status in statuses}) > 1
    rows = [_cells(status, now, namespaces=namespaces) for status in shown]
    for name, columns in _widths(names, rows, width).items():
        table.add_column(name, no_wrap=not wide, overflow="fold" if wide else "ellipsis", width=columns)
    for cells in rows:
        table.add_row(*(cells[name] for name in names))
    room = None if height is None else height - len(shown) - _AROUND
    endings = _endings(statuses, now) if height is None else []
    return Group(table, _summary(statuses, len(shown), now), *endings, *_prompts(statuses, width, room))


def clean(text: str) -> str:
    """Return a text with nothing in it that steers a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def described(account: Account) -> str:
    """Return who somebody is, as far as is known."""
    known = account.email or account.name
    return f"{known} (subject {account.subject})" if known and account.subject else str(account)


def _widths(names: Sequence[str], rows: Sequence[Mapping[str, Text]], width: int) -> dict[str, int]:
    """Return how wide each column is: states and times are always whole, and what is long gives way for them."""
    widths = {name: max([len(name), *(cells[name].cell_len for cells in rows)]) for name in names}
    excess = sum(widths.values()) + GAP * (len(names) - 1) - width
    for name, floor in _GIVES_WAY:
        cut = min(excess, widths.get(name, 0) - floor)
        if cut > 0:
            widths[name] -= cut
            excess -= cut
    return widths


def _cells(status: IdentityStatus, now: float, *, namespaces: bool) -> dict[str, Text]:
    state = status.state(now)
    attempt = status.next_attempt_time if status.retry is not None else status.renewal_time
    if attempt is not None:
        attempt = max(attempt, now)  # what is overdue happens now
    name = str(status.key) if namespaces else status.key.name
    return {
        "IDENTITY": Text(clean(name)),
        "PROVIDER": Text(clean(status.provider)),
        "GRANT": Text(clean(status.grant)),
        "STATE": Text(state.value, style=STYLES[state]),
        "EXPIRES": Text(relative(status.expiration_time, now)),
        "RENEWS": Text("-" if state in (State.ASKING, State.STALLED, State.SUSPENDED) else relative(attempt, now)),
        "APPROVED BY": Text(clean(described(status.authorized_as)) if status.authorized_as is not None else "-"),
        "LAST ERROR": Text(clean(status.message) if status.retry is not None else ""),
    }


def _endings(statuses: Sequence[IdentityStatus], now: float) -> list[Text]:
    """Say whose login is about to end; a live table shows the event instead."""
    return [
        Text(
            clean(f"{status.key}: its login ends {relative(end, now)}; a person must log in again before"),
            style=STYLES[State.RETRYING],
        )
        for status in statuses
        if (end := status.reauthorize_by_time) is not None and now < end < now + ENDING_SOON
    ]


def _prompts(statuses: Sequence[IdentityStatus], width: int, room: int | None) -> list[Text]:
    """Return what people are asked, and the first question as a QR code where there is room for one."""
    asking = [(status, status.prompt) for status in statuses if status.prompt is not None]
    out: list[Text] = []
    for status, prompt in asking[:PROMPTS_SHOWN]:
        out += [Text(""), *(Text(clean(line), style=STYLES[State.ASKING]) for line in lines(prompt, str(status.key)))]
    if asking and room is not None:
        code = qr_code(asking[0][1], width, room - len(out))
        out += [Text(line) for line in code.splitlines()]
    if len(asking) > PROMPTS_SHOWN:
        out.append(Text(f"{len(asking) - PROMPTS_SHOWN} more wait for a person; `keyferry login NAME` shows each"))
    return out


def _most_urgent(statuses: Sequence[IdentityStatus], now: float, room: int | None) -> Sequence[IdentityStatus]:
    if room is None or len(statuses) <= max(room, 1):
        return statuses
    rank = {state: index for index, state in enumerate(_URGENCY)}
    ordered = sorted(statuses, key=lambda status: (rank[status.state(now)], status.renewal_time or 0.0, status.key))
    return ordered[: max(room, 1)]


def _summary(statuses: Sequence[IdentityStatus], shown: int, now: float) -> Text:
    counts = collections.Counter(status.state(now) for status in statuses)
    parts = [f"{counts[state]:,} {state.value.lower()}" for state in _URGENCY if counts[state]]
    number = len(statuses)
    text = f"{number:,} {'identity' if number == 1 else 'identities'}: {', '.join(parts)}" if parts else "no identities"
    hidden = number - shown
    return Text(f"{text} ({hidden:,} more than fit here)" if hidden else text, style="dim")


@dataclass(frozen=True, slots=True)
class _Frame:
    statuses: Sequence[IdentityStatus]
    now: float


class LiveTable:
    """The table on a terminal, drawn again as statuses arrive; lines of text scroll by above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._frame = _Frame((), 0.0)
        self._messages: collections.deque[Text] = collections.deque(maxlen=MESSAGES_KEPT)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="keyferry-table", daemon=True)
        self._thread.start()

    def show(self, statuses: Sequence[IdentityStatus], now: float) -> None:
        """Draw these."""
        self._frame = _Frame(statuses, now)
        self._wake.set()

    def say(self, text: str, style: str = "") -> None:
        """Put a line above the table."""
        self._messages.append(Text(clean(text), style=style))
        self._wake.set()

    def close(self) -> None:
        """Draw for the last time and leave the table on the screen."""
        self._closing = True
        self._wake.set()
        self._thread.join(FRAME)

    def _work(self) -> None:
        with contextlib.suppress(OSError), Live(console=self.console, auto_refresh=False) as live:
            while not self._closing:
                self._wake.wait(FRAME)
                self._wake.clear()
                self._draw(live)
            self._draw(live)

    def _draw(self, live: Live) -> None:
        while self._messages:
            self.console.print(self._messages.popleft(), soft_wrap=True)
        frame, size = self._frame, self.console.size
        live.update(render(frame.statuses, frame.now, width=size.width, height=size.height), refresh=True)
