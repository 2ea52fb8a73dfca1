"""The key pair with which the local client signs towards the sandbox. Never used for a real site."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pipeline.core.errors import ConfigurationError
from pipeline.core.files import replace_file

__all__ = ["client_key"]

_KEY_BITS = 2048


def client_key(file: Path) -> str:
    """The public key (PEM) of the private key in `file`, which is made, readable by its owner alone, if it is absent.

    Raises ConfigurationError when the file is there and is not a valid private key in PEM.
    """
    if not file.exists():
        _write_new_key(file)
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{file} cannot be read as a private key ({type(error).__name__}).",
            "Move it away: the sandbox makes a new one.",
        ) from error
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _write_new_key(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(file, pem)
