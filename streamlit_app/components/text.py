"""Text from runs (names, tags, reasons) is data: Markdown and charts show it as it is."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$^=&@\"'/])")


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(str(text).split())
    # Streamlit reads :material/…: and :red[…] also where the colon is escaped: an invisible joiner ends that.
    return _MARKDOWN.sub(r"\\\1", line).replace(":", ":\u2060")


def plotly(text: object, length: int = 160) -> str:
    """Text that Plotly shows as it is (it knows some HTML), on one line and cut to a length."""
    line = " ".join(str(text).split())
    return html.escape(line if len(line) <= length else line[: length - 1] + "…", quote=False)
