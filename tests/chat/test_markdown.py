"""Markdown of models and of commands becomes plain elements, and nothing that loads, runs or leads away."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from injections import INJECTIONS, Payload
from markdown_it import MarkdownIt

from ftlab_mlflow.chat.grounding import MARK
from ftlab_mlflow.chat.markdown import html, neutral
from ftlab_mlflow.chat.run_names import runs_in
from ftlab_mlflow.chat.visible import visible

_PLAIN = (
    "p br hr strong em s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td span a"
)
PLAIN = set(_PLAIN.split())
BADGE = ' <span class="ftlab-unverified" title="No tool returned this number">unverified</span>'


class Elements(HTMLParser):
    """The elements, their attributes and the text of a page, as a browser reads it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def is_harmless(page: str, addresses: set[str]) -> bool:
    elements = Elements(page)
    allowed = {"class", "title", "href", "style", "start"}
    return (
        elements.tags <= PLAIN
        and {name for name, _ in elements.attributes} <= allowed
        and {value for name, value in elements.attributes if name == "href"} <= addresses
        and all(
            value in ("text-align:left", "text-align:center", "text-align:right")
            for name, value in elements.attributes
            if name == "style"
        )
        and all((value or "").isdigit() for name, value in elements.attributes if name == "start")
    )


