"""Markdown of models, made harmless: as HTML of our own for the page, and as Markdown that loads nothing."""

from __future__ import annotations

import html as html_text
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from ftlab_mlflow.chat.visible import visible

MARK = "[unverified]"
"""What stands behind a number that no tool returned."""

_ACTIVE = ("link", "image", "autolink", "html_inline", "html_block", "reference")
_MARKED = re.compile(re.escape(MARK))
_BADGE = '<span class="ftlab-unverified" title="No tool returned this number">unverified</span>'
_JOINER = "\u2060"
_OPENS = re.compile(
    r"\](?=[(\[:])|<(?=[A-Za-z/!?])|!(?=\[)|(?<=[A-Za-z]):(?=/)|(?<=www)(?=\.)|@", re.IGNORECASE
)
"""Where Markdown begins a link, an image, HTML or an address, as GitHub and others read it."""


def html(text: str, links: Mapping[str, str]) -> str:
    """A text as HTML of plain elements: no image, no script, and no link but those given.

    Args:
        text: Markdown as CommonMark has it, with tables and strikethrough. Its own links, images and HTML are
            shown as the text that they are.
        links: Addresses by text that becomes a link where it stands as a word, such as the name of a run.
    """
    found = {name: href for name, href in links.items() if name and name in text}
    names = sorted(found, key=len, reverse=True)
    wanted = "|".join(map(re.escape, names))
    words = re.compile(rf"(?<![\w-])(?:{wanted})(?![\w-])") if names else None
    return str(_parser().render(visible(text), {"links": found, "words": words}))


def neutral(text: str) -> str:
    """The same Markdown, in which nothing is a link, an image, an address or HTML to whoever renders it.

    An invisible character (U+2060) stands in what would be one, also in code.
    """
    return _OPENS.sub(lambda match: f"{match[0]}{_JOINER}", visible(text))


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
    parser.enable(["table", "strikethrough"]).disable(list(_ACTIVE))
    parser.add_render_rule("text", _text)
    parser.add_render_rule("code_inline", _code)
    return parser


def _text(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]
) -> str:
    return _MARKED.sub(_BADGE, _linked(tokens[index].content, env))


def _code(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]
) -> str:
    return f"<code>{_linked(tokens[index].content, env)}</code>"


def _linked(text: str, env: Mapping[str, Any]) -> str:
    """A text as HTML, in which names of runs lead to them."""
    words, links = env["words"], env["links"]
    if words is None:
        return html_text.escape(text)
    parts, at = [], 0
    for match in words.finditer(text):
        href, shown = html_text.escape(links[match[0]]), html_text.escape(match[0])
        parts += [html_text.escape(text[at : match.start()]), f'<a href="{href}">{shown}</a>']
        at = match.end()
    return "".join([*parts, html_text.escape(text[at:])])
