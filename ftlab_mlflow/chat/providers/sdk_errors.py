"""What the SDKs raise, or we over what a server sent, as errors of ours: what happened, and what to do."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from ftlab_mlflow.chat.providers.connection import CONNECT_S
from ftlab_mlflow.chat.providers.foreign import Unfinished
from ftlab_mlflow.chat.providers.service import Service, short
from ftlab_mlflow.errors import (
    BadKey,
    ChatError,
    ContextOverflow,
    FTLabError,
    ModelNotUsable,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    StreamCut,
)

logger = logging.getLogger("ftlab_mlflow")

_LONGEST = 300
_CANNOT_ASK = "cannot be asked: check {} and {}"
_NO_TOOLS = re.compile(
    r"(not support|unsupported|no endpoints? found that support)\w* (for )?(the )?(tool|function)"
    r"|(tools?|tool[ _](calling|calls|use)|function calling) (is|are) not (supported|enabled)"
    r"|enable-auto-tool-choice|requires? --jinja",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|prompt is too long|input is too long|request too large"
    r"|maximum (context|prompt|model) length|token count[^.]{0,40} exceed"
    r"|(context|input|prompt) (length|size|window)[^.]{0,40} exceed"
    r"|exceeds?[^.]{0,60} context|too many (input )?tokens|request_too_large|larger than the context",
    re.IGNORECASE,
)
_TOO_MUCH_OUTPUT = re.compile(r"max_(completion_)?tokens\W[^.]{0,40}too large", re.IGNORECASE)
_NO_CREDIT = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|billing_error|budget limit exceeded"
    r"|any credits|spending limit|insufficient (credits|balance|funds)|payment required",
    re.IGNORECASE,
)
_BAD_KEY = re.compile(
    r"authentication_error|invalid_api_key|(incorrect|invalid|wrong) (api|x-api)[- ]key|api key not valid",
    re.IGNORECASE,
)
_BUSY = re.compile(
    r"overloaded|server_error|api_error|timeout_error|service_unavailable|internal error", re.IGNORECASE
)
_LATER = (408, 409, 425)


@dataclass(frozen=True)
class Refusal:
    """What a server said instead of a reply.

    Attributes:
        status: The HTTP status; None where the error came in a stream.
        words: Code, type and message, for telling what it is.
        message: Of the server, in one short line without secrets; may be empty.
        param: The option that it names as wrong.
        retry_after_s: Seconds that it asks for.
    """

    status: int | None
    words: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    def names(self, option: str) -> bool:
        """Whether it is about an option of the request."""
        if self.status not in (None, 400, 422):
            return False
        if _TOO_LONG.search(self.words) and not self.is_of_too_much_output:
            return False
        return self.param == option or re.search(rf"(?<![\w-]){option}(?![\w-])", self.words) is not None

    @property
    def is_of_too_much_output(self) -> bool:
        """Whether more tokens of output were asked for than there may be."""
        return _TOO_MUCH_OUTPUT.search(self.words) is not None


def refusal(error: Exception, service: Service) -> Refusal | None:
    """What a server said, if an SDK's error tells of that."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    if status is None and body is None:
        return None
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    inner = inner if isinstance(inner, Mapping) else {"message": inner}
    inner = {**inner, **inner["detail"]} if isinstance(inner.get("detail"), Mapping) else inner
    said = inner.get("message") or inner.get("detail") or ""
    message = said if isinstance(said, str) else _as_json(said)
    if re.match(r"\s*<", message):
        title = re.search(r"<title[^>]*>(.*?)</title", message, re.IGNORECASE | re.DOTALL)
        message = title[1] if title else "a web page"
    code, kind = inner.get("code"), inner.get("type")
    told = (code, inner.get("error_code"), kind, message)
    words = " ".join(str(each) for each in told if each and isinstance(each, str | int))
    if status is None or status < 400:  # in a stream
        status = code if isinstance(code, int) else _status_in(message)
    headers = getattr(getattr(error, "response", None), "headers", {})
    param = inner.get("param")
    return Refusal(
        None if status is None or status < 400 else status,
        words,
        short(service.without_secrets(message), _LONGEST),
        param if isinstance(param, str) else None,
        retry_after_s(headers),
    )


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return ""


def _status_in(message: str) -> int | None:
    """MLflow's gateway puts the status of the service behind it before its words: `429: slow down`."""
    found = re.match(r"([45]\d\d): ", message)
    return int(found[1]) if found else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def raise_ours(
    error: Exception,
    service: Service,
    model: str,
    *,
    has_begun: bool,
    content_type: str | None = None,
    expected: str = "chat completion",
) -> NoReturn:
    """Raises what an SDK, or our reading of what a server sent, has raised: as one of our errors.

    Args:
        has_begun: A part of the reply has come.
        content_type: Of the stream; None: there is none.
        expected: What should have come.
    """
    if isinstance(error, FTLabError):
        raise error
    _clean(error, service)
    logger.debug("%s failed", service.name, exc_info=error)
    if said := refusal(error, service):
        raise _refused(said, service, model) from error
    if content_type is not None and not has_begun and "event-stream" not in content_type:
        text = f"answers at {service.place} with {content_type or 'nothing'} instead of a stream"
        raise service.error(ProviderError, f"{service.name} {text}: check {service.address_from}") from error
    raise _translated(error, service, expected, has_begun=has_begun) from error


