"""Where providers send requests: endpoints of the user's own, the gateway; and what they need."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from chat_requests import asked, told
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from model_servers import OpenAIServer, Reply
from provider_served import KEY, Make

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Price, Rates
from ftlab_mlflow.chat.provider import Surroundings
from ftlab_mlflow.chat.providers.gateway import Gateway
from ftlab_mlflow.chat.providers.local import Local
from ftlab_mlflow.errors import BadKey, ConfigError, MissingExtra, ModelNotUsable, ProviderUnavailable


def test_endpoints_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))
    with OpenAIServer([Reply("ok")], models=[{"id": "Org/m", "max_model_len": 4096}, "n"]) as server:
        (tmp_path / "models.toml").write_text(
            f'[endpoints.vllm]\nbase_url = "{server.base_url}"\n'
            f'[endpoints.named]\nbase_url = "{server.base_url}"\nmodels = ["a/b"]\nhas_tools = false\n'
            "context_tokens = 8\ninput_per_million = 0.0\noutput_per_million = 1.0\n"
            f'[endpoints.locked]\nbase_url = "{server.base_url}"\napi_key_env = "NOT_SET"\n'
            '[endpoints.gone]\nbase_url = "http://127.0.0.1:9/v1"\n'
        )
        found = Local(Surroundings()).endpoints()
        first, second = found["vllm"].models()
        assert (first.id, first.provider, first.context_tokens, first.price) == (
            "vllm/Org/m",
            "local",
            4096,
            None,
        )
        assert (second.id, second.context_tokens, second.has_tools) == ("vllm/n", None, True)
        (only,) = found["named"].models()
        assert (only.id, only.context_tokens, only.has_tools) == ("named/a/b", 8, False)
        assert only.price == Price((Rates(0.0, 1.0),))
        assert told(found["vllm"], asked("Hello?", model="Org/m"))[1].message.text == "ok"
    assert server.requests[0].headers["authorization"] == "Bearer no-key"
    assert server.requests[0].json["model"] == "Org/m"
    assert "NOT_SET" in (found["locked"].why_unavailable() or "")
    with pytest.raises(ModelNotUsable, match="NOT_SET"):
        found["locked"].models()
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        found["gone"].models()


def test_a_list_that_is_refused(make: Make) -> None:
    with OpenAIServer(key="another") as server:
        for name in ("local", "gateway"):
            with pytest.raises(BadKey) as raised:
                make(name, server).models()
            assert KEY not in str(raised.value)


def test_a_gateway_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in (None, "sqlite:////tmp/mlflow.db", "/tmp/mlruns", "databricks"):
        gateway = Gateway(Surroundings(uri))
        assert "MLFLOW_TRACKING_URI" in (gateway.why_unavailable() or "")
        with pytest.raises(ModelNotUsable):
            gateway.models()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/prefix/")
    assert Gateway(Surroundings()).why_unavailable() is None


def behind(name: str, *models: tuple[str, str]) -> dict[str, Any]:
    mappings = [
        {"model_definition": {"provider": provider, "model_name": model}, "linkage_type": "PRIMARY"}
        for provider, model in models
    ]
    return {"name": name, "model_mappings": mappings}


def test_a_gateway_endpoint_costs_what_its_only_model_does() -> None:
    endpoints = [
        behind("mini", ("openai", "gpt-4o-mini")),
        behind("two", ("openai", "gpt-4o-mini"), ("openai", "gpt-4o")),
        behind("odd", ("openai", "no-such-model")),
        behind("new", ("no-such-provider", "gpt-4o-mini")),
    ]
    pages = {"/api/3.0/mlflow/gateway/endpoints/list": {"endpoints": endpoints}}
    names = ["mini", "two", "odd", "new", "unlisted"]
    with OpenAIServer(models=names, pages=pages) as server:
        found = {model.name: model for model in Gateway(Surroundings(server.address + "/")).models()}
    known = catalog("openai")["gpt-4o-mini"]
    assert list(found) == names
    assert found["mini"].id == "gateway/mini"
    assert (found["mini"].price, found["mini"].context_tokens) == (known.price, known.context_tokens)
    assert [found[name].price for name in names[1:]] == [None] * 4


def test_a_gateway_is_asked_as_mlflow_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def sent(uri: str, **variables: str) -> str:
        for name in ("USERNAME", "PASSWORD", "TOKEN"):
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", variables.get(name.lower(), ""))
        server.listings.clear()
        Gateway(Surroundings(uri)).models()
        assert len({each.headers["authorization"] for each in server.listings}) == 1
        return server.listings[0].headers["authorization"]

    with OpenAIServer(models=["m"]) as server:
        assert sent(server.address, token="secret-token") == "Bearer secret-token"
        basic = "Basic bWU6c2VjcmV0"
        assert sent(server.address, username="me", password="secret", token="t") == basic
        assert sent(server.address.replace("//", "//me:secret@")) == basic
        (tmp_path / ".mlflow").mkdir()
        saved = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = secret\n"
        (tmp_path / ".mlflow" / "credentials").write_text(saved)
        assert sent(server.address) == basic
        (tmp_path / ".mlflow" / "credentials").write_text("no section")
        with pytest.raises(ConfigError, match="credentials cannot be read"):
            sent(server.address)


# --- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate of this machine, by no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem)
    )
    return path


def test_certificates_are_checked_as_mlflow_is_told(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with OpenAIServer(lambda request: Reply("ok"), tls=tls) as server:
        with pytest.raises(ProviderUnavailable, match="cannot be reached"):
            told(Gateway(Surroundings(server.address)))
        for name, value in (("INSECURE_TLS", "true"), ("SERVER_CERT_PATH", str(certificate))):
            with monkeypatch.context() as patch:
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
                assert told(Gateway(Surroundings(server.address)))[1].message.text == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", "/nowhere.pem")
    with pytest.raises(ConfigError, match="No such file"):
        told(Gateway(Surroundings(server.address)))


@pytest.mark.parametrize("has_headers", [True, False])
def test_leaving_ends_the_wait_over_tls(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, has_headers: bool
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    held = Reply("one two", hold=Event(), hold_headers=not has_headers)
    with OpenAIServer([held], tls=tls) as server:
        stream = Gateway(Surroundings(server.address)).stream(asked())
        pieces: list[Any] = []
        thread = Thread(target=lambda: pieces.extend(stream))
        thread.start()
        end = time.monotonic() + 10
        while not server.requests and time.monotonic() < end:
            time.sleep(0.005)
        stream.close()
        thread.join(1)
        assert not thread.is_alive()
        assert not pieces
        assert server.requests[0].gone.wait(5)


# --- all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "package"), [("openai", "openai"), ("anthropic", "anthropic")])
def test_without_its_sdk(make: Make, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    with OpenAIServer() as server:
        provider = make(name, server)
        monkeypatch.setitem(sys.modules, package, None)
        assert "pip install 'ftlab-mlflow[chat]'" in (provider.why_unavailable() or "")
        with pytest.raises(MissingExtra):
            told(provider)


def test_providers_load_no_sdk_until_they_are_asked() -> None:
    script = (
        "import sys\n"
        "from ftlab_mlflow.chat.provider import Surroundings\n"
        "from ftlab_mlflow.chat.providers import anthropic, gateway, local, openai, xai\n"
        "made = [kind(Surroundings()) for kind in "
        "(openai.OpenAI, anthropic.Anthropic, xai.XAI, gateway.Gateway)]\n"
        "[each.why_unavailable() for each in (*made, *local.Local(Surroundings()).endpoints().values())]\n"
        "heavy = {'openai', 'anthropic', 'httpx2', 'mlflow', 'torch', 'streamlit', 'pandas'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
