"""A pool that speaks TLS to clients with certificates and tokens, and lives on after those that have neither."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tfpool.errors import InvalidArgument
from tfpool.gateway.access import check_files
from tfpool.settings import GatewaySettings
from tfpool.testing.fake_worker import FakePool, model, until
from tfpool.testing.fronts import await_front, free_address

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl"),
]
LOOKER, CALLER, BOSS = "look-" + "a" * 20, "call-" + "b" * 20, "boss-" + "c" * 20


class Office:
    """Makes certificates in a directory: NAME.pem and NAME.key."""

    def __init__(self, place: Path) -> None:
        self._place = place
        for name in ("authority", "stranger"):
            self._openssl("req", "-x509", "-subj", f"/CN={name}", "-days", "2", *self._new(name), "-out", f"{name}.pem")

    def issue(self, name: str, authority: str = "authority", days: int = 2) -> tuple[str, str]:
        """The files of a certificate and its key."""
        (self._place / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl("req", "-subj", f"/CN={name}", *self._new(name), "-out", f"{name}.csr")
        signed_by = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "names")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-days", str(days), *signed_by, "-out", f"{name}.pem")
        return self.file(f"{name}.pem"), self.file(f"{name}.key")

    def file(self, name: str) -> str:
        return str(self._place / name)

    @staticmethod
    def _new(name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._place, check=True, capture_output=True)


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    place = Path(tempfile.mkdtemp(prefix="tfp-"))
    yield Office(place)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def guarded(office: Office) -> Iterator[FakePool]:
    """A pool whose gateway wants certificates and tokens."""
    cert, key = office.issue("server")
    tokens = Path(office.file("tokens"))
    tokens.touch(0o600)
    tokens.write_text(f"monitor {LOOKER}\npredict {CALLER}\nadmin {BOSS} ann\n")
    gateway = {
        "tls_cert": cert,
        "tls_key": key,
        "tls_client_ca": office.file("authority.pem"),
        "tokens": str(tokens),
    }
    place = Path(tempfile.mkdtemp(prefix="tfp-"))
    with FakePool(place, [model(place, "double")], server={"http": free_address()}, gateway=gateway) as made:
        await_front(str(made.settings.server.http))
        yield made
    shutil.rmtree(place)


def context(office: Office, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=office.file("authority.pem"))
    if certificate is not None:
        made.load_cert_chain(*certificate)
    return made


def dial(pool: FakePool) -> socket.socket:
    host, _, port = str(pool.settings.server.http).rpartition(":")
    return socket.create_connection((host, int(port)), 10.0)


def ask(
    pool: FakePool, with_context: ssl.SSLContext, method: str, path: str, token: str = "", value: Any = None
) -> tuple[int, Any]:
    connection = http.client.HTTPSConnection(str(pool.settings.server.http), timeout=10.0, context=with_context)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, None if value is None else json.dumps(value), headers)
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said else None
    finally:
        connection.close()


@pytest.fixture(scope="module")
def known(office: Office) -> ssl.SSLContext:
    """What a client that the authority knows greets with."""
    return context(office, office.issue("client"))


PREDICT = ("POST", "/v1/models/double:predict")
X = {"instances": [[1.0, 2.0, 3.0]]}


def test_tokens_allow_what_their_roles_do(guarded: FakePool, known: ssl.SSLContext) -> None:
    assert ask(guarded, known, "GET", "/healthz") == (200, {"live": True})
    for token, looks, calls, changes in (
        ("", 401, 401, 401),
        ("wrong", 401, 401, 401),
        (LOOKER, 200, 403, 403),
        (CALLER, 200, 200, 403),
        (BOSS, 200, 200, 200),
    ):
        assert ask(guarded, known, "GET", "/v1/models/double", token)[0] == looks
        assert ask(guarded, known, *PREDICT, token, X)[0] == calls
        assert ask(guarded, known, "POST", "/v2/repository/models/double/load", token, {})[0] == changes


def test_answers_over_tls(guarded: FakePool, known: ssl.SSLContext) -> None:
    many = {"instances": [[1.0, 2.0, 3.0]] * 10_000}
    status, answer = ask(guarded, known, *PREDICT, CALLER, many)
    assert (status, answer) == (200, {"predictions": [[2.0, 4.0, 6.0]] * 10_000})


def refused(pool: FakePool, with_context: ssl.SSLContext) -> bool:
    """Whether nothing is said to whoever greets so."""
    with (
        suppress(ssl.SSLError, ConnectionError),
        dial(pool) as sock,
        with_context.wrap_socket(sock, server_hostname="127.0.0.1") as made,
    ):
        made.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")  # with TLS 1.3 a client hears of it only now
        return made.recv(1000) == b""
    return True


def test_who_has_no_good_certificate_is_refused(guarded: FakePool, office: Office, known: ssl.SSLContext) -> None:
    assert not refused(guarded, known)
    assert refused(guarded, context(office))
    assert refused(guarded, context(office, office.issue("foreigner", "stranger")))
    assert refused(guarded, context(office, office.issue("late", days=-1)))
    old = context(office, (office.file("client.pem"), office.file("client.key")))
    old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
    assert refused(guarded, old)
    assert not refused(guarded, known)


@pytest.mark.parametrize(
    "said",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
        b"\x16\x03\x01\xff\xff" + bytes(100_000),
        bytes(100),
        b"",
    ],
)
def test_what_is_no_handshake_is_hung_up_on(guarded: FakePool, known: ssl.SSLContext, said: bytes) -> None:
    with dial(guarded) as sock, suppress(ConnectionError):
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(1 << 16):
            assert not piece.startswith(b"HTTP/1.1 200")
    assert ask(guarded, known, "GET", "/healthz")[0] == 200
    assert "ERROR" not in guarded.log()


def test_a_token_is_good_until_it_leaves_the_file(guarded: FakePool, known: ssl.SSLContext) -> None:
    tokens = Path(str(guarded.settings.gateway.tokens))
    before, new = tokens.read_text(), "next-" + "d" * 20
    tokens.write_text(f"monitor {new}\n")
    until(lambda: ask(guarded, known, "GET", "/v1/models/double", new)[0] == 200)
    assert ask(guarded, known, "GET", "/v1/models/double", LOOKER)[0] == 401
    tokens.write_text(before)


# -- files ---------------------------------------------------------------------------------------------------------


def test_files_that_a_gateway_could_not_start_with(office: Office) -> None:
    cert, key = office.issue("some")
    _, other = office.issue("other")
    nowhere, garbled = office.file("nowhere"), Path(office.file("garbled"))
    garbled.write_text("-----BEGIN CERTIFICATE-----\nno\n")
    locked = office.file("locked.key")
    seal = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(seal, check=True, capture_output=True)
    check_files(GatewaySettings(tls_cert=cert, tls_key=key, tls_client_ca=office.file("authority.pem")))
    for settings, problem in (
        (GatewaySettings(tls_cert=nowhere, tls_key=key), f"{nowhere}: cannot be read: No such file"),
        (GatewaySettings(tls_cert=cert, tls_key=nowhere), f"{nowhere}: cannot be read: No such file"),
        (GatewaySettings(tls_cert=cert, tls_key=other), "expected a certificate and its key.*KEY_VALUES_MISMATCH"),
        (GatewaySettings(tls_cert=str(garbled), tls_key=key), "expected a certificate and its key"),
        (GatewaySettings(tls_cert=cert, tls_key=str(garbled)), "expected a certificate and its key"),
        (GatewaySettings(tls_cert=cert, tls_key=locked), "without a password: it has a password"),
        (GatewaySettings(tls_cert=cert, tls_key=key, tls_client_ca=nowhere), f"{nowhere}: cannot be read"),
        (GatewaySettings(tls_cert=cert, tls_key=key, tls_client_ca=str(garbled)), "garbled: expected PEM"),
        (GatewaySettings(tls_cert=os.path.dirname(cert), tls_key=key), "cannot be read: Is a directory"),
    ):
        with pytest.raises(InvalidArgument, match=problem):
            check_files(settings)
