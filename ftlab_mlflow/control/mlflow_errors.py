"""What MLflow raises, as errors of ours: who did not answer, who refused, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from ftlab_mlflow.errors import NotAuthenticated, NotPermitted, RunNotFound, StoreError, StoreUnavailable

Doing = Literal["read this run", "change this run", "list runs"]

_NOT_FOUND = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS"})
_UNKNOWN_USER = frozenset({"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
_DELETED = "must be in the 'active' state"
"""What MLflow says of a write to a deleted run. It can be restored: what is to be written waits for that."""
_VARIABLES = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@contextmanager
def translated(uri: str, doing: Doing = "read this run") -> Iterator[None]:
    """Around calls of MLflow: what they raise becomes a `StoreError`.

    Args:
        uri: The tracking URI. doing: What an error says that the user may not do.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        text = first_line(error)
        if error.error_code in _NOT_FOUND:
            raise RunNotFound(text) from error
        if error.error_code == "PERMISSION_DENIED":
            raise NotPermitted(_not_permitted(uri, doing, text)) from error
        if error.error_code in _UNKNOWN_USER:
            raise NotAuthenticated(_not_authenticated(uri)) from error
        if error.error_code in _REFUSALS and _DELETED not in str(error):
            raise StoreError(text) from error
        raise unavailable(uri, error) from error
    except (OSError, ValueError, KeyError, SQLAlchemyError) as error:  # a file that is no database
        raise unavailable(uri, error) from error


def check_refusal(response: Any) -> None:
    """Raises `MlflowException` if a server refused a request because of its user, other than in JSON.

    Its basic authentication does so in plain text, a proxy in front of it in HTML.
    """
    from mlflow.exceptions import MlflowException, get_error_code

    if response.status_code in (401, 403) and '"error_code"' not in response.text:
        said = response.text.strip()
        is_page = said.startswith("<")  # HTML, which says no more than the reason
        code = get_error_code(response.status_code)
        raise MlflowException(response.reason if is_page else said, error_code=code)


def unavailable(uri: str, error: BaseException) -> StoreUnavailable:
    """A failure as an error of ours, with the text of what failed first."""
    # The innermost error says it best: "[Errno 111] Connection refused".
    while nested := error.__cause__ or error.__context__:
        error = nested
    return StoreUnavailable(f"the tracking store {without_credentials(uri)} failed: {first_line(error)}")


def _not_permitted(uri: str, doing: Doing, said: str) -> str:
    user = _user(uri) or "the user"
    allows = {
        "change this run": "MLflow's permission EDIT on the experiment allows it",
        "read this run": "if there is such a run, MLflow's permission READ on the experiment allows it",
        "list runs": "an administrator of the server can allow it",
    }
    server = f"the tracking server {without_credentials(uri)}"
    return f"{user} may not {doing}: {server} says {said!r}; {allows[doing]}"


def _not_authenticated(uri: str) -> str:
    server = f"the tracking server {without_credentials(uri)}"
    if user := _user(uri):
        return f"{server} knows no user {user} with this password: check {_VARIABLES}"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"{server} does not accept the token in MLFLOW_TRACKING_TOKEN"
    return f"{server} wants to know who asks: set {_VARIABLES}, or MLFLOW_TRACKING_TOKEN"


def _user(uri: str) -> str | None:
    """The user name that MLflow sends; a URI may hold one, too."""
    from mlflow.utils.credentials import read_mlflow_creds

    creds = read_mlflow_creds()
    return urlsplit(uri).username or (creds.username if creds.password else None)


def first_line(error: BaseException) -> str:
    """An error's text on one line, without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:300]


def without_credentials(text: str) -> str:
    """A text in which a URI with user and password may stand, without those."""
    return re.sub(r"(password=)[^&\s]*", r"\1…", re.sub(r"://\S*@", "://", text))
