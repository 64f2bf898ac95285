"""An OpenID Connect provider on a loopback port: discovery, sign-in form, code, signed id_token, keys."""

from __future__ import annotations

import base64
import html
import json
import secrets
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


class Provider:
    """The provider and its only client.

    Attributes:
        claims: What the id_token says of who signs in, besides what the form was given.
        granted: The id_tokens' claims, in order.
    """

    def __init__(self, **claims: Any) -> None:
        self.client_id, self.client_secret = "dashboard", secrets.token_hex(16)
        self.claims = claims
        self.granted: list[dict[str, Any]] = []
        self.key = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"}, private=True)
        self.codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.provider = provider
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def secrets_toml(self, dashboard_url: str, section: str = "auth") -> str:
        """What the dashboard's secrets.toml says of this provider."""
        shared = (
            f'redirect_uri = "{dashboard_url}/oauth2callback"\ncookie_secret = "{secrets.token_hex(32)}"\n'
        )
        named = f"[{section}]\n" if section != "auth" else ""
        return (
            f'[auth]\n{shared}{named}client_id = "{self.client_id}"\nclient_secret = "{self.client_secret}"\n'
            f'server_metadata_url = "{self.issuer}/.well-known/openid-configuration"\n'
        )

    def id_token(self, asked: Mapping[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
        }
        claims |= {"sub": f"user-{asked['email']}", "email": asked["email"], **self.claims}
        self.granted.append(claims)
        return jwt.encode({"alg": "RS256", "kid": "k1"}, claims, self.key)


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        provider = self.provider
        if url.path == "/.well-known/openid-configuration":
            self._json(
                {
                    "issuer": provider.issuer,
                    "authorization_endpoint": f"{provider.issuer}/authorize",
                    "token_endpoint": f"{provider.issuer}/token",
                    "jwks_uri": f"{provider.issuer}/keys",
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        elif url.path == "/keys":
            self._json({"keys": [provider.key.as_dict(private=False)]})
        elif url.path == "/authorize":
            self._form(dict(parse_qsl(url.query)))
        else:
            self.send_error(204 if url.path == "/favicon.ico" else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        fields = {name: values[0] for name, values in parse_qs(body).items()}
        if urlsplit(self.path).path == "/authorize":
            self._grant(fields)
        else:
            self._token(fields)

    def _form(self, asked: Mapping[str, str]) -> None:
        right = asked.get("client_id") == self.provider.client_id and asked.get("response_type") == "code"
        if not right or "openid" not in asked.get("scope", "").split() or "nonce" not in asked:
            self.send_error(400, "no OpenID Connect request of the client")
            return
        hidden = "".join(
            f'<input type="hidden" name="{name}" value="{html.escape(asked[name])}">'
            for name in ("redirect_uri", "state", "nonce")
        )
        form = f'{hidden}<input name="email" aria-label="E-mail"><button>Continue</button>'
        page = f'<!doctype html><title>Provider</title><form method="post">{form}</form>'
        self._answer(200, page.encode(), "text/html")

    def _grant(self, fields: Mapping[str, str]) -> None:
        code = secrets.token_urlsafe(16)
        self.provider.codes[code] = dict(fields)
        self.send_response(302)
        answer = urlencode({"code": code, "state": fields["state"]})
        self.send_header("Location", f"{fields['redirect_uri']}?{answer}")
        self.end_headers()

    def _token(self, fields: Mapping[str, str]) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        asked = self.provider.codes.pop(fields.get("code", ""), None)  # a code is good once
        is_client = (unquote(user), unquote(password)) == (
            self.provider.client_id,
            self.provider.client_secret,
        )
        if not is_client or asked is None or fields.get("redirect_uri") != asked["redirect_uri"]:
            self._json({"error": "invalid_grant"}, 400)
            return
        token = {"token_type": "Bearer", "expires_in": 300, "access_token": secrets.token_hex(8)}
        self._json(token | {"id_token": self.provider.id_token(asked)})

    def _json(self, document: Mapping[str, Any], status: int = 200) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""
