"""`models.toml` and the environment, as endpoints; what is wrong there is said without repeating it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftlab_mlflow.chat.endpoints import Endpoint, endpoints, models_file
from ftlab_mlflow.chat.model import Price, Rates
from ftlab_mlflow.errors import ConfigError

Write = Callable[[str], Path]
SECRET = "sk-proj-Zx81secret"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LOCAL_BASE_URL", "LOCAL_API_KEY", "OLLAMA_HOST", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """``write(text)`` is this test's `models.toml`."""

    def make(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text, "utf-8")
        return path

    return make


def refused(write: Write, text: str) -> str:
    """The error that a file is refused with; it names the file."""
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        endpoints()
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said[len(str(path)) :]


# --- what is right -----------------------------------------------------------------------------------


def test_all_that_can_be_said_of_an_endpoint(write: Write) -> None:
    write(
        """
        [endpoints.vllm]
        base_url = "https://gpu.example:8000/v1/"
        api_key_env = "VLLM_API_KEY"
        models = ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "b"]
        has_tools = false
        context_tokens = 32768
        input_per_million = 0.5
        output_per_million = 2
        cached_per_million = 0

        [endpoints."llama.cpp-2"]
        base_url = "HTTP://[::1]:8080/v1"
        """
    )
    found = endpoints()
    assert list(found) == ["vllm", "llama.cpp-2"]
    assert found["vllm"] == Endpoint(
        name="vllm",
        base_url="https://gpu.example:8000/v1",
        api_key_env="VLLM_API_KEY",
        models=("Qwen/Qwen3-8B", "b"),
        has_tools=False,
        context_tokens=32768,
        price=Price((Rates(0.5, 2, 0),)),
    )
    assert found["llama.cpp-2"] == Endpoint("llama.cpp-2", "HTTP://[::1]:8080/v1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found["vllm"].name = "other"  # type: ignore[misc]


def test_a_price_that_is_not_stated_is_unknown_and_one_of_0_is_0(write: Write) -> None:
    write(
        """
        [endpoints.a]
        base_url = "http://a/v1"
        [endpoints.b]
        base_url = "http://b/v1"
        input_per_million = 0
        output_per_million = 0.0
        """
    )
    found = endpoints()
    assert found["a"].price is None
    assert found["b"].price == Price((Rates(0, 0),))


@pytest.mark.parametrize("text", [None, "", "[endpoints]", "# nothing yet"])
def test_without_any_endpoint_there_is_ollama(text: str | None, write: Write) -> None:
    if text is not None:
        write(text)
    assert endpoints() == {"ollama": Endpoint("ollama", "http://127.0.0.1:11434/v1")}


def test_with_an_endpoint_there_is_no_ollama(write: Write) -> None:
    write('[endpoints.mine]\nbase_url = "http://127.0.0.1:1/v1"')
    assert list(endpoints()) == ["mine"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080/v1"),
        (":8080", "http://127.0.0.1:8080/v1"),
        ("box", "http://box:11434/v1"),
        ("10.1.2.3:99", "http://10.1.2.3:99/v1"),
        ("http://box:1234", "http://box:1234/v1"),
        ("http://box", "http://box:80/v1"),
        ("https://box/", "https://box:443/v1"),
        ("https://box/ollama", "https://box:443/ollama/v1"),
        ("http://box:1/v1", "http://box:1/v1"),
        ("::1", "http://[::1]:11434/v1"),
        ("::", "http://[::1]:11434/v1"),
        ("[fe80::1]:99", "http://[fe80::1]:99/v1"),
        (" box \n", "http://box:11434/v1"),
    ],
)
def test_ollama_is_where_its_own_client_looks(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert endpoints()["ollama"].base_url == url


@pytest.mark.parametrize("host", ["ftp://box", "box:port", "box:99999", "a b", f"me:{SECRET}@box"])
def test_an_ollama_host_that_is_none_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(ConfigError, match=r"^OLLAMA_HOST must be an address such as http://") as caught:
        endpoints()
    assert SECRET not in str(caught.value)


def test_the_environment_adds_one_named_local(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_BASE_URL", "http://box:8000/v1/")
    assert list(endpoints()) == ["ollama", "local"]
    assert endpoints()["local"] == Endpoint("local", "http://box:8000/v1")
    monkeypatch.setenv("LOCAL_API_KEY", SECRET)
    assert endpoints()["local"] == Endpoint("local", "http://box:8000/v1", "LOCAL_API_KEY")
    assert SECRET not in repr(endpoints())
    write('[endpoints.local]\nbase_url = "http://file/v1"\napi_key_env = "OF_FILE"\nhas_tools = false')
    # All of it, or a key would go to a server that it is not for.
    assert endpoints()["local"] == Endpoint("local", "http://box:8000/v1", "LOCAL_API_KEY")
    monkeypatch.setenv("LOCAL_BASE_URL", "")
    assert endpoints()["local"].base_url == "http://file/v1"


def test_a_local_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_BASE_URL", "localhost:8000")
    with pytest.raises(ConfigError, match=r"^LOCAL_BASE_URL must be an address such as http://"):
        endpoints()


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_file() == tmp_path / "models.toml"
    monkeypatch.setenv("FTLAB_MODELS", "~/mine.toml")
    assert models_file() == tmp_path / "mine.toml"
    monkeypatch.setenv("FTLAB_MODELS", "")
    assert models_file() == tmp_path / ".config" / "ftlab" / "models.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert models_file() == tmp_path / "xdg" / "ftlab" / "models.toml"
    (tmp_path / "xdg" / "ftlab").mkdir(parents=True)
    models_file().write_text('\ufeff[endpoints.mine]\nbase_url = "http://x/v1"', "utf-8")  # as Windows writes
    assert list(endpoints()) == ["mine"]


# --- what is wrong -----------------------------------------------------------------------------------

OK = '[endpoints.vllm]\nbase_url = "http://127.0.0.1:8000/v1"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[endpoint.vllm]", '"endpoint" is not known; did you mean endpoints?'),
        ("models = 1", '"models" is not known; there may be endpoints'),
        ("endpoints = 1", "endpoints must be tables such as [endpoints.vllm]"),
        ("[[endpoints]]", "endpoints must be tables such as [endpoints.vllm]"),
        ("[endpoints]\nvllm = 1", "endpoints.vllm must be a table with base_url"),
        ("[endpoints.vllm]", "endpoints.vllm.base_url is missing: a text such as http://127.0.0.1:8000/v1"),
        (OK + 'base_uri = "x"', "endpoints.vllm.base_uri is not known; did you mean base_url?"),
        (OK + "zzz = 1", "endpoints.vllm.zzz is not known; there may be base_url, api_key_env, models"),
        (OK + '"a b" = 1', 'endpoints.vllm."a b" is not known'),
        (OK + "has_tools = 1", "endpoints.vllm.has_tools must be true or false"),
        (OK + 'models = "one"', 'endpoints.vllm.models must be a list of names such as ["Qwen/Qwen3-8B"]'),
        (OK + "models = [1]", "endpoints.vllm.models must be a list of names"),
        (OK + 'models = [" "]', "endpoints.vllm.models must be a list of names"),
        (OK + "context_tokens = 0", "endpoints.vllm.context_tokens must be a whole number of tokens from 1"),
        (OK + "context_tokens = 1.5", "endpoints.vllm.context_tokens must be a whole number"),
        (OK + "context_tokens = true", "endpoints.vllm.context_tokens must be a whole number"),
        (OK + "context_tokens = 99999999999999", "endpoints.vllm.context_tokens must be a whole number"),
        (OK + "input_per_million = -1", "endpoints.vllm.input_per_million must be US dollars per million"),
        (OK + "input_per_million = nan", "endpoints.vllm.input_per_million must be US dollars"),
        (OK + "input_per_million = inf", "endpoints.vllm.input_per_million must be US dollars"),
        (OK + "input_per_million = true", "endpoints.vllm.input_per_million must be US dollars"),
        (OK + 'input_per_million = "1"', "endpoints.vllm.input_per_million must be US dollars"),
        (OK + "input_per_million = 1", "endpoints.vllm.output_per_million is missing"),
        (OK + "output_per_million = 1", "endpoints.vllm.input_per_million is missing"),
        (OK + "cached_per_million = 1", "endpoints.vllm.input_per_million is missing"),
        ("[endpoints.vllm]\nbase_url = 1", "endpoints.vllm.base_url must be a text such as http://"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(text: str, said: str, write: Write) -> None:
    assert refused(write, text).startswith(f": {said}")


@pytest.mark.parametrize("name", ["openai", "anthropic", "xai", "gateway", "OpenAI"])
def test_an_endpoint_cannot_be_named_like_a_provider(name: str, write: Write) -> None:
    said = refused(write, f'[endpoints.{name}]\nbase_url = "http://x/v1"')
    assert said.startswith(f": endpoints.{name}: openai, anthropic, xai, gateway are names of providers")


@pytest.mark.parametrize("name", ["a/b", "", " a", "a b", "-a", "ä", "a\\u001b"])
def test_a_name_that_no_id_can_begin_with_is_refused(name: str, write: Write) -> None:
    said = refused(write, f'[endpoints."{name}"]\nbase_url = "http://x/v1"')
    assert "a name may have letters, digits" in said
    assert said.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000/v1",
        "localhost:8000",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://box:port/v1",
        "http://box:99999/v1",
        "http://[::1/v1",
        "http://box /v1",
        "http://box/v1?api_key=" + SECRET,
        "http://box/v1#" + SECRET,
        f"http://me:{SECRET}@box/v1",
        f"http://{SECRET}@box/v1",
        "http://box/v1/chat/completions",
        "http://box/v1/chat/completions/",
    ],
)
def test_a_base_url_that_is_none_is_refused_and_not_repeated(url: str, write: Write) -> None:
    said = refused(write, f'[endpoints.vllm]\nbase_url = "{url}"')
    assert said.startswith(": endpoints.vllm.base_url must be an address such as http://127.0.0.1:8000/v1")
    assert SECRET not in said


@pytest.mark.parametrize("key", ["api_key", "API_KEY", "api-key", "apikey", "key", "token", "password"])
def test_a_key_by_value_is_refused_and_not_repeated(key: str, write: Write) -> None:
    said = refused(write, OK + f'{key} = "{SECRET}"')
    assert said.startswith(
        f": endpoints.vllm.{key if '-' not in key else chr(34) + key + chr(34)}: no key may"
    )
    assert "api_key_env" in said
    assert SECRET not in said


@pytest.mark.parametrize("value", [f'"{SECRET}"', '"0a1b2c3d4e5f"', '""', "1", '["A"]', '"A B"', '"Ab"'])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(value: str, write: Write) -> None:
    said = refused(write, OK + f"api_key_env = {value}")
    assert said.startswith(": endpoints.vllm.api_key_env must be the name of the variable")
    assert SECRET not in said
    assert "0a1b" not in said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[endpoints.vllm]\nbase_url = http://x", "line 2"),
        (OK + f"api_key_env = {SECRET}", "line 3"),
        (OK + OK, "line 3"),
        (OK + 'base_url = "http://x/v1"', ""),
    ],
)
def test_broken_toml_is_named_with_its_line(text: str, place: str, write: Write) -> None:
    said = refused(write, text)
    assert said.startswith(" is no TOML: ")
    assert place in said
    assert SECRET not in said


def test_a_file_that_is_no_text_or_no_file_is_refused(write: Write, tmp_path: Path) -> None:
    path = write("")
    path.write_bytes(b"# \xff\xfe")
    with pytest.raises(ConfigError, match="must be UTF-8 text: invalid start byte at byte 2"):
        endpoints()
    assert "nested too deeply" in refused(write, "a = " + "[" * 100_000)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        endpoints()
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_MODELS", str(tmp_path / "file" / "models.toml"))
        with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
            endpoints()
        patch.setenv("FTLAB_MODELS", str(tmp_path / ("n" * 300)))
        with pytest.raises(ConfigError, match="cannot be read: File name too long"):
            endpoints()


def test_a_number_that_python_refuses_to_read_is_an_error_of_the_file(write: Write) -> None:
    assert "cannot be read" in refused(write, OK + "context_tokens = " + "9" * 5000)
