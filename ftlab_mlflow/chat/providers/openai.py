"""OpenAI, or whatever answers at ``OPENAI_BASE_URL``."""

from __future__ import annotations

from ftlab_mlflow.chat.providers.catalogued import Catalogued


class OpenAI(Catalogued):
    """Provider `openai`."""

    name = "openai"
    key_from = "OPENAI_API_KEY"
    address_from = "OPENAI_BASE_URL"
    default_address = "https://api.openai.com/v1"
    limit = "max_completion_tokens"
    has_organizations = True
