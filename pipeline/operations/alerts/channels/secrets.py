"""Secrets of channels: passwords, and addresses that hold a token. Read when a message is sent, kept nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.core.errors import ConfigurationError
from pipeline.extract.smart.keys import read_key_file

__all__ = ["ca_file_of", "read_secret", "read_url"]


def read_secret(what: str, variable: str | None, file: Path | None) -> str:
    """The content of the variable or file. Raises ConfigurationError that names these, never what they hold."""
    if file is not None:
        value, where = read_key_file(file).decode("utf-8", "replace"), f"The file {file}"
    else:
        value, where = os.environ.get(variable or "", ""), f"The environment variable {variable}"
    value = value.strip()
    if not value:
        raise ConfigurationError(
            f"{where} that should hold {what} is empty.", "Set it, or name another (docs/alerts.md)."
        )
    if not value.isprintable() or "\ufffd" in value:
        raise ConfigurationError(
            f"{where} that should hold {what} holds something else.", "It must hold one line of text."
        )
    return value


def read_url(what: str, variable: str | None, file: Path | None, *, allow_http: bool) -> str:
    """An address to which something is sent: https, or http to this machine, or where it is allowed."""
    url = read_secret(what, variable, file)
    source = f"file {file}" if file else f"variable {variable}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or " " in url:
        raise ConfigurationError(f"What stands in {source} as {what} is no URL.", "It begins with https:// and a host.")
    if parts.scheme == "http" and not allow_http and not is_this_machine(host):
        raise ConfigurationError(
            f"What stands in {source} as {what} is not https.",
            "Use https, or set allow_http for a receiver in the house.",
        )
    return url


def is_this_machine(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def ca_file_of(file: Path | None) -> str | None:
    """The file as TLS takes it. Raises ConfigurationError where it is not there."""
    if file is None:
        return None
    if not file.is_file():
        raise ConfigurationError(f"The ca_file {file} does not exist.", "It must hold certificates in PEM form.")
    return str(file)
