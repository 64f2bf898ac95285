"""Who is using the dashboard: somebody who has signed in, or the user that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from ftlab_mlflow.control.client import user_name

_NAMES = ("email", "preferred_username", "sub")
"""Claims that name a person, the best first (OpenID Connect Core 1.0, 5.1); `sub` is always there."""


@dataclass(frozen=True)
class User:
    """Attributes:
    name: What requests and stored preferences are under. signed_in: Whether the sign-in has vouched for it.
    """

    name: str
    signed_in: bool


def user() -> User:
    """Whoever this browser session belongs to. Only behind `gate`."""
    if not _auth():
        return User(user_name(), signed_in=False)
    claims = st.user.to_dict()
    if claims.get("email_verified") is False:  # then anybody could have typed it
        del claims["email"]
    return User(next(str(claims[name]) for name in _NAMES if claims.get(name)), signed_in=True)


def is_let_in() -> bool:
    """Whether this browser session may see anything: it has signed in, or no sign-in is configured."""
    return not _auth() or st.user.is_logged_in


def gate() -> None:
    """The script ends here, on the sign-in page, for who is not let in."""
    if is_let_in():
        return
    auth = _auth()
    st.title("ftlab", anchor=False)
    st.text("Sign in to see runs and to change them.")
    for provider in _providers(auth):
        label = f"Sign in with {provider.capitalize()}" if provider else "Sign in"
        st.button(label, on_click=st.login, args=[provider], type="primary", icon=":material/login:")
    st.stop()


def sign_out() -> None:
    """A button for who has signed in."""
    if _auth():
        st.button("Sign out", on_click=st.logout, icon=":material/logout:")


def _auth() -> Mapping[str, Any]:
    """The section `auth` of secrets.toml. A file that cannot be read is an error, never an open door."""
    try:
        found: Mapping[str, Any] = st.secrets.to_dict().get("auth", {})
    except StreamlitSecretNotFoundError as error:
        if error.error_id != "no-secrets-found":
            raise
        return {}
    return found


def _providers(auth: Mapping[str, Any]) -> list[str | None]:
    named = [name for name, section in auth.items() if isinstance(section, dict) and name != "client_kwargs"]
    return [None, *named] if "client_id" in auth else [*named]
