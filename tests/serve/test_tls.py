"""``minicpm4 serve`` over TLS, with certificates made here: official clients, plain HTTP, and wrong pairs."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.serve.processes import ROOT, Running, small


@dataclass(frozen=True)
class Pair:
    """A certificate that signs itself, of 127.0.0.1, and its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        return ["--tls-cert", str(self.certificate), "--tls-key", str(self.key)]

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def make_pair(folder: Path, name: str, password: bytes = b"") -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(*form, hidden))
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"), "one")


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Running]:
    with small("--name", "small", *pair.options) as running:
        yield running


def test_official_clients_that_trust_it(server: Running, pair: Pair) -> None:
    assert server.address.startswith("https://")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    with openai.OpenAI(
        base_url=f"{server.address}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=pair.trust),
    ) as client:
        parts = client.chat.completions.create(
            model="small", messages=asked, temperature=0, max_tokens=24, stream=True
        )
        assert "Paris" in "".join(part.choices[0].delta.content or "" for part in parts)
    with anthropic.Anthropic(
        base_url=server.address,
        api_key="none",
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(verify=pair.trust),
    ) as other:
        answer = other.messages.create(model="small", messages=asked, max_tokens=4)
        assert answer.usage.output_tokens > 0


def test_a_client_that_does_not_trust_it(server: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()


def test_plain_http_is_refused_and_hurts_nobody(server: Running, pair: Pair) -> None:
    address = httpx.URL(server.address)
    for sent in (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x16\x03\x01garbage", b""):
        with socket.create_connection((address.host, address.port), timeout=20) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            said = b""
            try:
                while part := raw.recv(4096):
                    said += part
            except ConnectionResetError:
                pass
            assert b"HTTP" not in said
    with httpx.Client(base_url=server.address, verify=pair.trust) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").text.count("minicpm4_requests") > 0


def test_wrong_pairs_end_with_one_clear_error(pair: Pair, tmp_path: Path) -> None:
    other = make_pair(tmp_path, "other")
    locked = make_pair(tmp_path, "locked", b"secret")
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for options, said in (
        (["--tls-cert", str(pair.certificate)], "--tls-key"),
        (["--tls-key", str(pair.key)], "--tls-cert"),
        (["--tls-cert", str(pair.certificate), "--tls-key", str(tmp_path / "none.key")], "none.key"),
        (["--tls-cert", str(pair.certificate), "--tls-key", str(other.key)], "other.key"),
        (locked.options, "locked.key"),
        (["--tls-cert", str(junk), "--tls-key", str(pair.key)], "junk.pem"),
    ):
        command = [sys.executable, "-m", "minicpm4", "serve", "--port", "0", *options]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert found.returncode == 2, found.stderr
        assert found.stderr.count("error:") == 1 and said in found.stderr and "Traceback" not in found.stderr
