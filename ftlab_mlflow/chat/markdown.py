"""Markdown of models, made harmless: as HTML of our own for the page, and as Markdown that loads nothing."""

from __future__ import annotations

import html as html_text
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from ftlab_mlflow.chat.grounding import MARK
from ftlab_mlflow.chat.visible import visible

_MARK = MARK.strip()
_STAND_IN = "\ufdd0"
"""Stands for a mark while Markdown is read. No text has it, and no entity means it: Unicode has no such
character. What is escaped, as a name that holds a mark, is none."""
_ACTIVE = ("link", "image", "autolink", "html_inline", "html_block", "reference")
_BADGE = '<span class="ftlab-unverified" title="No tool returned this number">unverified</span>'
_NUMBER = "ftlab-number"
"""Class of a number that is not verified."""
_MARKED = re.compile(r"([^\s\d]*\d\S*(?:\s[^\s\d]{1,16})?)( )$")
"""The number with its unit that a mark stands behind."""
_BEFORE_MARK = 80
"""Characters in which it is looked for."""
_LONGEST = 100_000
"""Characters that are read as Markdown. No answer is so long."""
_ADDRESS = re.compile(r"https?://|[^:]*[/?#]|[^:]*$", re.IGNORECASE)
_JOINER = "\u2060"
_OPENS = re.compile(
    r"""\](?=[(\[:]) | !(?=\[) | <(?=[A-Za-z/!?])     # links, their definitions, images, HTML
    | (?<=[A-Za-z]):(?=/) | (?<=www)(?=\.) | @        # addresses, people
    | (?<=```|~~~)(?=\ *mermaid)                      # diagrams, that may hold images""",
    re.IGNORECASE | re.VERBOSE,
)
"""Where Markdown begins something active, as GitHub, editors and others read it."""


def html(text: str, links: Mapping[str, str]) -> str:
    """A text as HTML of plain elements: no image, no script, and no link but those given.

    A number that is marked as unverified is in a ``span.ftlab-number`` (or an element of that class) with a
    ``span.ftlab-unverified`` behind it.

    Args:
        text: Markdown as CommonMark has it, with tables and strikethrough. Its own links, images and HTML are
            shown as the text that they are. What is nested deeper than 20 levels is left out.
        links: Addresses by text that becomes a link where it stands as a word, such as the name of a run.
            One letter alone is no word, digits are none, and a name that holds characters that cannot be seen
            is left out, as is an address with a scheme other than ``http`` and ``https``.
    """
    text = visible(text).replace(_STAND_IN, "").replace(_MARK, _STAND_IN)
    parser = _parser()
    tokens = parser.parse(text[:_LONGEST])
    for token in tokens:
        _highlight(token.children or [])
    contents = "\n".join(each.content for token in tokens for each in (token, *(token.children or [])))
    found = {name: href for name, href in links.items() if name in contents and _can_be_linked(name, href)}
    env = {"links": found, "words": _words(found)}
    rest = f"<pre>{_shown(text[_LONGEST:], {**env, 'words': None})}</pre>" if len(text) > _LONGEST else ""
    return f"{parser.renderer.render(tokens, parser.options, env)}{rest}"


def neutral(text: str) -> str:
    """The same Markdown, in which nothing is a link, an image, an address or HTML to whoever renders it.

    An invisible character (U+2060) stands in what would be one, also in code: where code ends, renderers do
    not agree.
    """
    return _OPENS.sub(lambda match: f"{match[0]}{_JOINER}", visible(text))


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
    parser.enable(["table", "strikethrough"]).disable(list(_ACTIVE))
    for name, rule in (("text", _text), ("code_inline", _code), ("fence", _block), ("code_block", _block)):
        parser.add_render_rule(name, rule)
    return parser


def _text(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]
) -> str:
    return _shown(tokens[index].content, env)


def _code(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]
) -> str:
    return f"<code{self.renderAttrs(tokens[index])}>{_shown(tokens[index].content, env)}</code>"


def _block(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]
) -> str:
    return f"<pre><code>{_shown(tokens[index].content, env)}</code></pre>\n"


def _highlight(tokens: Sequence[Token]) -> None:
    """Gives its class to bold, slanted or struck text and to code with a mark behind it."""
    opened: list[Token] = []
    last = None
    for token in tokens:
        if last is not None and token.type == "text" and token.content.startswith(f" {_STAND_IN}"):
            last.attrSet("class", _NUMBER)
        last = token if token.type == "code_inline" else None
        if token.nesting == 1:
            opened.append(token)
        elif token.nesting == -1 and opened:
            last = opened.pop()


def _shown(text: str, env: Mapping[str, Any]) -> str:
    """A text as HTML, with badges for marks."""
    *marked, rest = visible(text).split(_STAND_IN)  # entities may have brought back what is not visible
    return "".join([*(_badged(part, env) for part in marked), _linked(rest, env)])


def _badged(text: str, env: Mapping[str, Any]) -> str:
    number = _MARKED.search(text, max(0, len(text) - _BEFORE_MARK))
    if number is None:
        return _linked(text, env) + _BADGE
    before = _linked(text[: number.start()], env)
    return f'{before}<span class="{_NUMBER}">{html_text.escape(number[1])}</span>{number[2]}{_BADGE}'


def _can_be_linked(name: str, href: str) -> bool:
    is_word = len(name) > 1 and any(c.isalpha() for c in name)
    return is_word and visible(name) == name and bool(_ADDRESS.match(href))


def _words(names: Mapping[str, str]) -> re.Pattern[str] | None:
    """Finds any of some names, the longest first, where it is a word of its own."""
    if not names:
        return None
    wanted = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?<!\w[-./@])(?:{wanted})(?!\w|[-./@]\w)")


def _linked(text: str, env: Mapping[str, Any]) -> str:
    """A text as HTML, in which names lead to their addresses."""
    return "".join(_parts(text, env["links"], env["words"]))


def _parts(text: str, links: Mapping[str, str], words: re.Pattern[str] | None) -> Iterator[str]:
    at = 0
    for match in words.finditer(text) if words else ():
        yield html_text.escape(text[at : match.start()])
        href = html_text.escape(links[match[0]])
        yield f'<a class="ftlab-run" href="{href}">{html_text.escape(match[0])}</a>'
        at = match.end()
    yield html_text.escape(text[at:])
