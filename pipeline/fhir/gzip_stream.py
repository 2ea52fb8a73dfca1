"""Decompressing gzip as it streams, in constant memory, so that a file which was cut short never passes as whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

__all__ = ["GZIP_MAGIC", "DamagedGzipError", "gunzip"]

GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_OUTPUT_BYTES = 1 << 20


class DamagedGzipError(Exception):
    """The stream is not gzip, is damaged, or ends before its end mark."""


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress a stream of one or more gzip members, in pieces of at most 1 MiB.

    Bounded pieces are what makes a decompression bomb harmless: the reader can stop at its limit.
    Raises DamagedGzipError; zlib by itself says nothing when a stream ends early.
    """
    decoder = zlib.decompressobj(_GZIP_WINDOW)
    started = False
    for chunk in chunks:
        pending = chunk
        while pending:
            if decoder.eof:
                pending = pending.lstrip(b"\0")  # some writers pad the last block with zeros
                if not pending:
                    break
                decoder = zlib.decompressobj(_GZIP_WINDOW)
            started = True
            piece = _decompress(decoder, pending)
            if piece:
                yield piece
            pending = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    if started:
        yield from _rest(decoder)


def _decompress(decoder: zlib._Decompress, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, _OUTPUT_BYTES)
    except zlib.error:
        raise DamagedGzipError("its compressed data is damaged") from None


def _rest(decoder: zlib._Decompress) -> Iterator[bytes]:
    """What the decoder still holds back after the last input; it must reach the end mark."""
    while not decoder.eof:
        piece = _decompress(decoder, decoder.unconsumed_tail)
        if not piece:
            raise DamagedGzipError("it ends before its end mark: it was cut short")
        yield piece
