"""`Endpoint`: an OpenAI-compatible server of the user's own, from `models.toml` or the environment."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ftlab_mlflow.chat.model import Price, Rates
from ftlab_mlflow.control.wire import shown
from ftlab_mlflow.errors import ConfigError

PROVIDER_NAMES = ("openai", "anthropic", "xai", "gateway")
"""What no endpoint may be named, since ids of models begin with it: `openai/gpt-4o-mini`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_OLLAMA_PORT = {"": 11434, "http": 80, "https": 443}
_MOST_TOKENS = 10**12


@dataclass(frozen=True)
class Endpoint:
    """A named server that speaks OpenAI's chat completions.

    Attributes:
        name: What ids of its models begin with: `ollama` of `ollama/qwen3:8b`.
        base_url: Up to and with `/v1`, without a slash at its end.
        api_key_env: The variable that holds its key; None: it asks for none.
        models: What it serves; empty: it is asked.
        has_tools: Whether its models can call functions.
        context_tokens: What its models take; None: not known.
        price: None: not known, which is not 0.
    """

    name: str
    base_url: str
    api_key_env: str | None = None
    models: tuple[str, ...] = ()
    has_tools: bool = True
    context_tokens: int | None = None
    price: Price | None = None


def models_file() -> Path:
    """Where `models.toml` is looked for: ``FTLAB_MODELS``, else `ftlab/models.toml` in ``$XDG_CONFIG_HOME``
    or `~/.config`. It need not exist."""
    if given := os.environ.get("FTLAB_MODELS"):
        return Path(given).expanduser()
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "ftlab" / "models.toml"


def endpoints() -> Mapping[str, Endpoint]:
    """All endpoints by name, in the order of `models.toml`.

    Where that has none, there is `ollama` at ``OLLAMA_HOST``, by default on this machine. ``LOCAL_BASE_URL``
    makes one more, `local`, with the key in ``LOCAL_API_KEY`` if that is set; it goes before one of the same
    name in the file, of which nothing is used then.

    Raises:
        ConfigError: The file or a variable is wrong. The text names the place and what is allowed, and holds
            no value from there, which may be a key.
    """
    found = _from_file(models_file()) or {"ollama": Endpoint("ollama", _ollama_url())}
    if url := os.environ.get("LOCAL_BASE_URL"):
        key = "LOCAL_API_KEY" if os.environ.get("LOCAL_API_KEY") else None
        found["local"] = Endpoint("local", _url(url, "LOCAL_BASE_URL"), key)
    return found


# --- models.toml -------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    fits: Callable[[Any], bool]
    allowed: str


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and 0 <= value < math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_TOKENS


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value)


_DOLLARS = _Kind(_is_number, "US dollars per million tokens, a number from 0")
_KINDS = {
    "base_url": _Kind(lambda value: isinstance(value, str), "a text such as http://127.0.0.1:8000/v1"),
    "api_key_env": _Kind(
        lambda value: isinstance(value, str) and _VARIABLE.fullmatch(value) is not None,
        "the name of the variable that holds the key, such as VLLM_API_KEY (capitals, digits and _), "
        "not the key",
    ),
    "models": _Kind(_is_names, 'a list of names such as ["Qwen/Qwen3-8B"]'),
    "has_tools": _Kind(lambda value: isinstance(value, bool), "true or false"),
    "context_tokens": _Kind(_is_count, f"a whole number of tokens from 1 to {_MOST_TOKENS}"),
    "input_per_million": _DOLLARS,
    "output_per_million": _DOLLARS,
    "cached_per_million": _DOLLARS,
}
_KEYS_BY_VALUE = ("api_key", "apikey", "key", "token", "api_token", "secret", "password", "authorization")


