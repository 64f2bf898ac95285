"""Units as people write them behind numbers, and what a number in them may be in a tool's result."""

from __future__ import annotations

from collections.abc import Mapping

Factors = tuple[float, ...]
"""What a number with a unit may have to be multiplied with to be the number that is meant; the first is the
unit's own: seconds, bytes, ones."""

SECONDS: Mapping[str, float] = {
    name: seconds
    for names, seconds in (
        ("w week weeks", 604_800.0),
        ("d day days", 86_400.0),
        ("h hr hrs hour hours", 3_600.0),
        ("m min mins minute minutes", 60.0),
        ("s sec secs second seconds", 1.0),
        ("ms millisecond milliseconds", 1e-3),
        ("us µs μs", 1e-6),
        ("ns", 1e-9),
    )
    for name in names.split()
}
"""Units of time."""


def _bytes() -> dict[str, Factors]:
    """Units of memory. A tool may give bytes, MB or GB, and many people write GB for GiB."""
    table: dict[str, Factors] = {}
    for power, letter in enumerate("KMGT", start=1):
        decimal, binary = 1000.0**power, 1024.0**power
        of_decimal = [decimal / stored for stored in (1, 1e6, 1e9)]
        of_binary = [binary / stored for stored in (1, 1e6, 1e9, 2**20, 2**30)]
        for name in {f"{letter}B", f"{letter.lower()}B", f"{letter}B".lower()}:
            table[name] = tuple(dict.fromkeys([*of_decimal, *of_binary, 1.0]))
        table[f"{letter}iB"] = tuple(dict.fromkeys([*of_binary, 1.0]))
    return table


PERCENT: Factors = (0.01, 1.0)
"""A share, or what is a percentage in a result already."""
UNITS: Mapping[str, Factors] = {
    **{name: tuple(dict.fromkeys((seconds, 1.0))) for name, seconds in SECONDS.items()},
    **_bytes(),
    **{
        name: factors
        for names, factors in (
            ("s sec secs second seconds", (1.0, 1000.0)),
            ("m", (60.0, 1.0, 1e6)),
            ("% percent percentage pct pp", PERCENT),
            ("‰", (0.001,)),
            ("k K thousand", (1e3,)),
            ("M mn million", (1e6,)),
            ("B b bn billion", (1e9, 1.0)),
            ("T t trillion", (1e12,)),
            ("x × fold times", (1.0,)),
            ("$ € £ USD EUR dollar dollars euro euros", (1.0,)),
            ("¢ ct cent cents", (0.01, 1.0)),
        )
        for name in names.split()
    },
}
"""By name as written; of more than two letters in lower case."""
ATTACHED = frozenset(["x", "m", "w", "b", "t", "T"])
"""Units only directly behind a number: with a space between they are words."""
COUNTED = frozenset(
    [
        "bit",
        "bits",
        "epoch",
        "epochs",
        "it",
        "point",
        "points",
        "run",
        "runs",
        "sample",
        "samples",
        "step",
        "steps",
        "token",
        "tokens",
    ]
)
"""What may stand directly behind a number, and is no unit."""
ORDINALS = frozenset(["st", "nd", "rd", "th"])
ROUGH = frozenset(
    [
        "about",
        "almost",
        "approx",
        "approximately",
        "around",
        "ca",
        "circa",
        "nearly",
        "roughly",
        "~",
        "≈",
        "∼",
        "etwa",
        "rund",
        "ungefähr",
        "environ",
    ]
)
"""Words and marks before a number that is not meant exactly."""
MONTHS: Mapping[str, int] = {
    name: month
    for month, full in enumerate(
        [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ],
        start=1,
    )
    for name in (full, full[:3])
} | {"Sept": 9}


def unit(name: str) -> Factors | None:
    """The factors of a unit; None where it is none."""
    return UNITS.get(name) or (UNITS.get(name.lower()) if len(name) > 2 else None)


_JOINING = frozenset(["e", "x", "and", "cdot", "times", "points", "t", "z", "utc", "gmt", "am", "pm"])


def may_belong(word: str) -> bool:
    """Whether a word of letters may be a part of a number, a duration or a date that stands before it."""
    small = word.lower()
    return unit(word) is not None or small in _JOINING or small in ORDINALS or word in MONTHS
