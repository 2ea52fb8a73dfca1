"""The password of the warehouse's database from a file: a secret of Docker Compose, Kubernetes or systemd.

Such secrets have modes of their own (0444 in a swarm, 0440 in Kubernetes), so the file's mode is not judged here.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit

from pipeline.core.errors import ConfigurationError

__all__ = ["PASSWORD_FILE_VARIABLE", "with_password_of_file"]

PASSWORD_FILE_VARIABLE = "EPIC_OMOP_DATABASE_PASSWORD_FILE"  # noqa: S105 - the name of a variable


def with_password_of_file(url: str | None, file: Path) -> str:
    """The URL with the password that is the file's only line.

    Raises ConfigurationError, which shows neither: the file cannot be read or holds no single line; there is no URL, or it
    has a password already.
    """
    if not url:
        raise ConfigurationError(
            f"{PASSWORD_FILE_VARIABLE} is set, but EPIC_OMOP_DATABASE_URL is not.",
            "Set both for a server of your own; the embedded one needs no password.",
        )
    password = _only_line(file)
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError:
        return url  # who connects says that it cannot be read
    if has_password:
        raise ConfigurationError(
            f"EPIC_OMOP_DATABASE_URL holds a password, and {PASSWORD_FILE_VARIABLE} names another.",
            "Take one of them out.",
        )
    quoted = quote(password, safe="")
    if "@" in parts.netloc:
        user, _, place = url.partition("@")
        return f"{user}:{quoted}@{place}"
    return f"{url}{'&' if '?' in url else '?'}password={quoted}"


def _only_line(file: Path) -> str:
    advice = f"{PASSWORD_FILE_VARIABLE} names a file that holds the password and nothing else, readable by this user."
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"The password file {file} is not text in UTF-8.", advice) from None
    except OSError as error:
        raise ConfigurationError(f"The password file {file} cannot be read ({error.strerror}).", advice) from None
    password = content.removesuffix("\n").removesuffix("\r")
    if not password or not password.isprintable():
        what = "is empty" if not password.strip() else "holds more than one line, or control characters"
        raise ConfigurationError(f"The password file {file} {what}.", advice)
    return password
