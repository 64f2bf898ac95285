"""xAI's models, over OpenAI's SDK, whose wire format they speak."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.chat.providers.completions import Completions
from ftlab_mlflow.chat.providers.connection import Streaming
from ftlab_mlflow.chat.providers.service import Service, key_in, why_no_key, why_no_sdk
from ftlab_mlflow.errors import ModelNotUsable

_KEY = "XAI_API_KEY"
_ADDRESS = "XAI_BASE_URL"
_DEFAULT_ADDRESS = "https://api.x.ai/v1"


class XAI:
    """Provider `xai`."""

    name = "xai"

    def __init__(self, surroundings: Surroundings) -> None:
        self._completions = Completions(self.name)

    def why_unavailable(self) -> str | None:
        """See `Provider`."""
        return why_no_sdk("openai") or why_no_key(self.name, _KEY)

    def models(self) -> Sequence[Model]:
        """See `Provider`."""
        return list(catalog(self.name).values())

    def stream(self, request: Request) -> Streaming:
        """See `Provider`."""
        if reason := why_no_key(self.name, _KEY):
            raise ModelNotUsable(reason)
        address = (os.environ.get(_ADDRESS) or "").strip() or _DEFAULT_ADDRESS
        service = Service(self.name, address, key_in(_KEY) or "", _KEY, address_from=_ADDRESS)
        return self._completions.stream(service, request)