def _from_file(file: Path) -> dict[str, Endpoint]:
    try:
        data = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} must be UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its path or a number in it cannot be used"
        raise ConfigError(f"{file} cannot be read: {reason}") from error
    for key in data:
        if key != "endpoints":
            raise ConfigError(_unknown(f"{file}: {shown(key)}", key, ["endpoints"]))
    tables = data.get("endpoints", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{file}: endpoints must be tables such as [endpoints.vllm]")
    return {name: _endpoint(name, table, file) for name, table in tables.items()}


def _endpoint(name: str, table: Any, file: Path) -> Endpoint:
    place = f"{file}: endpoints.{name if _NAME.fullmatch(name) else shown(name)}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: a name may have letters, digits, '.', '_' and '-', and no '/'")
    if name.casefold() in PROVIDER_NAMES:
        raise ConfigError(f"{place}: {', '.join(PROVIDER_NAMES)} are names of providers; choose another one")
    if not isinstance(table, dict):
        raise ConfigError(f"{place} must be a table with base_url")
    for key, value in table.items():
        _check(place, key, value)
    if "base_url" not in table:
        raise ConfigError(f"{place}.base_url is missing: {_KINDS['base_url'].allowed}")
    return Endpoint(
        name,
        _url(table["base_url"], f"{place}.base_url"),
        table.get("api_key_env"),
        tuple(dict.fromkeys(table.get("models", ()))),
        table.get("has_tools", True),
        table.get("context_tokens"),
        _price(table, place),
    )


def _check(place: str, key: str, value: Any) -> None:
    where = f"{place}.{key if key.isidentifier() else shown(key)}"
    if key.casefold().replace("-", "_") in _KEYS_BY_VALUE:
        raise ConfigError(
            f"{where}: no key may stand in this file; set a variable to it, and here api_key_env to the name "
            "of that variable"
        )
    if key not in _KINDS:
        raise ConfigError(_unknown(where, key, list(_KINDS)))
    if not _KINDS[key].fits(value):
        raise ConfigError(f"{where} must be {_KINDS[key].allowed}")


def _unknown(where: str, key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{where} is not known{meant} there may be {', '.join(allowed)}"


def _price(table: Mapping[str, Any], place: str) -> Price | None:
    read, write, cached = (table.get(f"{key}_per_million") for key in ("input", "output", "cached"))
    if read is None and write is None and cached is None:
        return None
    if read is None or write is None:
        missing = "input" if read is None else "output"
        raise ConfigError(f"{place}.{missing}_per_million is missing: a price has input and output")
    return Price((Rates(read, write, cached),))


def _url(text: str, place: str) -> str:
    """An address that requests can be sent to, without a slash at its end."""
    wrong = f"{place} must be an address such as http://127.0.0.1:8000/v1"
    if any(not c.isprintable() or c == " " for c in text):
        raise ConfigError(f"{wrong}, without blanks")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{wrong}; its host or port cannot be read") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{wrong}: http:// or https://, then a host")
    if "@" in parts.netloc:
        raise ConfigError(f"{wrong}, without user and password; api_key_env names the variable with the key")
    if "?" in text or "#" in text:
        raise ConfigError(f"{wrong}, without ? and #")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"{wrong}, and end before /chat/completions")
    return text.rstrip("/")


# --- Ollama ------------------------------------------------------------------------------------------


def _ollama_url() -> str:
    """The address that Ollama's own client uses.

    ``OLLAMA_HOST`` is `[scheme://]host[:port][/path]`, each part of which may be missing. What tells a server
    to listen on all addresses (`0.0.0.0`) is reached on this machine's own.
    """
    scheme, _, rest = (os.environ.get("OLLAMA_HOST") or "").strip().rpartition("://")
    place, _, path = rest.partition("/")
    netloc = _host_and_port(place, _OLLAMA_PORT.get(scheme, 0))
    url = _url(f"{scheme or 'http'}://{netloc}/{path}", "OLLAMA_HOST")
    return url if url.endswith("/v1") else f"{url}/v1"


def _host_and_port(text: str, default_port: int) -> str:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:  # IPv6 without brackets
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if host in ("", "0.0.0.0"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"[{host}]:{port or default_port}" if ":" in host else f"{host}:{port or default_port}"
