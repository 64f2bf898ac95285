"""Models behind MLflow's AI Gateway, which the tracking server serves: over OpenAI's SDK."""

from __future__ import annotations

import base64
import configparser
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.chat.providers.completions import Completions
from ftlab_mlflow.chat.providers.connection import Streaming, shared_tls
from ftlab_mlflow.chat.providers.service import NO_KEY, Service, why_no_sdk
from ftlab_mlflow.errors import ChatError, ConfigError, ModelNotUsable

_LIST_S = 5.0
_PATH = "/gateway/mlflow/v1"
_ENDPOINTS_PATH = "/api/3.0/mlflow/gateway/endpoints/list"
_KEY_FROM = (
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and the key of the "
    "endpoint in MLflow"
)


class Gateway:
    """Provider `gateway`: a model is an endpoint of the AI Gateway at the tracking URI."""

    name = "gateway"

    def __init__(self, surroundings: Surroundings) -> None:
        self._uri = (surroundings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "").rstrip("/")
        self._completions = Completions(self.name, options=_tls)

    def why_unavailable(self) -> str | None:
        """See `Provider`."""
        if not re.match(r"https?://", self._uri, re.IGNORECASE):
            return (
                "MLflow's AI Gateway is part of a tracking server, and the tracking URI is no address of "
                "one: set MLFLOW_TRACKING_URI to its http(s) address"
            )
        return why_no_sdk("openai")

    def models(self) -> Sequence[Model]:
        """Its endpoints. Price and context are known for one that leads to a single model of the catalog.

        See `Provider`.
        """
        service = self._service()
        names = [each.id for each in self._completions.listed(service, _LIST_S)]
        behind = _single_models(self._endpoints(service))
        return [_model(name, behind.get(name)) for name in names]

    def stream(self, request: Request) -> Streaming:
        """See `Provider`."""
        return self._completions.stream(self._service(), request)

    def _service(self) -> Service:
        if reason := self.why_unavailable():
            raise ModelNotUsable(reason)
        parts = urlsplit(self._uri)
        address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return Service(
            self.name,
            address + _PATH,
            os.environ.get("MLFLOW_TRACKING_TOKEN") or NO_KEY,
            _KEY_FROM,
            _basic(parts.username, parts.password),
            address_from="MLFLOW_TRACKING_URI",
        )

    def _endpoints(self, service: Service) -> list[Any]:
        """What MLflow tells of the endpoints; nothing where it is older, or does not tell this user."""
        url = service.base_url.removesuffix(_PATH) + _ENDPOINTS_PATH
        headers = {"Authorization": f"Bearer {service.key}", **service.headers}
        found = self._completions.json_at(service, url, headers, _LIST_S)
        endpoints = found.get("endpoints") if isinstance(found, Mapping) else None
        return endpoints if isinstance(endpoints, list) else []


def _single_models(endpoints: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """The provider and model of each endpoint that has one only, without traffic split and fallback."""
    found = {}
    for endpoint in endpoints:
        mappings = endpoint.get("model_mappings") or []
        if len(mappings) == 1:
            definition = mappings[0].get("model_definition") or {}
            found[str(endpoint.get("name"))] = (
                str(definition.get("provider")),
                str(definition.get("model_name")),
            )
    return found


def _model(name: str, behind: tuple[str, str] | None) -> Model:
    if behind is None:
        return Model("gateway", name, "gateway")
    try:
        known = catalog(behind[0]).get(behind[1])
    except ChatError:  # MLflow serves more providers than its catalog knows
        known = None
    if known is None:
        return Model("gateway", name, "gateway")
    # Whether it retires is the matter of who runs the gateway; a successor's name would be none here.
    return replace(known, provider="gateway", name=name, endpoint="gateway", retires=None, successor=None)


# --- as MLflow's own clients do ----------------------------------------------------------------------


def _basic(uri_user: str | None, uri_password: str | None) -> dict[str, str]:
    """The header of user and password, if there are some; they go before a token."""
    saved = configparser.ConfigParser(interpolation=None)
    try:
        saved.read(Path.home() / ".mlflow" / "credentials")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"~/.mlflow/credentials cannot be read: {type(error).__name__}") from None
    user, password = (
        os.environ.get(variable) or saved.get("mlflow", variable.lower(), fallback=None)
        for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    )
    if uri_user and uri_password:
        user, password = unquote(uri_user), unquote(uri_password)
    if not (user and password):
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _tls() -> Mapping[str, Any]:
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    authority = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    own = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    if not (insecure or authority or own):
        return {"verify": shared_tls()}
    try:
        context = ssl.create_default_context(cafile=authority)
        if own:
            context.load_cert_chain(own)
    except OSError as error:
        text = "MLFLOW_TRACKING_SERVER_CERT_PATH or MLFLOW_TRACKING_CLIENT_CERT_PATH"
        raise ConfigError(f"{text} names no certificate that can be read: {error.strerror}") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return {"verify": context}
