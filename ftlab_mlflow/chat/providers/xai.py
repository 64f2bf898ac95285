"""xAI: chat completions, in which a reply's tokens may leave out those of its thinking."""

from __future__ import annotations

from ftlab_mlflow.chat.providers.catalogued import Catalogued


class XAI(Catalogued):
    """Provider `xai`."""

    name = "xai"
    key_from = "XAI_API_KEY"
    address_from = "XAI_BASE_URL"
    default_address = "https://api.x.ai/v1"
