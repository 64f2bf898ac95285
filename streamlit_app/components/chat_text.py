"""Text of a chat on the page: Markdown of models made safe, what a person typed as it was typed."""

from __future__ import annotations

import html as html_text
from functools import lru_cache

import streamlit as st

from ftlab_mlflow.chat.markdown import html
from streamlit_app.components import palette
from streamlit_app.components.chat_links import Links

# Streamlit styles its own Markdown, not HTML. `color-mix` and `currentColor` fit both themes.
_STYLE = """<style>
.ftlab-text { overflow-wrap: anywhere; line-height: 1.5; }
.ftlab-text > :first-child { margin-top: 0; }
.ftlab-text > :last-child { margin-bottom: 0; }
.ftlab-text p, .ftlab-text ul, .ftlab-text ol { margin: 0 0 0.6rem; }
.ftlab-text li { margin: 0.15rem 0; }
.ftlab-text :is(h1, h2, h3, h4, h5, h6) {
  font-size: 1.05rem; font-weight: 600; margin: 0.8rem 0 0.4rem; padding: 0;
}
.ftlab-text code {
  font-size: 0.875em; padding: 0.1em 0.3em; border-radius: 0.25rem;
  background: color-mix(in srgb, currentColor 8%, transparent);
}
.ftlab-text pre { overflow-x: auto; padding: 0.6rem 0.8rem; border-radius: 0.375rem; margin: 0 0 0.6rem;
  background: color-mix(in srgb, currentColor 6%, transparent); }
.ftlab-text pre code { padding: 0; background: none; }
.ftlab-text table {
  display: block; overflow-x: auto; width: max-content; max-width: 100%; border-collapse: collapse;
  margin: 0 0 0.6rem; font-size: 0.93em; font-variant-numeric: tabular-nums;
}
.ftlab-text :is(th, td) { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); overflow-wrap: normal; }
.ftlab-text :is(th, td)[style*="right"] { text-align: right; }
.ftlab-text th { font-weight: 600; }
.ftlab-text blockquote { margin: 0 0 0.6rem; padding-left: 0.8rem;
  border-left: 3px solid color-mix(in srgb, currentColor 20%, transparent); }
.ftlab-text a { color: LINK; text-underline-offset: 2px; }
.ftlab-unverified {
  font-size: 0.75em; margin-left: 0.15em; padding: 0 0.35em; border-radius: 0.25rem; white-space: nowrap;
  color: color-mix(in srgb, #f59e0b 65%, currentColor);
  background: color-mix(in srgb, #f59e0b 18%, transparent);
}
.ftlab-typed { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>"""


def style() -> None:
    """What the texts of a page look like. Called once on it."""
    st.html(_STYLE.replace("LINK", palette.color(0)))


def show(text: str, links: Links) -> None:
    """Markdown of a model or of a command."""
    st.html(f'<div class="ftlab-text">{_html(text, links)}</div>')


@lru_cache(maxsize=1000)
def _html(text: str, links: Links) -> str:
    """All of a chat is shown anew at each click, and it takes a millisecond for each line."""
    return html(text, dict(links))


def typed(text: str) -> None:
    """What a person typed."""
    st.html(f'<div class="ftlab-typed">{html_text.escape(text)}</div>')
