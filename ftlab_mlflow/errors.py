"""Every error that ftlab_mlflow raises on purpose, one tree.

::

    FTLabError
    ├── ConfigError            a setting, a config file or an argument is wrong
    │   └── MissingExtra       a package of an optional extra is not installed
    ├── StoreError             the tracking store answered with an error
    │   ├── StoreUnavailable   it did not answer, or said "later": try again
    │   │   └── SendUnconfirmed    nor when a request was written: it may be there all the same
    │   ├── RunNotFound        no run, or more than one, goes by that name
    │   └── NotPermitted       its user may not do this
    │       └── NotAuthenticated   it does not know the user: credentials are missing or wrong
    ├── AppStoreError          the app's own database cannot be used: damaged, not to be written, too new
    │   └── AppStoreUnavailable    it did not answer: try again
    ├── MessageError           a tag's value is not a message of the protocol
    ├── CheckpointError        a checkpoint is missing, not whole, or of another run
    ├── RankError              a rank of a distributed training could not do what all were told to do
    │   ├── RanksLost          a rank does not answer any more
    │   └── RanksDiverged      the ranks are no longer in the same state
    ├── AnalyticsError         the runs cannot answer a question: no such metric, nothing to compute
    ├── ChatError              a chat cannot give an answer, or not the whole of it
    │   ├── ModelNotUsable     the chosen model is unknown, retired, without tools or without a key
    │   ├── BudgetReached      what may be spent in a day is spent
    │   ├── ChatNotFound       no chat of that person goes by that id
    │   └── ProviderError      who serves the model refused the request, and would refuse it again
    │       ├── BadKey         it does not know the key
    │       ├── QuotaExceeded  the account has no credit left
    │       ├── RateLimited    too many requests: try again
    │       ├── ContextOverflow    the conversation is longer than the model takes
    │       ├── ProviderUnavailable    it did not answer, or failed: try again
    │       └── StreamCut      the reply ended before its end
    ├── NotLive                the run does not listen: never did, or not any more
    ├── UpdateRejected         the answer to a request is "rejected" or "cancelled"
    └── UpdateTimeout          no answer came in time; the request may still be applied
"""

from __future__ import annotations

from collections.abc import Mapping


class FTLabError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(FTLabError):
    """A setting, a config file or an argument is wrong. The text says what is allowed."""


class MissingExtra(ConfigError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'ftlab-mlflow[{extra}]'")
        self.package = package
        self.extra = extra


class StoreError(FTLabError):
    """The tracking store refused a call, and would refuse it again."""


class StoreUnavailable(StoreError):
    """The tracking store did not answer, or asked to come back later."""


class SendUnconfirmed(StoreUnavailable):
    """The tracking store did not confirm that a request was written: it may be there all the same.

    Attributes:
        request_id: The request's id, to look for in the run's history.
    """

    def __init__(self, text: str, request_id: str) -> None:
        super().__init__(f"{text}; request {request_id} may have been written all the same")
        self.request_id = request_id


class RunNotFound(StoreError):
    """A run reference fits no run, or several."""


class NotPermitted(StoreError):
    """The tracking server does not let this user do it. The text names the user and what it takes."""


class NotAuthenticated(NotPermitted):
    """The tracking server does not know the user. The text says which variables to set."""


class AppStoreError(FTLabError):
    """The app's own database cannot be used as it is. The text names it, and says why."""


class AppStoreUnavailable(AppStoreError):
    """The app's own database did not answer, or is busy."""


class MessageError(FTLabError):
    """A tag's value is not a message of the protocol.

    Attributes:
        code: The protocol's rejection code, such as ``invalid`` or ``unsupported_version``.
        errors: What is wrong, by key of the message (``"message"`` for the whole of it).
    """

    def __init__(self, code: str, errors: Mapping[str, str]) -> None:
        super().__init__(f"{code}: {describe(errors)}")
        self.code = code
        self.errors = dict(errors)


class CheckpointError(FTLabError):
    """A checkpoint is missing, not whole, or of another run. The text says which, and what there is."""


class RankError(FTLabError):
    """A rank of a distributed training could not do what all were told to do. The text names it."""


class RanksLost(RankError):
    """A rank does not answer any more."""


class RanksDiverged(RankError):
    """The ranks of a distributed training are no longer in the same state; it cannot go on."""


class AnalyticsError(FTLabError):
    """The runs cannot answer a question. The text says why, and what there is instead."""


class ChatError(FTLabError):
    """A chat cannot give an answer, or not the whole of it. The text says why, and what to do."""


class ModelNotUsable(ChatError):
    """The chosen model is unknown, retired, without tools or without a key. The text says what to do."""


class BudgetReached(ChatError):
    """What may be spent in a day is spent. The text says how much, and which setting changes it."""


class ChatNotFound(ChatError):
    """No chat of that person goes by that id."""


class ProviderError(ChatError):
    """Who serves the model refused the request, and would refuse it again."""


class BadKey(ProviderError):
    """The provider does not know the key. The text says which variable holds it, never the key."""


class QuotaExceeded(ProviderError):
    """The account has no credit left, or has reached its own limit."""


class RateLimited(ProviderError):
    """Too many requests.

    Attributes:
        retry_after_s: Seconds that the server asks for; None where it does not say.
    """

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class ContextOverflow(ProviderError):
    """The conversation is longer than the model takes."""


class ProviderUnavailable(ProviderError):
    """The provider did not answer, or failed on its side.

    Attributes:
        retry_after_s: Seconds that the server asks for; None where it does not say.
    """

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class StreamCut(ProviderError):
    """The reply ended before its end. What came before it was given."""


class NotLive(FTLabError):
    """The run does not listen to requests: it never did, or it has ended."""


class UpdateRejected(FTLabError):
    """A request was rejected (or cancelled), by the client's own check or by the trainer.

    Attributes:
        code: The protocol's rejection code; ``cancelled`` for a cancelled request.
        errors: What is wrong, by parameter.
        id: The request's id; ``None`` when it was refused before it was written.
    """

    def __init__(self, code: str, errors: Mapping[str, str], id: str | None = None) -> None:
        super().__init__(f"{code}: {describe(errors)}" if errors else code)
        self.code = code
        self.errors = dict(errors)
        self.id = id


class UpdateTimeout(FTLabError):
    """No answer to a request came in time. It is still pending and may still be applied."""


def describe(errors: Mapping[str, str]) -> str:
    """One line that says what is wrong, by parameter."""
    return "; ".join(f"{name}: {text}" for name, text in errors.items())
