"""Slash commands as words: options, conditions, values; and a call as somebody would type it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

Arguments = dict[str, Any]
"""Of a function, by name."""

_COMPARED = re.compile(r"(?s)([^=!<>~]+?)\s*(!=|>=|<=|=|>|<|~)(.*)")
_FIELD = re.compile(r"(params|tags|metrics)\.(?s:.+)|name|run_id|status|(start|end)_time|duration_s")
_WORD_OPS = ("contains", "starts_with", "in", "exists", "missing")
_SIGN_OPS = ("=", "!=", ">", ">=", "<", "<=", "~")
_DATE = re.compile(r"\d{4}-\d\d-\d\d.*", re.ASCII)


class WrongWords(ValueError):
    """The words make no command. The text says what is wrong with them."""


class _CannotBeTyped(ValueError):
    """No words make this call."""


class Option(NamedTuple):
    """A word `name=value`. argument: Of the function."""

    argument: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


@dataclass(frozen=True)
class Shape:
    """How the call of a function is typed.

    Attributes:
        places: Arguments that have a place of their own, in this order.
        options: Names in `OPTIONS`.
    """

    command: str
    places: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def _whole(text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise WrongWords(f"{text!r} is no whole number")
    return int(text)


def _is_true(text: str) -> bool:
    if text.casefold() not in ("true", "false"):
        raise WrongWords(f"{text!r} is neither true nor false")
    return text.casefold() == "true"


def names_in(text: str) -> list[str]:
    """Names with commas between them."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise WrongWords(f"{text!r} names nothing")
    return found


def groups_in(text: str) -> list[str]:
    """Fields to group by; of a name without `params.` or `tags.` the parameter is meant."""
    is_field = re.compile(r"(params|tags)\..+|status")
    return [name if is_field.fullmatch(name) else f"params.{name}" for name in names_in(text)]


def _counts_in(text: str) -> dict[str, int]:
    pairs = [part.rpartition(":") for part in names_in(text)]
    return {name: _whole(count) for name, _, count in pairs}


def _field_in(text: str) -> str:
    if not _FIELD.fullmatch(text):
        raise WrongWords(f"{text!r} is no field: say params.{text}, tags.{text} or metrics.{text}")
    return text


def _with_commas(names: Sequence[str]) -> str:
    if any("," in name or name != name.strip() or not name for name in names):
        raise _CannotBeTyped(names)
    return ",".join(names)


def _statuses_in(text: str) -> list[str]:
    return [name.upper() for name in names_in(text)]


def _counted(counts: Mapping[str, int]) -> str:
    return ",".join(f"{name}:{count}" for name, count in counts.items())


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


OPTIONS: Mapping[str, Option] = {
    "agg": Option("agg", str),
    "by": Option("group_by", groups_in, _with_commas),
    "desc": Option("descending", _is_true, _said),
    "experiment": Option("experiment", str),
    "from": Option("from_step", _whole),
    "limit": Option("limit", _whole),
    "log": Option("log_y", _is_true, _said),
    "metrics": Option("metrics", names_in, _with_commas),
    "mode": Option("mode", str),
    "offset": Option("offset", _whole),
    "order": Option("order_by", _field_in),
    "points": Option("max_points", _whole),
    "skip": Option("skip", _counts_in, _counted),
    "status": Option("statuses", _statuses_in, _with_commas),
    "to": Option("to_step", _whole),
    "x": Option("x", str),
}
_PAGE = ("limit", "offset")
_COUNTED = ("experiment", "agg", "status", *_PAGE)
SHAPES: Mapping[str, Shape] = {
    "list_experiments": Shape("experiments", (), _PAGE),
    "describe_experiment": Shape("experiment", ("experiment",), ("experiment", "skip")),
    "search_runs": Shape("runs", ("where",), ("experiment", "order", "desc", *_PAGE)),
    "rank_runs": Shape("rank", ("metric",), ("mode", *_COUNTED)),
    "aggregate": Shape("aggregate", ("metric", "group_by"), _COUNTED),
    "param_effects": Shape("effects", ("metric",), _COUNTED),
    "get_run": Shape("run", ("run",), ("skip",)),
    "compare_runs": Shape("compare", ("runs",), ("metrics", "skip")),
    "metric_history": Shape("history", ("metrics", "run"), ("from", "to", "points", "offset")),
    "plot_metrics": Shape("plot", ("metrics", "runs"), ("x", "log", "points")),
    "diagnose_run": Shape("diagnose", ("run",), _PAGE),
    "live_changes": Shape("changes", ("run",), ("experiment", *_PAGE)),
    "cost_summary": Shape("cost", (), ("experiment", "by", *_PAGE)),
    "propose_update": Shape("propose", ("run", "values")),
    "calculate": Shape("calc"),
}
"""By function."""


