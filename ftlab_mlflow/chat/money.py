"""US dollars in words."""

from __future__ import annotations

import math


def dollars(cost: float | None) -> str:
    """A cost, also a small one: two figures at least, and never 0 where it is not."""
    if cost is None:
        return "cost unknown"
    if cost == 0 or cost >= 0.1:
        return f"${cost:,.2f}"
    return f"${cost:.{1 - math.floor(math.log10(cost))}f}"
