"""Text without what cannot be seen: characters that hide, reorder or control what stands around them."""

from __future__ import annotations

import re

_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt) and interlinear marks: zero-width and
bidirectional controls, tag characters, variation selectors."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """A text as one sees it.

    Characters without a shape are left out, which joiners of some scripts and emojis are, too; controls but
    for newline and tab become spaces; what is no Unicode becomes `�`. It goes character by character: a
    text may be given in pieces.
    """
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", _IGNORABLE.sub("", text)))