def split(text: str) -> list[str]:
    """The words of a command, quotes taken off.

    Raises:
        WrongWords: A quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        hint = "put a text with an apostrophe in double quotes"
        raise WrongWords(f"{str(error).lower()}: {hint}") from error


def sorted_out(words: Sequence[str], tool: str) -> tuple[list[str], Arguments]:
    """The words that have a place, and the arguments that options name.

    Raises:
        WrongWords: An option is given twice, or its value is wrong.
    """
    places: list[str] = []
    arguments: Arguments = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in SHAPES[tool].options:
            places.append(word)
            continue
        option = OPTIONS[name]
        if option.argument in arguments:
            raise WrongWords(f"{name}= is given twice")
        if not value:
            raise WrongWords(f"{name}= has no value")
        try:
            arguments[option.argument] = option.read(value)
        except WrongWords as error:
            raise WrongWords(f"{name}: {error}") from error
    return places, arguments


def conditions_in(words: Sequence[str]) -> list[Arguments]:
    """Conditions of `search_runs`: `params.lr>1e-4`, `name ~ sft` (contains), `status in FAILED,KILLED`,
    `tags.x exists`.

    Raises:
        WrongWords: Some words make none.
    """
    left = list(words)
    found = []
    while left:
        word = left.pop(0)
        if match := _COMPARED.fullmatch(word):
            field, op, value = match[1], match[2], match[3]
        elif left and (starts := re.fullmatch(r"(?s)(!=|>=|<=|=|>|<|~)(.*)", left[0])):
            left.pop(0)
            field, op, value = word, starts[1], starts[2]
        elif left and left[0] in _WORD_OPS:
            field, op, value = word, left.pop(0), ""
        else:
            raise WrongWords(f"{word!r} is no condition such as 'params.learning_rate>1e-4' or 'name ~ sft'")
        _field_in(field)
        if not value and op not in ("exists", "missing"):
            if not left:
                raise WrongWords(f"{field} {op} has nothing to compare with")
            value = left.pop(0)
        found.append(_condition(field, "contains" if op == "~" else op, value))
    return found


def _condition(field: str, op: str, text: str) -> Arguments:
    if op in ("exists", "missing"):
        return {"field": field, "op": op}
    if op == "in":
        return {"field": field, "op": op, "value": [_value(field, op, part) for part in names_in(text)]}
    return {"field": field, "op": op, "value": _value(field, op, text)}


def _value(field: str, op: str, text: str) -> bool | float | str:
    """As somebody wrote it. Numbers stay text: the analytics compare them as numbers."""
    if field in ("start_time", "end_time") and _DATE.fullmatch(text):
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            raise WrongWords(f"{text!r} is no time such as 2026-11-21 or 2026-11-21T19:00") from error
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if field == "status":
        return text.upper()
    if op in ("=", "!=", "in") and text.casefold() in ("true", "false"):
        return text.casefold() == "true"
    return text


def line(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """A call as somebody would type it; None where no words make it. What is the default is left out."""
    from ftlab_mlflow.analytics.tools import TOOLS

    shape = SHAPES[tool]
    fields = TOOLS[tool].arguments.model_fields
    try:
        words = [f"/{shape.command}"]
        for name in shape.places:
            words += _placed(name, arguments.get(name))
        if sorted_out(words, tool)[1]:
            return None  # a name that would be taken for an option
        for option in shape.options:
            argument = OPTIONS[option].argument
            value = arguments.get(argument)
            is_default = argument in shape.places or value in (None, [], fields[argument].get_default())
            if not is_default:
                words.append(f"{option}={OPTIONS[option].write(value)}")
    except (_CannotBeTyped, WrongWords):
        return None
    return " ".join(map(_quoted, words))


def _placed(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if name == "where":
        return [word for condition in value for word in _words_of(condition)]
    if name == "values":
        return [f"{parameter}={_said(new)}" for parameter, new in value.items()]
    if name in ("metrics", "group_by"):
        return [_with_commas(value)]
    return list(value) if isinstance(value, list) else [value]


def _words_of(condition: Mapping[str, Any]) -> list[str]:
    field, op, value = condition["field"], condition["op"], condition.get("value")
    if re.search("[=!<>~]", field):
        raise _CannotBeTyped(field)
    if op in ("exists", "missing"):
        return [field, op]
    if op == "in":
        return [field, op, _with_commas([_said(each) for each in value or ()])]
    text = _said(value)
    is_one_word = op in _SIGN_OPS and text and text == text.strip() and not text.startswith(_SIGN_OPS)
    return [f"{field}{op}{text}"] if is_one_word else [field, op, text]


def _quoted(word: str) -> str:
    """As `split` takes it, with quotes only where it takes them."""
    return shlex.quote(word) if not word or re.search(r"""[\s'"\\]""", word) else word
