"""An answer as an MLflow trace, written to one tracking store beside MLflow's own tracing of the process.

MLflow's ways to make a trace (`mlflow.start_span`, `MlflowClient.start_trace`) send it to the tracking URI of
the process, with the run that is active there. Here spans are made when all is over, as values, and go
straight to a store. What is internal to MLflow in this is in this file alone.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ftlab_mlflow.app_store.plain import plain, plain_text
from ftlab_mlflow.chat.events import Answer, Round, ToolRun
from ftlab_mlflow.chat.model import Model, Usage
from ftlab_mlflow.control.mlflow_errors import translated
from ftlab_mlflow.control.mlflow_store import ClientApi, RestApi
from ftlab_mlflow.errors import StoreError

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

NAME = "ftlab chat"
"""The name of all these traces."""
MODEL = "ftlab.model"
"""The model's id, as an attribute of spans and in the trace's metadata. MLflow's own ``mlflow.llm.model``
stands beside a known cost only: beside tokens alone, a store would look for a price among all vendors."""
STOPPED = "ftlab.stopped"
"""What ended an answer early, there, too."""
_PREVIEW = 1000
_METADATA = 250
"""Characters that every store of MLflow keeps of a preview, and of a value of the metadata."""


@dataclass(frozen=True)
class Traced:
    """An answer to trace.

    Attributes:
        began: When the question came.
        tracking_uri: Of the runs that it is about; None is MLflow's own setting.
        chat_id: MLflow's session.
        model: That answered; None for a slash command.
        experiment: In which the trace is kept, by name.
    """

    question: str
    answer: Answer
    began: datetime
    tracking_uri: str | None
    user: str
    chat_id: str | None
    model: Model | None
    experiment: str


def write(traced: Traced) -> str:
    """Writes a trace, and makes its experiment where there is none; the trace's id.

    Raises:
        StoreError: The tracking store does not take it; StoreUnavailable: or does not answer.
    """
    import mlflow
    from mlflow.entities import Span, TraceData
    from mlflow.tracing.client import TracingClient

    uri = traced.tracking_uri or mlflow.get_tracking_uri()
    with translated(uri, "change this run"):
        experiment_id = _experiment_id(uri, traced.experiment)
        tree = _Tree(traced)
        spans = [Span.from_dict(each) for each in tree.spans()]
        client = TracingClient(uri)
        try:
            client.log_spans(experiment_id, spans)
            is_logged = True
        except NotImplementedError:  # a store on files, or a server before 3.4: spans are an artifact there
            is_logged = False
        info = client.start_trace(_info(traced, tree, experiment_id))
        if not is_logged:
            client._upload_trace_data(info, TraceData(spans))
    return tree.trace_id


# --- its experiment ----------------------------------------------------------------------------------

_Find = Callable[[str], tuple[str, str] | None]
"""An experiment's id and lifecycle stage, by name."""
_Create = Callable[[str], str]


def _experiment_id(uri: str, name: str) -> str:
    # The first call to a store: one that is away is known in seconds, where MLflow would try for minutes.
    from mlflow.exceptions import MlflowException

    find, create = _by_rest(uri) if uri.startswith(("http://", "https://")) else _by_client(uri)
    found = find(name)
    if found is None:
        try:
            return create(name)
        except MlflowException:
            found = find(name)  # another process has made it meanwhile
            if found is None:
                raise
    experiment_id, stage = found
    if stage == "deleted":
        raise StoreError(f"the experiment {name} is deleted: restore it, or set FTLAB_TRACE_EXPERIMENT")
    return experiment_id


def _by_client(uri: str) -> tuple[_Find, _Create]:
    client = ClientApi(uri).client

    def find(name: str) -> tuple[str, str] | None:
        found = client.get_experiment_by_name(name)
        return None if found is None else (found.experiment_id, found.lifecycle_stage)

    return find, client.create_experiment


