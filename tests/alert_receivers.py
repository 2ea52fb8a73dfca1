"""Receivers of alerts on loopback: a webhook over HTTP and a mail server, which also refuse, hang, and send byte by byte."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

__all__ = ["Mails", "Webhook", "certificate", "closed_port", "hanging_port", "running_mails", "running_webhook"]

USER, PASSWORD = "etl", "correct horse"


@dataclass
class Webhook:
    """What arrived (path, headers, body), and how the next requests are answered."""

    port: int
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    status: int = 200
    body: bytes = b"ok"
    headers: dict[str, str] = field(default_factory=dict)
    #: Before it answers; and between the bytes of its answer.
    after_seconds: float = 0
    dripping: bool = False

    def url(self, path: str = "/services/T0/B0/hunter2") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            webhook.seen.append((self.path, dict(self.headers), orjson.loads(raw) if raw else None))
            time.sleep(webhook.after_seconds)
            with suppress(OSError):
                self._answer()

        def do_GET(self) -> None:
            self.do_POST()

        def _answer(self) -> None:
            if webhook.dripping:
                for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 1000:
                    self.wfile.write(bytes([letter]))
                    self.wfile.flush()
                    time.sleep(0.05)
                return
            self.send_response(webhook.status)
            for name, value in webhook.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(webhook.body)))
            self.end_headers()
            self.wfile.write(webhook.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    webhook = Webhook(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield webhook
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Mails:
    """What arrived, and what the server answers to RCPT and DATA."""

    port: int = 0
    seen: list[Message] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    answer: str = "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.answer.startswith("250"):
            content = envelope.content
            assert isinstance(content, bytes)
            self.seen.append(message_from_bytes(content, policy=default))
            self.recipients.append(list(envelope.rcpt_tos))
        return self.answer

    def login(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        name, password = data.login.decode(), data.password.decode()
        self.logins.append(name)
        return AuthResult(success=(name, password) == (USER, PASSWORD), handled=False)


@contextmanager
def running_mails(security: str, certificate_file: Path | None = None, *, login: bool = False) -> Iterator[Mails]:
    """`security`: starttls, tls or none, with a certificate (and its key in the same file)."""
    mails = Mails()
    context = None
    if certificate_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_file)
    options: dict[str, Any] = {"authenticator": mails.login, "auth_required": True} if login else {}
    if security == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    elif login:
        options |= {"auth_require_tls": False}
    mails.port = closed_port()
    controller = Controller(
        mails,
        hostname="127.0.0.1",
        port=mails.port,
        ssl_context=context if security == "tls" else None,
        **options,
    )
    controller.start()
    try:
        yield mails
    finally:
        controller.stop()


def certificate(folder: Path, host: str = "localhost") -> Path:
    """A self-signed certificate of this machine and its key, in one file; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "receiver.pem"
    file.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


def closed_port() -> int:
    """A port at which nobody listens: a connection is refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def hanging_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])
