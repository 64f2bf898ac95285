"""Markdown of answers, checked: nothing in it is a link, and no table is out of joint."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def check(shown: str) -> list[Token]:
    """It has no HTML, link or image, each table has as many cells in each row, and no character acts.

    Returns:
        What it was parsed to.
    """
    assert all(character.isprintable() or character == "\n" for character in shown)
    tokens = PARSER.parse(shown)
    kinds = {each.type for token in tokens for each in (token, *(token.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "heading_open", "s_open"}
    assert not kinds & {"em_open", "hr", "blockquote_open", "hardbreak", "ordered_list_open", "code_block"}
    tables, rows = kinds & {"table_open"}, raw_rows(shown)
    assert bool(tables) == bool(rows)
    for table in rows:
        assert len({len(row) for row in table}) == 1, table
    return tokens


def raw_rows(shown: str) -> list[list[list[str]]]:
    """The cells of each table as they stand there: a parser would fill up and cut rows."""
    tables: list[list[list[str]]] = [[]]
    for text in shown.split("\n"):
        if text.startswith("| "):
            tables[-1].append(re.split(r"(?<!\\)\|", text)[1:-1])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def cells_of(tokens: list[Token]) -> list[str]:
    """The texts in all cells, as they are read."""
    inline = [tokens[at + 1] for at, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    return ["".join(child.content for child in cell.children or ()) for cell in inline]
