"""Text from a run is data: nothing of it is sent to the browser as markup."""

from __future__ import annotations

import re

import pytest
from app_pages import Runs
from run_page import Page, answered, asked, status, surface

from ftlab_mlflow.control.surface import Param
from streamlit_app.components.text import plain, plotly

EVIL = (
    "<script>ran=1</script><b>bold</b> **strong** _slanted_ __init__ `code` [link](https://example.com) "
    "www.example.com me@example.com :red[red] :material/delete: $x^2$ # head &lt; %{y} " + "long " * 50
).strip()
_MARKUP = re.compile(r"(?<!\\)([<`*\[$#&~|]|(?<!\w)_|_(?!\w))|:(?!\u2060)|@(?!\u2060)|www\\?\.")
"""What Markdown, its links or Streamlit would make something of."""
_AS_IT_IS = {"text", "code", "arrow_data_frame", "bidi_component"}
_OURS = re.compile(r"^\*\*|\*\*$")
"""Marks that the page itself sets: a chart's title is bold."""


def test_no_text_of_a_run_is_sent_as_markup(runs: Runs) -> None:
    params = {
        "learning_rate": Param("float", 1e-3, 1e-3, 0, 1, help=EVIL),
        EVIL: Param("float", 0.0, 0.0, help=EVIL),
        "lr_schedule": Param("enum", EVIL, EVIL, choices=("keep", EVIL), help=EVIL),
    }
    by_evil = {"by": EVIL, "reason": EVIL}
    run_tags = {
        **status(host=EVIL, method=EVIL, error=EVIL),
        **surface(params, unsupported={EVIL: EVIL}),
        **answered(asked(set={EVIL: EVIL}, **by_evil), changes={EVIL: (EVIL, EVIL)}),
        **answered(asked(command=EVIL, **by_evil), "rejected", code="failed", errors={EVIL: EVIL}),
        **asked(set={EVIL: EVIL}, expect={EVIL: EVIL}, **by_evil),
    }
    experiment = runs.client.create_experiment(EVIL[:240])
    metrics = {"loss": [2.0, 1.0], "val/:material/delete: www.example.com": [1.0, 2.0]}
    run_id = runs.plain(EVIL, status="RUNNING", run_tags=run_tags, experiment=experiment, metrics=metrics)
    page = Page(runs, run_id)
    page.charts_field.set_value(page.charts_field.options)
    page.rerun().type(**{EVIL: "a lot"})

    found = []
    for element in page.app.main:
        proto = getattr(element, "proto", None)
        for field in ("body", "label", "help"):
            text = getattr(proto, field, "")
            if element.type not in _AS_IT_IS and isinstance(text, str) and "example" in text:
                assert not _MARKUP.search(_OURS.sub("", text)), text
                found.append((element.type, field))
    assert set(found) >= {
        ("subheader", "body"), ("metric", "body"), ("text_input", "label"), ("text_input", "help"),
        ("selectbox", "help"), ("markdown", "body"),
    }  # fmt: skip
    assert any(line.startswith(f"{EVIL}: must be a finite number") for line in page.words)
    assert any(EVIL in line for line in page.words)
    hovers = page.traces("chart Loss")["requests"]["text"]
    assert not any(mark in hover for hover in hovers for mark in ("<script", "<b>bold", "%{"))


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("learning_rate", "learning_rate"),
        ("_slanted_", r"\_slanted\_"),
        ("a\n\n# b", r"a \# b"),
        (":red[x]", ":\u2060red\\[x\\]"),
        ("WWW.a.b me@c.d", "WWW\u2060\\.a\\.b me\\@\u2060c\\.d"),
        (None, "None"),
    ],
)
def test_markdown_shows_text_as_it_is(text: object, sent: str) -> None:
    assert plain(text) == sent


def test_plotly_shows_text_as_it_is() -> None:
    assert plotly("<b>&amp; %{y}") == "&lt;b&gt;&amp;amp; %\u2060{y}"
    assert plotly("x" * 200, 60) == "x" * 59 + "…"
