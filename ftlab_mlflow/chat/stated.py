"""Numbers as people and models state them, read for checking: how exact they are, and what they may mean."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ftlab_mlflow.chat.quantities import (
    ATTACHED,
    COUNTED,
    MONTHS,
    ORDINALS,
    ROUGH,
    SECONDS,
    Factors,
    unit,
)

LETTER = "A-Za-zªµºÀ-ÖØ-öø-ɏͰ-ϿЀ-ԯḀ-ỿ"
"""Letters that make one word with digits beside them. Chinese or Thai words do not end at spaces."""
WORD = rf"{LETTER}\d_"
SPACE = " \u00a0\u2009\u202f"
CURRENCIES = "$€£"
FRACTIONS = "¼-¾⅐-⅞"
"""Characters that are numbers, as a range of a pattern."""
_RELATIVE = 0.05
"""What `1e-4` or the zeros in `about 750` may be off by at most, as a part of the number."""


@dataclass(frozen=True)
class Stated:
    """A number as it is stated.

    Attributes:
        half: What it may be off by: half a unit in its last place, nothing for a small count.
        factors: See `quantities.Factors`.
        is_signed: It has a sign, and its opposite is another number.
    """

    value: float
    half: float
    factors: Factors = (1.0,)
    is_signed: bool = False


class Moment(NamedTuple):
    """A day, a time of day, or both. clock: `14:05` or `14:05:33`."""

    year: int | None = None
    month: int | None = None
    day: int | None = None
    clock: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a text states with one number, duration or date.

    Attributes:
        text: With a unit that is directly attached, such as `0.5B`.
        said: The numbers as written, without units. Of a date the year or the day, of a time the hour.
        readings: What it may mean; of one of them all parts have to hold.
    """

    text: str
    said: tuple[int | float, ...]
    readings: tuple[tuple[Stated | Moment, ...], ...]


Found = tuple[int, Claim | None]
"""Where it ends, with its unit; None where it states nothing, as an ordinal."""

