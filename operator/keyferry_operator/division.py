"""How many shards are whose: a pure look at who is there and who holds what, the same for every replica.

Everybody is to hold as many as everybody else, give or take one. Whoever has too many gives some away, whoever has too
few takes free ones, and nobody takes what another needs more: so nothing goes back and forth.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet


def shards_to_take(me: str, members: AbstractSet[str], holders: Mapping[int, str]) -> int:
    """Return how many free shards ``me`` is to take; below 0, how many of its own it is to give away.

    ``holders`` names the holder of each shard, with an empty name where it is free. Whoever holds a shard counts as a
    member.
    """
    counts = Counter(dict.fromkeys({*members, me}, 0))
    counts.update(holder for holder in holders.values() if holder)
    free = sum(not holder for holder in holders.values())
    least, rest = divmod(len(holders), len(counts))
    most = least + (rest > 0)
    mine = counts[me]
    if mine > most:
        return most - mine
    wanted_by_others = sum(max(0, least - count) for member, count in counts.items() if member != me)
    take = min(free, max(0, least - mine))
    if mine + take < most and free - take > wanted_by_others:
        take += 1
    if take:
        return take
    # Somebody has too few, and nothing is free or about to be: the first by name who have one more than needed help.
    coming = free + sum(max(0, count - most) for count in counts.values())
    missing = wanted_by_others + max(0, least - mine) - coming
    givers = sorted(member for member, count in counts.items() if count > least)
    return -1 if me in givers[: max(0, missing)] else 0
