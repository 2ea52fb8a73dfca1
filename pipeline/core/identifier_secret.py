"""The instance's secret under which identifiers are compared: a setting, or a file of its own in the home.

Whoever has it could find out which identifiers the warehouse's keys stand for by trying them all; docs/security.md.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pipeline.core.errors import ConfigurationError
from pipeline.core.files import create_file, sync_file, temporary_name
from pipeline.core.settings import Settings

__all__ = ["SECRET_FILE", "identifier_secret"]

#: In the home. Made by the first load, and to be kept with the home.
SECRET_FILE = "identifier.key"  # noqa: S105 - a name
_LEAST_LENGTH = 16


def identifier_secret(settings: Settings) -> bytes:
    """EPIC_OMOP_IDENTIFIER_KEY, else what the file holds, which is made (mode 0600, 256 random bits) where it is missing.

    Raises ConfigurationError where it cannot be read or is too short.
    """
    if settings.identifier_key:
        return _checked(settings.identifier_key, "EPIC_OMOP_IDENTIFIER_KEY")
    file = settings.home / SECRET_FILE
    try:
        if not file.exists():
            _make(file)
        return _checked(file.read_text(encoding="ascii").strip(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(
            f"The key of identifiers in {file} cannot be read or made ({reason}).",
            "Give the file back from a backup, or set EPIC_OMOP_IDENTIFIER_KEY to its content.",
        ) from None


def _checked(secret: str, where: str) -> bytes:
    if len(secret) < _LEAST_LENGTH:
        raise ConfigurationError(
            f"The key of identifiers in {where} is shorter than {_LEAST_LENGTH} characters.",
            "Use 32 random bytes or more, such as those of `openssl rand -hex 32`; another key maps everything again.",
        )
    return secret.encode()


def _make(file: Path) -> None:
    """Whole or not at all; of two processes the first one's key stays."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = temporary_name(file)
    try:
        with create_file(temporary) as stream:
            stream.write(f"{secrets.token_hex(32)}\n".encode("ascii"))
            sync_file(stream)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