def _by_rest(uri: str) -> tuple[_Find, _Create]:
    from mlflow.exceptions import MlflowException

    api = RestApi(uri)

    def find(name: str) -> tuple[str, str] | None:
        try:
            found = api.call("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found["experiment_id"], found["lifecycle_stage"]

    return find, lambda name: str(api.call("POST", "experiments/create", {"name": name})["experiment_id"])


# --- what is written ---------------------------------------------------------------------------------


def _info(traced: Traced, tree: _Tree, experiment_id: str) -> TraceInfo:
    """What MLflow lists of a trace. Tokens and cost are the answer's, whatever its requests say."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing import constant

    answer, key = traced.answer, constant.TraceMetadataKey
    metadata = {
        constant.TRACE_SCHEMA_VERSION_KEY: str(constant.TRACE_SCHEMA_VERSION),
        key.TRACE_USER: traced.user,
        key.TRACE_SESSION: traced.chat_id,
        MODEL: answer.model,
        STOPPED: answer.stopped,
    }
    if traced.model and answer.usage:
        metadata[key.TOKEN_USAGE] = json.dumps(_tokens(answer.usage))
    if traced.model and answer.cost_usd is not None:
        metadata[key.COST] = json.dumps(tree.cost() | {"total_cost": answer.cost_usd})
    return TraceInfo(
        trace_id=tree.trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=tree.at(0) // 1_000_000,
        execution_duration=round(answer.seconds * 1000),
        state=TraceState.OK,
        request_preview=plain_text(traced.question)[:_PREVIEW],
        response_preview=plain_text(answer.text)[:_PREVIEW],
        trace_metadata={name: plain_text(value)[:_METADATA] for name, value in metadata.items() if value},
        tags={constant.TraceTagKey.TRACE_NAME: NAME},
    )


class _Tree:
    """The spans of an answer: the agent, and under it requests to the model and tools."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._begin_ns = round(traced.began.timestamp() * 1_000_000) * 1000
        self._trace = secrets.token_bytes(16)
        self._agent = secrets.token_bytes(8)
        self.trace_id = f"tr-{self._trace.hex()}"

    def at(self, seconds: float) -> int:
        """A time of the answer in nanoseconds since 1970."""
        return self._begin_ns + round(seconds * 1e9)

    def cost(self) -> dict[str, float]:
        """What all requests cost together, in MLflow's form; empty where one of them is not known."""
        costs = [self._cost(each.usage) for each in self._traced.answer.rounds]
        if not costs or not all(costs):
            return {}
        return {name: sum(each[name] for each in costs) for name in costs[0]}

    def spans(self) -> list[dict[str, Any]]:
        """All of them in the form of `mlflow.entities.Span.from_dict`, the agent first."""
        from mlflow.entities import SpanType

        traced, answer = self._traced, self._traced.answer
        more = {
            MODEL: answer.model,
            STOPPED: answer.stopped,
            "ftlab.notes": answer.notes,
            "ftlab.unverified": answer.unverified,
            "ftlab.first_token_s": answer.first_token_s,
        }
        found = [
            self._span(
                NAME,
                SpanType.AGENT,
                (0.0, answer.seconds),
                {"question": traced.question},
                {"answer": answer.text},
                {name: value for name, value in more.items() if value not in (None, "", ())},
                is_agent=True,
            )
        ]
        heard: list[dict[str, Any]] = [{"role": "user", "content": traced.question}]
        for each in answer.rounds:
            if traced.model:
                found.append(self._request(traced.model, each, heard))
            found += [self._tool(run) for run in each.runs]
            heard = [_told(run) for run in each.runs]
        return found

    def _request(self, model: Model, each: Round, heard: list[dict[str, Any]]) -> dict[str, Any]:
        from mlflow.entities import SpanType
        from mlflow.tracing.constant import SpanAttributeKey

        more: dict[str, Any] = {MODEL: model.id, SpanAttributeKey.MODEL_PROVIDER: model.provider}
        if each.usage:
            more[SpanAttributeKey.CHAT_USAGE] = _tokens(each.usage)
        if cost := self._cost(each.usage):
            more[SpanAttributeKey.LLM_COST] = cost
            more[SpanAttributeKey.MODEL] = model.name
        # In the form of OpenAI's messages, which MLflow's UI shows as a conversation.
        calls = [
            {
                "id": run.id,
                "type": "function",
                "function": {"name": run.name, "arguments": each.asked.get(run.id)},
            }
            for run in each.runs
        ]
        said = {"role": "assistant", "content": each.text} | ({"tool_calls": calls} if calls else {})
        times = (each.started, each.seconds)
        inputs, outputs = {"messages": heard}, {"choices": [{"index": 0, "message": said}]}
        return self._span(model.name, SpanType.CHAT_MODEL, times, inputs, outputs, more)

    def _tool(self, run: ToolRun) -> dict[str, Any]:
        from mlflow.entities import SpanType

        error = None if run.ok else str(run.result.get("error", "failed"))
        times = (run.started, run.seconds)
        return self._span(run.name, SpanType.TOOL, times, run.arguments, run.result, {}, error)

    def _cost(self, usage: Usage | None) -> dict[str, float]:
        """What one request cost, in MLflow's form; empty where that, or what all cost, is not known."""
        model = self._traced.model
        if usage is None or model is None or model.price is None or self._traced.answer.cost_usd is None:
            return {}
        total = model.price.cost(usage)
        of_input = model.price.cost(dataclasses.replace(usage, output_tokens=0))
        return {"input_cost": of_input, "output_cost": total - of_input, "total_cost": total}

    def _span(
        self,
        name: str,
        kind: str,
        times: tuple[float, float],
        inputs: Any,
        outputs: Any,
        more: Mapping[str, Any],
        error: str | None = None,
        *,
        is_agent: bool = False,
    ) -> dict[str, Any]:
        from mlflow.tracing.constant import SpanAttributeKey

        started, seconds = times
        attributes = {
            SpanAttributeKey.REQUEST_ID: self.trace_id,
            SpanAttributeKey.SPAN_TYPE: kind,
            SpanAttributeKey.INPUTS: inputs,
            SpanAttributeKey.OUTPUTS: outputs,
            **more,
        }
        return {
            "trace_id": _encoded(self._trace),
            "span_id": _encoded(self._agent if is_agent else secrets.token_bytes(8)),
            "parent_span_id": None if is_agent else _encoded(self._agent),
            "name": plain_text(name)[:_METADATA] or kind,
            "start_time_unix_nano": self.at(started),
            "end_time_unix_nano": self.at(started + seconds),
            "status": {
                "code": "STATUS_CODE_ERROR" if error else "STATUS_CODE_OK",
                "message": plain_text(error or ""),
            },
            "attributes": {
                key: json.dumps(plain(value), ensure_ascii=False) for key, value in attributes.items()
            },
            "events": [],
        }


def _told(run: ToolRun) -> dict[str, Any]:
    return {
        "role": "tool",
        "tool_call_id": run.id,
        "content": json.dumps(plain(run.result), ensure_ascii=False),
    }


def _tokens(usage: Usage) -> dict[str, int]:
    """Tokens in MLflow's form, where the input includes the cached ones, too."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
    }


def _encoded(id: bytes) -> str:
    return base64.b64encode(id).decode()
