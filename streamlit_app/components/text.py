"""Text from runs (names, tags, reasons) is data: Markdown and charts show it as it is."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([\\`*{}\[\]()<>#+\-.!|~$^=&@\"'/]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown may take for a mark. Within a word `_` is none, and stays: labels are also read aloud."""
_JOINER = "\u2060"
_MARKS = re.compile(r":|@|www(?=\\\.)", re.IGNORECASE)
"""Streamlit reads `:material/…:` and `:red[…]`, links `www.` and addresses, also where escaped."""


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(str(text).split())
    return _MARKS.sub(rf"\g<0>{_JOINER}", _MARKDOWN.sub(r"\\\1", line))


def plotly(text: object, length: int = 160) -> str:
    """Text that Plotly shows as it is (it knows some HTML and `%{…}`), on one line and cut to a length."""
    line = " ".join(str(text).split())
    cut = line if len(line) <= length else line[: length - 1] + "…"
    return html.escape(cut, quote=False).replace("%{", f"%{_JOINER}{{")
