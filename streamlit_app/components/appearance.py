"""How dense pages are, and the theme a person chose.

Streamlit has no call for a theme: it is the server's, or the browser's choice.

The browser's is kept in its local storage, one entry for each page's path. This writes that entry and loads
the page anew where the theme on the screen is another one. A browser that keeps nothing stays as it is.
"""

from __future__ import annotations

import json
from typing import Literal

import streamlit as st

Theme = Literal["system", "light", "dark"]

# The entry's name is Streamlit's (1.67: static/js/utils, CACHED_THEME_BASE_KEY). "ftlab-theme" is ours: it
# tells an entry written here from a choice in Streamlit's menu. A change loads the page at most once.
_SCRIPT = """<script>(() => {
  const wanted = %s, isShown = %s;
  const entry = `stActiveTheme-${location.pathname}-v2`, ours = "ftlab-theme";
  if (wanted === "System") {
    if (localStorage.getItem(ours) === null) return;
    localStorage.removeItem(ours);
    const themes = Object.keys(localStorage).filter(name => name.startsWith("stActiveTheme-"));
    themes.forEach(name => localStorage.removeItem(name));
    location.reload();
  } else if (localStorage.getItem(entry) !== JSON.stringify(wanted)) {
    localStorage.setItem(ours, wanted);
    localStorage.setItem(entry, JSON.stringify(wanted));
    if (!isShown) location.reload();
  }
})()</script>"""


# Streamlit's own margins take a sixth of a page that is 1,280 pixels wide; on a phone all filters would take
# half of the page: there they are one row that moves sideways.
_STYLE = """<style>
.stMainBlockContainer { padding: 4.25rem 2rem 3rem; }
@media (max-width: 640px) {
  .stMainBlockContainer { padding: 4.25rem 1rem 3rem; }
  .st-key-filters { flex-wrap: nowrap; overflow-x: auto; }
  .st-key-filters > * { flex-shrink: 0; }
}
</style>"""


def use_space() -> None:
    """Narrow margins; on a phone, one row of filters."""
    st.html(_STYLE)


def apply(theme: Theme) -> None:
    """Shows this theme. Called last on a page: it leaves an empty element behind."""
    is_shown = st.context.theme.type == theme
    script = _SCRIPT % (json.dumps(theme.capitalize()), json.dumps(is_shown))
    st.html(script, unsafe_allow_javascript=True)
