"""What a person is asked, as a terminal shows it: an address, a code, and a QR code for a telephone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import segno

if TYPE_CHECKING:
    from keyferry.engine.status import Prompt

QUIET_ZONE: Final = 2
"""Empty modules around the code. ISO/IEC 18004 asks for four; scanners do with two, and terminals are small."""


def address(prompt: Prompt) -> str:
    """Return the address to open: the provider's, with the code in it where it offers that, or our own page's."""
    return prompt.verification_uri_complete or prompt.verification_uri or prompt.page


def lines(prompt: Prompt, name: str) -> list[str]:
    """Return what to tell the person who is to approve for the identity ``name``."""
    begin = [f"{name} waits for a person. Open", f"  {address(prompt)}"]
    if not prompt.user_code:
        return [*begin, "and log in as the account that the workload is for."]
    compare = f"compare or enter the code  {prompt.user_code}  and log in as the account that the workload is for."
    return [*begin, compare, *([f"or begin at  {prompt.page}"] if prompt.page else [])]


def qr_code(prompt: Prompt, width: int, height: int) -> str:
    """Return the address as a QR code of half blocks; nothing where ``width`` columns and ``height`` lines are few."""
    code = segno.make(address(prompt), micro=False, error="l")
    columns, rows = code.symbol_size(scale=1, border=QUIET_ZONE)
    if columns > width or (rows + 1) // 2 > height:
        return ""
    out = io.StringIO()
    code.terminal(out=out, border=QUIET_ZONE, compact=True)
    return out.getvalue().rstrip("\n")