_NUMBER = re.compile(
    r"""(?P<vulgar> \d*[¼-¾⅐-⅞])
      | (?P<german>  [1-9]\d{0,2}(?:\.\d{3})+,\d+(?!\d*[.,]\d))
      | (?P<dotted>  \d+(?:\.\d+){2,})
      | (?P<grouped> [1-9]\d{0,2}(?:,\d{3})+(?!,?\d)(?:\.\d+)?)
      | (?P<spaced>  [1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)(?:\.\d+)?)
      | (?P<quoted>  [1-9]\d{0,2}(?:['’_]\d{3})+(?!\d)(?:\.\d+)?)
      | (?P<comma>   \d+,\d+(?!\d*[.,]\d))
      | (?P<plain>   \d+(?:\.\d+)?|\.\d+)""",
    re.VERBOSE,
)
_POWER = r"10(?:\^([+\-−]?\d+)|\^\{([+\-−]?\d+)\}|([⁺⁻]?[⁰¹²³⁴-⁹]+))"
_TEN = re.compile(_POWER)
_TIMES_TEN = re.compile(rf"[{SPACE}]?(?:[×x·⋅*]|\\times|\\cdot)[{SPACE}]?{_POWER}")
_E = re.compile(r"[eE]([+\-−]?\d+)")
_PLAIN_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--")
_SUFFIX = re.compile(rf"[{LETTER}][{WORD}]*|_+(?=[{LETTER}\d])")
_HYPHENED = re.compile(rf"-([{LETTER}]+)(?![{WORD}]|-[{WORD}])")
_HYPHEN = re.compile(rf"-[{LETTER}]")
_UNIT = re.compile(
    rf"(?:[*_`~]{{1,4}})?[{SPACE}]?(?:\\?(%)|([‰¢{CURRENCIES}])|(×)(?![{SPACE}]?\d)|([{LETTER}]+)(?![{WORD}]))"
)
_POINTS = re.compile(rf"[{SPACE}]points?(?![{WORD}])")
_PER = re.compile(rf"/[{LETTER}]+(?![{WORD}])")
_CLOSING = re.compile(rf"[*_`~]{{1,4}}(?![{WORD}])")
_ENDS = rf"(?![{WORD}]|[-.,:/]\d|-[{LETTER}])"
_CLOCK = (
    r"(?P<hour>\d{1,3}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d+)?)?"
    rf"(?:[{SPACE}]?(?P<half>[apAP][mM])(?![{WORD}]))?(?:[{SPACE}]?(?:Z|UTC|GMT)(?![{WORD}])|[+-]\d{{2}}:\d{{2}})?"
)
_DATE = re.compile(
    r"(?:(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    r"|(?P<one>\d{1,2})(?P<other_mark>[-/.])(?P<two>\d{1,2})(?P=other_mark)(?P<last>\d{4}))"
    rf"(?:(?:T|,?[{SPACE}]){_CLOCK})?{_ENDS}"
)
_TIME = re.compile(_CLOCK + _ENDS)
_YEAR = rf"(?:,?[{SPACE}](?P<year>\d{{4}}))?{_ENDS}"
_DAY_OF_MONTH = re.compile(rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?{_YEAR}")
_DAY_MONTH = re.compile(rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\.?[{SPACE}](?P<name>[{LETTER}]+)\.?{_YEAR}")
_PART = re.compile(rf"(\d+(?:\.\d+)?)[{SPACE}]?([{LETTER}]+)(?![{LETTER}_])")
_BETWEEN = re.compile(rf",?[{SPACE}]?(?:and[{SPACE}])?")
_SIGNED_AFTER = "([{=:<>≈~,;|/*_`\"'±→" + CURRENCIES


def read(text: str, behind: str = "", word: str = "") -> Found | None:
    """Reads the number that a text begins with.

    Args:
        behind: The last three characters before it.
        word: The word before it.

    Returns:
        None if what begins there is an identifier.
    """
    found = _moment(text, word) or _duration(text)
    if found:
        end, claim = found
        return (end + _length(_CLOSING, text, end), claim)
    return _number(text, behind, word)


def _length(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return len(found[0]) if found else 0


def _moment(text: str, word: str) -> Found | None:
    """A date, a time, or both."""
    if date := _DATE.match(text):
        if date["year"]:
            orders = [(date["year"], date["month"], date["day"])]
        else:
            orders = [(date["last"], date["two"], date["one"]), (date["last"], date["one"], date["two"])]
        days = [(int(y), int(m), int(d)) for y, m, d in orders if _is_day(int(m), int(d))]
        clock = _clock(date) if date["hour"] else None
        if days and (clock or not date["hour"]):
            readings = tuple((Moment(*day, clock),) for day in dict.fromkeys(days))
            return date.end(), Claim(date[0], (days[0][0],), readings)
    if time := _TIME.match(text):
        lengths = _lengths(time)
        moments = [(Moment(clock=clock),)] if (clock := _clock(time)) else []
        return time.end(), Claim(time[0], (int(time["hour"]),), (*moments, *((each,) for each in lengths)))
    named = _DAY_OF_MONTH.match(text) if word in MONTHS else _DAY_MONTH.match(text)
    if (
        named
        and (month := MONTHS.get(word) or MONTHS.get(named["name"]))
        and _is_day(month, int(named["day"]))
    ):
        year = int(named["year"]) if named["year"] else None
        day = int(named["day"])
        said = (day,) if year is None else (day, year)
        counts = tuple(_stated(str(n), None, (1.0,), is_bare=True) for n in said)
        return named.end(), Claim(named[0], said, ((Moment(year, month, day),), counts))
    return None


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _clock(time: re.Match[str]) -> str | None:
    """A time of day as `Moment` has it; None where it is none."""
    hour, minute, second = int(time["hour"]), int(time["minute"]), int(time["second"] or 0)
    if half := time["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half.lower() == "pm" else 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    return f"{hour:02}:{minute:02}" + (f":{second:02}" if time["second"] else "")


def _lengths(time: re.Match[str]) -> list[Stated]:
    """What `1:30` may be as a duration, in seconds."""
    first, then = int(time["hour"]), int(time["minute"])
    if time["second"]:
        return [Stated(first * 3600.0 + then * 60 + int(time["second"]), 0.5)]
    return [Stated(first * 3600.0 + then * 60, 30.0), Stated(first * 60.0 + then, 0.5)]


def _duration(text: str) -> Found | None:
    """Several units of time, such as `3 h 12 min`: their sum, or each by itself."""
    parts: list[tuple[str, float, Factors]] = []
    at = end = 0
    while part := _PART.match(text, at):
        size, factors = SECONDS.get(part[2]), unit(part[2])
        if size is None or factors is None or (parts and size >= parts[-1][1]):
            break
        parts.append((part[1], size, factors))
        end = part.end()
        at = end + _length(_BETWEEN, text, end)
    if len(parts) < 2 or re.match(rf"[{WORD}]", text[end : end + 1]):
        return None
    total = sum(float(number) * size for number, size, _ in parts)
    whole = Stated(total, _half(parts[-1][0], 0) * parts[-1][1])
    each = tuple(_stated(number, None, factors) for number, _, factors in parts)
    return end, Claim(text[:end], tuple(_said(number, None) for number, _, _ in parts), ((whole,), each))


def _number(text: str, behind: str, word: str) -> Found | None:
    found = _TEN.match(text) or _NUMBER.match(text)
    if found is None:
        return None
    end, mantissa, exponent = found.end(), found[0], None
    if found.re is _TEN:
        mantissa, exponent = "1", found[1] or found[2] or found[3]
    elif power := _TIMES_TEN.match(text, end):
        end, exponent = power.end(), power[1] or power[2] or power[3]
    elif power := _E.match(text, end):
        end, exponent = power.end(), power[1]
    measured = _measured(text, end)
    if measured is None:
        if mantissa[-1].isdecimal() and "." not in mantissa:
            return None
        measured = end, end, None, True  # no identifier begins with a fraction
    attached, end, factors, is_claim = measured
    if not is_claim or (behind.endswith("[^") and text[end : end + 1] == "]"):
        return end, None
    end += _length(_CLOSING, text, end)
    meanings = list(_meanings(found.groupdict(), mantissa))
    if not meanings:  # a version
        return end, None
    before = behind.rstrip(CURRENCIES)
    sign = _sign(before)
    is_bare, is_rough = factors is None and before == behind, word.lower() in ROUGH

    def stated(digits: str, sign: str) -> Stated:
        return _stated(digits, exponent, factors or (1.0,), sign=sign, is_bare=is_bare, is_rough=is_rough)

    readings = tuple(
        (stated(first, sign), *(stated(each, "") for each in others)) for first, *others in meanings
    )
    return end, Claim(text[:attached], (_said(meanings[0][0], exponent, sign),), readings)


def _meanings(kinds: dict[str, str | None], mantissa: str) -> Iterator[tuple[str, ...]]:
    """The numbers, with a decimal point and nothing else, that a number with commas and points may be."""
    if kinds.get("german"):
        yield (mantissa.replace(".", "").replace(",", "."),)
    elif kinds.get("dotted"):
        if re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+", mantissa):
            yield (mantissa.replace(".", ""),)
    elif kinds.get("grouped"):
        yield (mantissa.replace(",", ""),)
        if mantissa.count(",") == 1 and "." not in mantissa:
            yield (mantissa.replace(",", "."),)
        yield tuple(mantissa.split(","))
    elif kinds.get("comma"):
        yield (mantissa.replace(",", "."),)
        yield tuple(mantissa.split(","))
    elif kinds.get("spaced"):
        parts = re.split(f"[{SPACE}]", mantissa)
        yield ("".join(parts),)
        yield tuple(parts)
    elif kinds.get("vulgar"):
        yield (f"{int(mantissa[:-1] or 0) + unicodedata.numeric(mantissa[-1]):.3f}",)
    else:
        yield (re.sub(r"[^\d.]", "", mantissa),)


def _measured(text: str, at: int) -> tuple[int, int, Factors | None, bool] | None:
    """Where a number with what is attached ends, where its unit does, the unit, whether it states anything.

    None where the number is the begin of an identifier.
    """
    if suffix := _SUFFIX.match(text, at):
        name = suffix[0]
        end = suffix.end()
        if name.lower() in ORDINALS:
            return end, end, None, False
        factors = unit(name)
        if factors is None and name.lower() not in COUNTED:
            return None
        return end, end + _length(_PER, text, end), factors, True
    if hyphened := _HYPHENED.match(text, at):
        return at, hyphened.end(), unit(hyphened[1]), True
    if _HYPHEN.match(text, at):
        return None
    if spaced := _UNIT.match(text, at):
        name = next(group for group in spaced.groups() if group)
        factors = unit(name)
        if factors and name not in ATTACHED:
            end = spaced.end()
            end += _length(_POINTS, text, end) if name.lower() == "percentage" else 0
            return at, end + _length(_PER, text, end), factors, True
    return at, at + _length(_PER, text, at), None, True


def _sign(behind: str) -> str:
    """The sign that stands before a number: a dash behind a number or a word is none."""
    mark, before = behind[-1:], behind[-2:-1]
    if mark not in ("-", "−", "–", "+") or not (not before or before.isspace() or before in _SIGNED_AFTER):
        return ""
    return "+" if mark == "+" else "-"


def _stated(
    digits: str,
    exponent: str | None,
    factors: Factors,
    *,
    sign: str = "",
    is_bare: bool = False,
    is_rough: bool = False,
) -> Stated:
    power = _power(exponent)
    value = float(f"{digits}e{power}")
    half = _half(digits, power)
    if not value:
        half = 0.0
    elif "." not in digits and exponent is not None:
        half = min(half, _RELATIVE * value)
    elif "." not in digits and is_rough:
        zeros = len(digits) - len(digits.rstrip("0"))
        half = max(half, min(_half(digits, zeros), _RELATIVE * value))
    elif "." not in digits and is_bare and value < 100:
        half = 0.0
    return Stated(-value if sign == "-" else value, half, factors, is_signed=bool(sign))


def _power(exponent: str | None) -> int:
    return max(-999, min(999, int((exponent or "0").translate(_PLAIN_DIGITS))))


def _half(digits: str, power: int) -> float:
    return 0.5 * float(f"1e{power - len(digits.partition('.')[2])}")


def _said(digits: str, exponent: str | None, sign: str = "") -> int | float:
    """A number as JSON has it; one beyond all floats as the largest."""
    factor = -1 if sign == "-" else 1
    if exponent is None and "." not in digits:
        return factor * int(digits)
    value = float(f"{digits}e{_power(exponent)}")
    return factor * (value if math.isfinite(value) else sys.float_info.max)