def everything() -> MarkdownIt:
    """A renderer that makes of Markdown all that it can."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def loads_nothing(markdown: str) -> bool:
    """Whether nothing in it is active; GitHub also links what looks like an address."""
    page = Elements(everything().render(markdown))
    return page.tags <= PLAIN - {"a", "span"} and not re.search(r"[a-z]://|www\.|@e", markdown)


def test_markdown_is_shown() -> None:
    page = html(
        "# Head\n\n**b** *i* ~~s~~ `c`\n\n- x\n\n3. y\n\n> q\n\n| a |\n| --: |\n| 1 |\n\n```py\n<b>\n```", {}
    )
    for part in (
        "<h1>Head</h1>", "<strong>b</strong>", "<em>i</em>", "<s>s</s>", "<code>c</code>", "<li>x</li>",
        '<ol start="3">', "<blockquote>", '<td style="text-align:right">1</td>',
        "<pre><code>&lt;b&gt;\n</code></pre>",
    ):  # fmt: skip
        assert part in page
    assert is_harmless(page, set())


@pytest.mark.parametrize(
    "text",
    [
        "![alt](https://e.example/x.png)", "[text](https://e.example)", "[text](<javascript:alert(1)>)",
        "<https://e.example>", "https://e.example", "[a][b]\n\n[b]: https://e.example",
        "[b]\n\n[b]: //e.example 'x'",
        "<b>x</b>", "<script>x</script>", "<!-- x -->", "<div\nonclick=x>", "$x^2$ :red[x] :material/delete:",
    ],
)  # fmt: skip
def test_what_would_be_active_is_shown_as_text(text: str) -> None:
    page = html(text, {})
    assert is_harmless(page, set())
    assert "".join(Elements(page).text.split()) == "".join(text.split())


def test_what_is_not_verified_is_seen() -> None:
    assert (
        html("a **0.42** [unverified] b", {})
        == f'<p>a <strong class="ftlab-number">0.42</strong>{BADGE} b</p>\n'
    )
    assert html("`4 s` [unverified]", {}) == f'<p><code class="ftlab-number">4 s</code>{BADGE}</p>\n'
    number = '<span class="ftlab-number">{}</span>' + BADGE
    assert html("at 5 it is 12 % [unverified].", {}) == f"<p>at 5 it is {number.format('12 %')}.</p>\n"
    assert html("| 1 |\n| - |\n| 2 [unverified] |", {}).count(f"<td>{number.format('2')}</td>") == 1
    assert html("```\nx = 3 [unverified]\n```", {}) == f"<pre><code>x = {number.format('3')}\n</code></pre>\n"
    assert html("so [unverified]", {}) == f"<p>so{BADGE}</p>\n"
    assert html(r"`a` b \[unverified\] &#xfdd0;", {}) == "<p><code>a</code> b [unverified] \ufffd</p>\n"


def test_names_of_runs_lead_to_them() -> None:
    links = {"run-1": "run?id=1", "run-12": "run?id=12", "best (a*b)": "run?id=3", "f" * 32: "run?id=4"}
    page = html(f"run-1, **run-12** `run-1` best (a\\*b). run-123 my-run-1 run-1.5 x/run-1 {'f' * 32}", links)
    for name, address in links.items():
        shown = name.replace("*", "*")
        assert page.count(f'<a class="ftlab-run" href="{address}">{shown}</a>') == (
            2 if name == "run-1" else 1
        )
    assert page.count("<a ") == 5


def test_a_name_of_a_run_is_no_more_than_text() -> None:
    evil = {
        '"><img src=x onerror=alert(1)>': 'run?id="><b>',
        "](javascript:alert(1))": "run?id=2",
        "(a+)+$|.*": "run?id=3",
        "e": "run?id=4",
        "42": "run?id=5",
        "\u202eevil": "run?id=6",
        "bad": "javascript:alert(1)",
        "worse": "data:text/html,x",
        "good": "https://mlflow.example/#/runs/1",
    }
    page = html("\n\n".join(["e 42 bad worse \u202eevil good", *evil]), evil)
    assert is_harmless(page, {'run?id="><b>', "run?id=2", "run?id=3", "https://mlflow.example/#/runs/1"})
    assert page.count("<a ") == 5


@pytest.mark.parametrize("payload", INJECTIONS, ids=lambda payload: payload.name)
def test_no_payload_is_active(payload: Payload) -> None:
    evil = payload.text
    for text in (evil, f"The best is `{evil}`.", f"| {evil} |\n| - |\n| 1 |", f"**{evil}**"):
        page = html(text, {evil: "run?id=1", payload.twin: "run?id=2"})
        assert is_harmless(page, {"run?id=1"})
        assert Elements(page).text == visible(Elements(page).text)
        assert loads_nothing(neutral(text))


def test_there_are_40_payloads_each_with_a_twin() -> None:
    assert len({payload.name for payload in INJECTIONS}) == len(INJECTIONS) == 40
    for payload in INJECTIONS:
        assert abs(len(payload.text) - len(payload.twin)) <= max(6, 0.15 * len(payload.text)), payload.name
        payload.text.encode()
        assert html(payload.twin, {}).count("<") == html(payload.twin, {}).count("<p>") * 2, payload.name


_CHARACTERS = "[ ] ( ) ! < > / \\ ` ``` ```` ~~~ ~~ * ** _ # - + 1. | : & ; = \" ' $ ^ @ . a x"
FRAGMENTS = [
    *_CHARACTERS.split(), " ", "\n", "\n\n", "    ", "\t", "[x]", "![x]", "](", "](https://e.example/",
    "[x]: https://e.example", "[x]: <javascript:x>", "<img src=x>", "<script>", "</script>", "<!--", "-->",
    "<svg/onload=x>", "<a href=x>", "&lt;", "&#60;", "&#x202e;", "&NewLine;", "&#xfdd0;", "\ufdd0", "run-1",
    "https://e.example", "www.e.example", "me@e.example", "<https://e.example>", "mermaid", MARK, "0.42",
    "\u200b", "\u202e", "\x00", "\x1b[2J", "\r", "\ud800", "| - |", "> ", "- ", "***",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join) | st.text(max_size=80)


@given(TEXTS)
def test_nothing_that_a_model_writes_is_active_on_the_page(text: str) -> None:
    page = html(text, {"run-1": "run?id=1", "x": "run?id=2", "a x": "run?id=3"})
    assert is_harmless(page, {"run?id=1", "run?id=3"})
    assert Elements(page).text == visible(Elements(page).text)


@given(TEXTS)
def test_nothing_that_a_model_writes_is_active_in_an_export(text: str) -> None:
    out = neutral(text)
    assert loads_nothing(out)
    assert visible(out) == visible(text)


def test_an_export_is_read_as_the_answer() -> None:
    text = "# Head\n\n- **0.42** at `lr=1e-4`, see a/b: c\n\n| a | b |\n| - | - |\n| 1 < 2 | ~~3~~ |"
    text += "\n\n```\nx[0] = y\n```"
    assert neutral(text) == text


ENDLESS = [
    ">",
    "[",
    "*",
    "`",
    "![",
    "- ",
    "> - ",
    "<",
    "&#",
    "|",
    "*a_",
    "[](",
    "\\",
    "#",
    "_a",
    "~~a ",
    "a\n=\n",
    "1 ",
    MARK,
]


@pytest.mark.parametrize("text", ENDLESS)
def test_nothing_takes_for_ever(text: str) -> None:
    started = time.perf_counter()
    page = html(text * (10_000 // len(text)), {"run-1": "run?id=1"})
    neutral(text * 10_000)
    assert time.perf_counter() - started < 10
    assert is_harmless(page, set())


def test_a_text_beyond_all_answers_is_shown_plainly_from_some_place_on() -> None:
    page = html("*a* " * 30_000, {})
    assert page.count("<em>") == 25_000
    assert page.endswith("*a* </pre>")


def test_many_names_take_no_time() -> None:
    links = {f"sweep run {number}": f"run?id={number}" for number in range(10_000)}
    started = time.perf_counter()
    page = html("".join(f"- sweep run {number} is fine\n" for number in range(0, 10_000, 20)), links)
    assert page.count("<a ") == 500
    assert time.perf_counter() - started < 10


def test_what_cannot_be_seen_is_left_out() -> None:
    assert (
        visible("a\u200bb\u202ec\U000e0041\ufe0f\u2060\u00ad\tx\ny\x1b[1m\r\n\x00\ud800é损😀")
        == "abc\tx\ny [1m \n \ufffdé损😀"
    )


def test_runs_in_results_are_known_by_name_and_id() -> None:
    one, two, three, four, five = (str(number) * 32 for number in range(1, 6))
    results = [
        {
            "rows": [
                {"run_id": one, "name": "a", "value": 1.0},
                {"run_id": two, "name": "b"},
                {"run_id": one, "name": "a"},
            ]
        },
        {"runs": {three: {"name": "b"}, four: {"name": one}}, "total": {"x": 1}},
        {
            "run_id": two,
            "params": {"run_id": five, "name": "evil"},
            "children": {five: {"name": "c"}},
            "parent": None,
        },
    ]
    assert runs_in(results) == {"a": one, "c": five, one: one, two: two, three: three, four: four, five: five}
