"""What OpenAI and xAI share: models of the catalog over chat completions, with a key and an address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Literal

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.chat.providers.completions import Completions
from ftlab_mlflow.chat.providers.connection import Streaming
from ftlab_mlflow.chat.providers.service import Service, key_in, why_no_key, why_no_sdk
from ftlab_mlflow.errors import ModelNotUsable


class Catalogued:
    """A provider that has a catalog, a key and an address; which ones, its subclass says.

    Attributes:
        key_from, address_from: Variables. default_address: Where no address is set.
        limit: How its servers spell the limit of output.
        has_organizations: See `Service`.
    """

    name: str
    key_from: ClassVar[str]
    address_from: ClassVar[str]
    default_address: ClassVar[str]
    limit: ClassVar[Literal["max_tokens", "max_completion_tokens"]] = "max_tokens"
    has_organizations: ClassVar[bool] = False

    def __init__(self, surroundings: Surroundings) -> None:
        self._completions = Completions(self.name, self.limit)

    def why_unavailable(self) -> str | None:
        """See `Provider`."""
        return why_no_sdk("openai") or why_no_key(self.name, self.key_from)

    def models(self) -> Sequence[Model]:
        """See `Provider`."""
        return list(catalog(self.name).values())

    def stream(self, request: Request) -> Streaming:
        """See `Provider`."""
        if reason := why_no_key(self.name, self.key_from):
            raise ModelNotUsable(reason)
        service = Service(
            self.name,
            (os.environ.get(self.address_from) or "").strip() or self.default_address,
            key_in(self.key_from) or "",
            self.key_from,
            address_from=self.address_from,
            has_organizations=self.has_organizations,
        )
        return self._completions.stream(service, request)