def _clean(error: BaseException, service: Service) -> None:
    """Takes secrets out of an error and of all that led to it: a traceback shows them."""
    found: BaseException | None = error
    while found is not None:
        found.args = tuple(
            service.without_secrets(each) if isinstance(each, str) else each for each in found.args
        )
        found = found.__cause__ or found.__context__


def _translated(error: Exception, service: Service, expected: str, *, has_begun: bool) -> ChatError:
    import httpx2

    cause = error if isinstance(error, httpx2.RequestError) else error.__cause__
    if isinstance(cause, httpx2.TransportError):
        return _disconnected(cause, service, has_begun=has_begun)
    kind: type[ProviderError] = ProviderError
    if isinstance(error, Unfinished):
        kind, text = StreamCut, f"ended its reply without {error}"
    elif isinstance(error, json.JSONDecodeError):
        kind, text = StreamCut, f"sent broken JSON in the place of a {expected}: {error}"
    elif isinstance(cause, httpx2.DecodingError):
        kind = StreamCut if has_begun else ProviderError
        text = f"sent what cannot be unpacked: {cause}; check {service.address_from}"
    elif isinstance(cause, httpx2.TooManyRedirects):
        text = f"sends requests from {service.place} on without an end: check {service.address_from}"
    elif isinstance(error, httpx2.InvalidURL) or cause is not None:
        text = _CANNOT_ASK.format(service.key_from or "its key", service.address_from)
    else:
        text = f"sent what is no {expected}: {error}"
    return service.error(kind, f"{service.name} {text}")


def _disconnected(error: Exception, service: Service, *, has_begun: bool) -> ChatError:
    import httpx2

    if has_begun:
        why = "stopped sending" if isinstance(error, httpx2.TimeoutException) else "closed the connection"
        return service.error(StreamCut, f"{service.name} {why} before the end of its reply")
    if isinstance(error, httpx2.ConnectTimeout):
        text = f"does not answer at {service.place} within {CONNECT_S:g} s"
    elif isinstance(error, httpx2.ConnectError):
        text = f"cannot be reached at {service.place}: {error}"
    elif isinstance(error, httpx2.TimeoutException):
        text = "took the request, but has not begun to reply in time"
    elif isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        text = _CANNOT_ASK.format(service.key_from or "its key", service.address_from)
        return service.error(ProviderError, f"{service.name} {text}")
    else:
        text = f"closed the connection without a reply: {error}"
    return service.error(ProviderUnavailable, f"{service.name} {text}")


def _refused(said: Refusal, service: Service, model: str) -> ChatError:
    name, status, words = service.name, said.status, said.words
    shown = f": {said.message}" if said.message else ""
    with_status = f" ({status})" if status else ""
    is_about_key = status in (401, 403) or (status in (None, 400) and _BAD_KEY.search(words))
    if _NO_TOOLS.search(words) and status not in (401, 403, 429):
        return service.error(
            ModelNotUsable, f"{model} of {name} cannot call tools, which this chat needs{shown}"
        )
    if status == 413 or (_TOO_LONG.search(words) and status not in (401, 402, 403, 404)):
        return service.error(
            ContextOverflow, f"the conversation is longer than {model} of {name} takes{shown}"
        )
    if status == 402 or (_NO_CREDIT.search(words) and status not in (401, 404)):
        return service.error(
            QuotaExceeded, f"the account at {name} has no credit left, or reached its limit{shown}"
        )
    if is_about_key:
        todo = f"check {service.key_from}" if service.key_from else "it asks for a key: see api_key_env"
        refused = "does not allow this" if status == 403 else "did not accept the key"
        return service.error(BadKey, f"{name} {refused}{with_status}{shown}; {todo}")
    if status == 429 or (status is None and "rate_limit" in words):
        return service.error(
            RateLimited, f"{name} takes no more requests for now{with_status}{shown}", said.retry_after_s
        )
    if status == 404:
        todo = f"check the model's name ({model}) with `ftlab models`, and {service.address_from}"
        return service.error(ProviderError, f"{name} found nothing at {service.place} (404){shown}; {todo}")
    is_busy = status in _LATER or (status is not None and status >= 500 and status != 501)
    if is_busy or (status is None and _BUSY.search(words)):
        return service.error(
            ProviderUnavailable, f"{name} failed on its side{with_status}{shown}", said.retry_after_s
        )
    return service.error(ProviderError, f"{name} refused the request{with_status}{shown}")
