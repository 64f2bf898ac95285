"""Each number in an answer is one that a tool returned, or is marked: rounding, units, names, any cut."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftlab_mlflow.chat.grounding import MARK, Facts, Marker
from ftlab_mlflow.chat.visible import visible

RUN_ID = "123456e7abcdef00123456e7abcdef00"
RESULT: dict[str, Any] = {
    "rows": [
        {
            "run_id": RUN_ID,
            "name": "loss=0.001 (verified)",
            "value": 0.4166,
            "slope": -0.3,
            "wall_s": 11_520.0,
            "step": 750,
            "memory": 12.3e9,
            "tokens": 1_234_567,
            "share": 0.1234,
            "cost": 0.0321,
            "start_time": 1_795_788_300.25,
            "params.learning_rate": "5e-5",
            "params.model": "Qwen/Qwen2.5-0.5B",
        },
        {"run_id": "f" * 32, "name": "run 12", "value": "NaN"},
    ],
    "policy": {"best": "the medians of 20 pieces, on 2026-11-21T19:00:00.123Z; a rise of 4.5 %"},
    "next": {"limit": 77, "where": [{"value": 0.777}]},
    "total": 7,
}


def facts(*results: dict[str, Any]) -> Facts:
    found = Facts()
    for result in results:
        found.add(result)
    return found


def marked(text: str, known: Facts, cuts: Sequence[int] = ()) -> tuple[str, list[int | float]]:
    """A text as it comes out, cut at some places, and the numbers that were marked."""
    marker = Marker(known)
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    return "".join(map(marker.feed, pieces)) + marker.end(), marker.unverified


@pytest.mark.parametrize(
    "text",
    [
        "0.4166, 0.417, 0.42, **0.42**, `0.4166`, about 0.4, ~0.4 and (0.4166)",
        "5e-5 5E-05 5e−05 5×10⁻⁵ 5 × 10⁻⁵ 5x10^-5 5·10^-5 5*10^-5 $5 \\times 10^{-5}$ 0.00005 5.0e-5",
        "3.2 h, 3.2 hours, 192 min, 192 minutes, 3 h 12 min, 3h12m, 3 hours and 12 minutes, 3:12:00",
        "11520 s, 11,520",
        "12.3 GB, 12,300 MB, 11.5 GiB, 11.5GiB, 12.3 billion",
        "1,234,567 tokens, 1.2M tokens, 1.23 million, 1235k, about 1.2 million",
        "1\u202f234\u202f567, 1'234'567, 1.234.567",
        "12 %, 12.3%, 12.34 percent, 0.123, 12.3 percentage points, 12\\%",
        "fell by 0.3, −0.3, -0.3, a slope of –0.3",
        "$0.032, 0.0321 $, 3.2 cents, US$ 0.032, 3.2¢, €0.032",
        "0.41660–0.417, 7/750, 0.42-0.4166, [750,0.4166]",
        "7 runs in 2 rows; step 750, 750-step, 750 steps, 7x",
        "2026-11-27, 2026-11-27 14:05, 2026-11-27T14:05Z, at 14:05, 2:05 pm, 27.11.2026, 11/27/2026",
        "November 27, 2026; 27 Nov 2026, Nov 27, 27th November, in 2026; 2026-11-21 at 19:00:00",
        "run-12, eval_2, gpt-4o, top-5, v1.2, llama-3.1-8b, 3f2a9c1b, 1.2.3",
        "550e8400-e29b-41d4-a716-446655440000",
        f"{RUN_ID}, {RUN_ID[:8]}, Qwen/Qwen2.5-0.5B, a 0.5B model, 1st, 2nd",
        "the best is loss=0.001 (verified), then `loss=0.001 (verified)` and run 12.",
        "1. one\n2) two\n## 3. three\n**4.** four\n> 5. five\n- 6. six",
        "One\n1. one\n   1) in it\n   2) then\n\nSo:\n\n2. two\nof them\n3. three\n\n0. none",
        "As said[^9]: see https://example.com/99?a=98 (five, NaN, inf, x², H₂O).",
        "0,42 und 0,4166; 4.5 %, 20 pieces",
    ],
)
def test_what_a_tool_returned_may_be_rounded_and_in_other_units(text: str) -> None:
    assert marked(text, facts(RESULT)) == (text, [])


@pytest.mark.parametrize(
    ("text", "unverified"),
    [
        ("0.41 [unverified], 0.43 [unverified] and 0.4167 [unverified]", [0.41, 0.43, 0.4167]),
        ("8 [unverified] runs; about 8 [unverified], 7.5 [unverified]", [8, 7.5]),
        (
            "**0.9** [unverified], *0.8* [unverified], `0.7` [unverified], __0.6__ [unverified]",
            [0.9, 0.8, 0.7, 0.6],
        ),
        ("`lr = 6e-5 [unverified], x`", [6e-5]),
        ("**0.9 s** [unverified], `9 %` [unverified] and ($0.8 [unverified])", [0.9, 9, 0.8]),
        ("| 0.9 s [unverified] | 9% [unverified] |", [0.9, 9]),
        ("```\n0.9 [unverified]\n```", [0.9]),
        ("**15** % [unverified], 15 % [unverified]; 15 [unverified]", [15]),
        ("+0.3 [unverified], -0.4166 [unverified], $-0.03 [unverified]", [0.3, -0.4166, -0.03]),
        ("4 h 1 min [unverified], 13 GB [unverified], 1.3M [unverified]", [4, 1, 13, 1.3]),
        ("0.9 [unverified]–0.95 [unverified], 3 [unverified]/5 [unverified]", [0.9, 0.95, 3, 5]),
        ("2026-11-28 [unverified]; 14:07 [unverified], November 28 [unverified]", [2026, 14, 28]),
        ("the loss is 0.001 [unverified], of 12 [unverified]", [0.001, 12]),
        ("77 [unverified] rows at 0.777 [unverified]", [77, 0.777]),
        ("损失为0.9 [unverified]，下降了0.8 [unverified]。", [0.9, 0.8]),
        ("３.５ [unverified], ٤٫ 0,99 [unverified]", [3.5, 4, 0.99]),
        ("1e400 [unverified], -1e400 [unverified], 1e-400 [unverified]", None),
        ("0.0 [unverified], .05 [unverified], 99-step [unverified], 99 tokens/s", None),
        (
            "It is\n42 [unverified]. That is low.\n97 [unverified]) too\n\n98 [unverified]. It is",
            [42, 97, 98],
        ),
        ("It is\n0 [unverified]. Then:\n\n1. one\n3 [unverified]. three\n## 4 [unverified]. four", [0, 3, 4]),
        ("9,999 [unverified] 9,999.5 [unverified] 99 MB/s [unverified]", None),
    ],
)
def test_what_no_tool_returned_is_marked(text: str, unverified: list[float] | None) -> None:
    said = text.replace(MARK, "")
    out, found = marked(said, facts(RESULT))
    if unverified is not None:
        assert found == unverified
        assert out.replace(MARK, "") == said
    if "٤" not in text and "tokens/s" not in text:
        assert out == text
    assert json.loads(json.dumps(found, allow_nan=False)) == found


SMALL: dict[str, Any] = {
    "loss": 0.43751,
    "cost": 0.0321,
    "steps": 12345,
    "change": 2.65,
    "half": 0.5,
    "long": 2.5,
    "seconds": 9_400,
    "metric_percentage": {"last": 0.25},
    "said": "0.75 percent on 100 of 250",
    "names": [{"name": "job-7h"}, {"name": "acc-0.97x-faster"}, {"run_name": "is-0.96x"}, {"name": "0.95x"}],
    "best": {"params.run_name": "lr0.94", "note": "eval_loss0.93 of unsloth/Qwen2.5-7B-bnb-4bit"},
}


@pytest.mark.parametrize(
    "text",
    [
        "0.4, about 0.4, 0.44, $0.03, 3 %, 3%, 3x, 3 h, about 3, 2.6, 2.7, about 12300",
        "12 345 steps, 12\u202f345, 12\u2009345 and 12\u00a0345; 100 250, 2.65 250 100",
        "½, 2½, ½ of it, 50 %, 0.5, **½**, 2½ s",
        "43.8 %, 43.751%, 2.65 percent, 0.25 %, 0.75%, 250 %",
        "job-7h, acc-0.97x-faster, **acc-0.97x-faster** and `is-0.96x`; lr0.94",
        "eval_loss0.93, Qwen2.5, Qwen2.5-7B, a 7B model in 4bit, unsloth/Qwen2.5-7B-bnb-4bit",
        "eval_loss0.44, x0.4375, loss_0.4, v1.2, run_v1.2, V0.9, fp16, mp3, eval_2, gpt-4o, gpt-3.5, run-12",
    ],
)
def test_what_is_rounded_or_joined_rightly_is_verified(text: str) -> None:
    assert marked(text, facts(SMALL)) == (text, [])


@pytest.mark.parametrize(
    ("text", "unverified"),
    [
        (
            "0.6 [unverified], 0.5, 0.0 [unverified], $0.00 [unverified], about 3.0 [unverified]",
            [0.6, 0.0, 3.0],
        ),
        (
            "3 [unverified], 8 % [unverified], about 13000 [unverified], 9e0 [unverified], 0.9 [unverified]a",
            [3, 8, 13000, 9.0, 0.9],
        ),
        ("12 [unverified] 346 [unverified] and 100 251 [unverified] steps", [12, 346, 251]),
        (
            "12 [unverified] 345abc, 99 [unverified] 100th, 12 [unverified]\u202f346 [unverified]",
            [12, 99, 346],
        ),
        (
            "¾, ⅛ [unverified], 1½ [unverified], **⅓** [unverified], x⅔ [unverified]a",
            [0.125, 1.5, 0.333, 0.667],
        ),
        ("0.43751% [unverified], 0.5 % [unverified], 0.4375 percent [unverified]", [0.43751, 0.5, 0.4375]),
        ("It took 7h [unverified] and is 0.97x [unverified], 0.96x [unverified]", [7, 0.97, 0.96]),
        ("In 4 runs it took 4h [unverified], 4 GB [unverified] and 4 % [unverified]", [4]),
        ("It is 0.95x [unverified], 0.94 [unverified]", [0.95, 0.94]),
        ("eval_loss0.55 [unverified], x0.55 [unverified] loss_0.55 [unverified]", [0.55]),
        ("lr1e-3 [unverified], **lr1e5** [unverified], took0.6s [unverified]", [1e-3, 1e5, 0.6]),
        ("Qwen3.5 [unverified], __x0.6__ [unverified], loss0.6 % [unverified]", [3.5, 0.6]),
    ],
)
def test_what_is_rounded_or_joined_wrongly_is_marked(text: str, unverified: list[float]) -> None:
    assert marked(text.replace(MARK, ""), facts(SMALL)) == (text, unverified)


def test_a_percentage_may_be_calculated() -> None:
    known = facts({"values": [0.4375, 0.44]})
    known.add({"expression": "(0.44 - 0.4375) / 0.44 * 100", "value": 0.56818})
    assert marked("0.57 % less", known)[1] == []


def test_each_number_is_listed_once_as_it_was_written() -> None:
    _, found = marked("12 % of 0.50, 12%, −3, 1,234 and 2e3; 12", facts({}))
    assert found == [12, 0.5, -3, 1234, 2000.0]
    assert [type(each) for each in found] == [int, float, int, int, float]


def test_a_mark_of_the_model_itself_is_not_doubled() -> None:
    known = facts({"value": 0.5})
    text = "0.9 [unverified], 0.8 [unverified]; 0.5 [unverified]"
    assert marked(text, known) == (text, [0.9, 0.8])
    assert marked(text, known, range(len(text))) == (text, [0.9, 0.8])
    assert marked("0.9 [unv", known) == ("0.9 [unverified] [unv", [0.9])


def test_facts_grow_while_an_answer_is_written() -> None:
    known = facts()
    marker = Marker(known)
    first = marker.feed("0.5 then ")
    known.add({"value": 0.5})
    assert first + marker.feed("0.5 ") + marker.end() == "0.5 [unverified] then 0.5 "


@pytest.mark.parametrize(
    ("expression", "value", "is_fact"),
    [
        ("(0.43751 - 0.5125) / 0.5125 * 100", -14.632195, True),
        ("mean(0.4375, 0.5125)", 0.475, True),
        ("a / b", 0.8536585, True),
        ("0.0123", 0.0123, False),
        ("-0.0123", -0.0123, False),
        ("97", 97.0, False),
        ("0.0123 * 1", 0.0123, False),
        ("max(0.0123, 0)", 0.0123, False),
        ("d + 0", 0.3891, False),
    ],
)
def test_what_is_calculated_is_a_fact_unless_it_was_written(
    expression: str, value: float, is_fact: bool
) -> None:
    numbers = {"a": 0.4375, "b": 0.5125, "d": 0.3891}
    known = facts({"expression": expression, "numbers": numbers, "value": value, "policy": "in 64-bit"})
    assert (marked(f"{value!r}", known)[1] == []) == is_fact


def test_hidden_characters_do_not_hide_a_number() -> None:
    assert marked("0.\u200b9 \u202e8.0\u202c 0\ufe0f.7", facts({})) == (
        "0.9 [unverified] 8.0 [unverified] 0.7 [unverified]",
        [0.9, 8.0, 0.7],
    )


def test_a_result_may_hold_anything() -> None:
    known = facts(
        {
            "a": 10**5000,
            "percent": 10**5000,
            "b": float("inf"),
            "c": None,
            "d": [True, [[]], {}],
            "e": "9" * 20_000,
            "f": "\ud800 0.25",
        },
        {"deep": json.loads("[" * 500 + "0.5" + "]" * 500)},
    )
    text = "0.25 and 0.5 but " + "8" * 5000
    out, found = marked(text, known)
    assert len(found) == 1
    assert out == text + MARK


VALUES = st.floats(1e-6, 1e6) | st.integers(1, 10**9).map(float)


def written(value: float) -> list[str]:
    """Ways to write a number that stay within half a unit of its last place."""
    exact = f"{value:.6e}"
    digits, exponent = f"{value:.3e}".split("e")
    small = str(int(exponent))
    raised = small.translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return [
        repr(value),
        exact,
        exact.upper(),
        f"{value:.3g}",
        f"{digits}×10{raised}",
        f"{digits} x 10^{small}",
        f"{digits}·10^{{{small}}}",
        f"{digits} \\times 10^{small}",
        f"{value:,.6f}" if value >= 1 else f"{value:.9f}",
        f"**{value:.4g}**",
        f"about {value:.2g}",
        f"{value * 100:.4g} %",
        f"{value / 60:.5g} min",
        f"{value / 3600:.5g} hours",
        f"{value * 1000:.5g}ms",
        f"{value / 86400:.5g} d",
        f"{value / 1e3:.5g}k",
        f"{value / 1e6:.5g} million",
        f"{value / 1e9:.5g}B",
        f"{value / 2**30:.5g} GiB",
        f"{value / 1e6:.5g}MB",
        f"${value:.6g}",
        f"{value:.6g}x",
        f"{value * 100:.6g} cents",
    ]


@given(VALUES, st.booleans(), st.sampled_from(["{}", '"{}"', "from {} to 7"]))
def test_a_value_in_any_form_is_verified(value: float, is_negative: bool, form: str) -> None:
    result: Any = (
        json.loads(f'{{"value": {value!r}}}')
        if form == "{}"
        else {"value": form.format(repr(value)).strip('"')}
    )
    known = facts(result, {"other": [3, 9.5e6, "a 12-step"]})
    for text in written(value):
        if text.strip("*").isdigit() and float(text.strip("*")) != value:
            continue  # a count
        assert marked(f"It is {text}.", known)[1] == []
    if is_negative:
        known = facts({"value": -value})
        for text in (f"fell by {value!r}", f"-{value!r}", f"(−{value:.3e})"):
            assert marked(text, known)[1] == []


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20),
    st.floats(1e-6, 1e6),
    st.sampled_from(
        ["{:.2g}", "{:.4g}", "{:.6e}", "**{:.3g}**", "`{:.5g}`", "about {:.3g}", "${:.4g}", "{:.4g}x"]
    ),
)
def test_a_value_far_from_all_facts_is_never_verified(values: list[float], stated: float, form: str) -> None:
    text = form.format(stated)
    digits = Decimal(text.strip("*`$x").removeprefix("about "))
    written_value = float(digits)
    margin = 0.501 * 10.0 ** int(digits.as_tuple().exponent)
    if digits == digits.to_integral_value():
        margin = max(margin, 0.05 * written_value)
    assume(all(abs(written_value - value) > margin for value in values))
    out, found = marked(f"It is {text}.", facts({"values": values}))
    assert found == [written_value]
    assert out == f"It is {text} [unverified]."


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_small_count_is_the_very_number(value: int, stated: int) -> None:
    known = facts({"value": value, "near": value + 0.4})
    assert (marked(f"There are {stated} runs", known)[1] == []) == (stated == value)


WORDS = """
0 1 5 12 0.42 .5 1e-4 1E5 1,234 0,42 1.2.3 12:34 2026-11-27 27 1e 5e- 10^-5 10⁻⁵ × x · * ** _ __ ` ``` ~ ~~~
- − – + . , : ; / ( ) [ ] { } ^ \\ $ € % ‰ ¢ # > | ≈ 损 é µ ² k M B GB GiB ms s min h m hours and about
percent percentage points November Nov pm UTC T Z e run-12 gpt-4o https :// a_b step -step 3h12m 0x1f
"""
FRAGMENTS = [
    *WORDS.split(), " ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u200b", "\r\n", MARK, "run 12", "run 123",
    "1. ", "42. ", "[^3]", "loss=0.001 (verified)", "## 2. ", "9" * 50, "a" * 120, " \\times 10^{-5}",
    "4.4 GB/s", "lr 1e-4", "lr 1e-4 bs 16", "½", "12 345", "750 100", "lr1e-3", "x0.55", "job_0.42", "v1.2",
    "\u202f345",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join) | st.text(max_size=60)
KNOWN = facts(RESULT, {"name": "lr 1e-4 bs 16", "value": 12, "n": [0.42, 1e-4, 1234]})


@given(TEXTS, st.data())
@example("3 h 12 mi" + "n", None)
def test_it_does_not_matter_how_a_text_is_cut(text: str, data: st.DataObject | None) -> None:
    whole = marked(text, KNOWN)
    assert marked(text, KNOWN, range(len(text))) == whole
    if data is not None:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
        assert marked(text, KNOWN, cuts) == whole


@given(TEXTS)
def test_without_the_marks_it_is_the_text(text: str) -> None:
    assume(MARK not in text)
    out, found = marked(text, KNOWN)
    assert out.replace(MARK, "") == visible(text)
    assert (MARK in out) == bool(found)


@given(TEXTS)
def test_at_most_a_name_or_a_number_is_held_back(text: str) -> None:
    marker = Marker(KNOWN)
    given_on = 0
    for place, character in enumerate(visible(text)):
        given_on += len(marker.feed(character).replace(MARK, ""))
        assert place + 1 - given_on <= 96


def test_prose_is_given_on_word_by_word() -> None:
    marker = Marker(facts({"value": 0.42}))
    words = ["The ", "loss ", "is ", "0.42", " after ", "7", " steps.", "\nThen"]
    given_on = ["The ", "loss ", "is ", "", "0.42 after ", "", "7", " [unverified] steps.\n"]
    assert [marker.feed(word) for word in words] == given_on


ENDLESS = ["9", "1,2,3,", "1.", "1 ", "7e5-", "1 min ", "a-", "`", "5x10^", "1\u00a0000", "_1", "1:2"]


@pytest.mark.parametrize("text", ENDLESS)
def test_the_time_grows_with_the_length_alone(text: str) -> None:
    started = time.perf_counter()
    text = text * (8000 // len(text))
    marked(text, KNOWN, range(0, len(text), 3))
    facts({"value": text})
    assert time.perf_counter() - started < 10


def test_a_long_conversation_is_checked_quickly() -> None:
    row = {"name": "run-{0}", "value": 0.5, "note": "from {0}.5 to 0.25 at step {0} in 3 h 12 min, 12.3 GB"}
    known = Facts()
    for number in range(30):
        rows = [
            {key: str(value).format(number * 100 + place) for key, value in row.items()}
            for place in range(100)
        ]
        known.add({"rows": rows})
    started = time.perf_counter()
    _, found = marked("`run-12` has **0.25** at step 1,234 and 0.8751; " * 400, known, range(0, 19_000, 5))
    assert found == [0.8751]
    assert time.perf_counter() - started < 10
