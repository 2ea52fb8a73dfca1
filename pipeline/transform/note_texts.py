"""Texts of documents: attachments and Binaries in plain text, HTML and RTF → text; other attachments are reported as unsupported.

The text itself is nothing to be changed: only markup goes, and NUL, which PostgreSQL cannot hold.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Literal

__all__ = ["attached_text", "attachment_in_binary", "binary_text", "is_unsupported", "text_language"]

_Kind = Literal["plain", "html", "rtf", "unsupported", "unknown"]

_KINDS: dict[str, _Kind] = {
    "text/plain": "plain",
    "text/html": "html",
    "text/xhtml": "html",
    "application/xhtml": "html",
    "application/xhtml+xml": "html",
    "text/rtf": "rtf",
    "text/richtext": "rtf",
    "application/rtf": "rtf",
    "application/x-rtf": "rtf",
}


def attached_text(resource: dict[str, Any]) -> str | None:
    """Text of the first attachment that carries one itself; None where none does. ValueError for broken content."""
    for attachment in _attachments(resource):
        data, content_type = attachment.get("data"), attachment.get("contentType")
        if data and (text := _text(content_type, data)):
            return text
    return None


def attachment_in_binary(resource: dict[str, Any]) -> dict[str, str] | None:
    """A Reference to the Binary of the first attachment that is somewhere else and may be a text."""
    for attachment in _attachments(resource):
        url = attachment.get("url")
        if (
            isinstance(url, str)
            and not attachment.get("data")
            and _kind(attachment.get("contentType")) != "unsupported"
        ):
            return {"reference": url.split("?", 1)[0]}
    return None


def is_unsupported(resource: dict[str, Any]) -> bool:
    """Whether an attachment is of a type that is not text here: PDF, images, C-CDA."""
    return any(_kind(attachment.get("contentType")) == "unsupported" for attachment in _attachments(resource))


def text_language(resource: dict[str, Any]) -> str | None:
    """The language of the attachments, else of the resource: 'en-US'."""
    languages = (attachment.get("language") for attachment in _attachments(resource))
    language = next((language for language in languages if language), None) or resource.get("language")
    if language is not None and not isinstance(language, str):
        raise ValueError("expected a language to be a string")
    return language


def binary_text(binary: dict[str, Any]) -> str | None:
    """The text of a Binary; None where it has none or is of another type. ValueError for broken content."""
    data = binary.get("data")
    return _text(binary.get("contentType"), data) if data else None


def _attachments(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for content in resource.get("content") or ():
        if content.get("attachment"):
            yield content["attachment"]
    yield from resource.get("presentedForm") or ()


def _media_type(content_type: str | None) -> tuple[str, str | None]:
    """('text/plain', 'iso-8859-1') of 'text/plain; charset="ISO-8859-1"'."""
    name, *parameters = (content_type or "").lower().split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "charset":
            return name.strip(), value.strip().strip("\"'")
    return name.strip(), None


def _kind(content_type: str | None) -> _Kind:
    name = _media_type(content_type)[0]
    return _KINDS.get(name, "unsupported") if name else "unknown"


def _text(content_type: str | None, data: str) -> str | None:
    kind = _kind(content_type)
    if kind == "unsupported":
        return None
    try:
        content = base64.b64decode(data, validate=False)
    except binascii.Error:
        raise ValueError("expected base64") from None
    kind = _kind_of_content(content) if kind == "unknown" else kind
    if kind == "unsupported":
        return None
    text = _decoded(content, _media_type(content_type)[1])
    if kind == "html":
        text = _text_of_html(text)
    elif kind == "rtf":
        text = _text_of_rtf(text)
    text = text.replace("\x00", "").strip()
    return text or None


def _kind_of_content(content: bytes) -> _Kind:
    """The kind of an attachment without a type, by how it begins."""
    beginning = content[:200].lstrip().lower()
    if beginning.startswith(b"{\\rtf"):
        return "rtf"
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "html"
    if b"\x00" in content or beginning.startswith((b"%pdf", b"<?xml")):
        return "unsupported"
    return "plain"


def _decoded(content: bytes, charset: str | None) -> str:
    """Text in its charset; without one, or one that does not hold, UTF-8, else what Windows writes."""
    for name in (charset, "utf-8-sig"):
        if name:
            try:
                return content.decode(name)
            except (UnicodeDecodeError, LookupError):
                continue
    return content.decode("cp1252", errors="replace")


def _text_of_html(text: str) -> str:
    from inscriptis import get_text  # lxml takes a tenth of a second, and most runs have no notes

    # lxml refuses a declaration of an encoding in a text that is decoded already.
    beginning, end, rest = text.lstrip().partition("?>")
    body = rest if beginning.startswith("<?xml") and end else text
    return str(get_text(body)) if body.strip() else ""


def _text_of_rtf(text: str) -> str:
    from striprtf.striprtf import rtf_to_text

    return str(rtf_to_text(text, errors="ignore"))  # type: ignore[no-untyped-call] # it has no annotations
