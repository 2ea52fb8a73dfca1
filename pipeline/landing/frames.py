"""The form in which files are stored: zstd frames that end at line ends, and a table of them at the file's end.

    frame, frame, …, table

Each frame is a zstd frame of its own of about 256 KiB of lines, so that a line is read by decompressing one of them. The
table is a zstd skippable frame, which `zstd -d` and `zstdcat` pass over: they read the file as any other. It holds a row
a frame (`FrameTable`), then the number of rows, a digest of the rows, and a mark.

Offsets and lengths everywhere else are those of the bytes before compression. This module knows bytes and no store.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from pipeline.core.errors import LandingError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["FRAME_BYTES", "FrameTable", "FrameWriter", "FramedFile"]

#: Measured: 64 KiB gives 11.0 % of the bytes, 256 KiB 8.7, 1 MiB 7.7; a line costs about as much time as its frame.
FRAME_BYTES = 256 * 1024
#: A line that is longer is cut: frames are read as a whole, and the memory of that is bounded.
_MOST_FRAME_BYTES = 32 * 1024 * 1024
#: Level 3 takes 1.3 to 2 times as long, for 8.5 to 8.1 instead of 8.7 to 7.0 %.
_LEVEL = 1

#: bytes stored and bytes of the frame before compression; its LFs; whether it ends with one; digest of what is stored
_ROW = np.dtype([("stored", "<u4"), ("bytes", "<u4"), ("newlines", "<u4"), ("ends_line", "<u4"), ("digest", "<u8")])
#: Magic number of a skippable frame, and bytes that follow.
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A5E
#: number of rows, digest of the rows, mark
_END = struct.Struct("<QQ8s")
_MARK = b"EOLINES1"

_LEAST_TABLE = _SKIPPABLE.size + _END.size


@dataclass(frozen=True)
class FrameTable:
    """Where the frames of a file lie."""

    rows: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def stored_offsets(self) -> npt.NDArray[np.int64]:
        """Where each frame begins in the stored file; last, where the table does."""
        return _offsets(self.rows["stored"])

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each frame begins before compression; last, the number of bytes."""
        return _offsets(self.rows["bytes"])

    @property
    def bytes(self) -> int:
        """Bytes before compression."""
        return int(self.offsets[-1])

    def frame_at(self, offset: int) -> int:
        """The frame in which a byte lies; the number of frames where there is none."""
        return int(np.searchsorted(self.offsets, offset, side="right")) - 1

    def chunks(self, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, first line) of pieces of whole frames and lines, each of at least `chunk_bytes` but the last."""
        start, first_line, line = 0, 1, 1
        ends = self.offsets[1:].tolist()
        for end, newlines, ends_line in zip(
            ends, self.rows["newlines"].tolist(), self.rows["ends_line"].tolist(), strict=True
        ):
            line += newlines
            if ends_line and end - start >= chunk_bytes:
                yield start, end - start, first_line
                start, first_line = end, line
        if self.bytes > start:
            yield start, self.bytes - start, first_line


def _offsets(sizes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


class FrameWriter:
    """Writes bytes as frames into a file that is open for writing. Holds at most one frame in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self._open = bytearray()
        self._rows: list[tuple[int, int, int, int, int]] = []

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, in pieces of any size."""
        self._open += data
        done = 0
        while (end := self._frame_end(done)) > done:
            self._write_frame(done, end)
            done = end
        if done:
            del self._open[:done]

    def _frame_end(self, start: int) -> int:
        """Where the frame from `start` on ends; `start` itself: more bytes are needed."""
        if len(self._open) - start < FRAME_BYTES:
            return start
        end = self._open.rfind(b"\n", start, start + FRAME_BYTES) + 1 or self._open.find(b"\n", start) + 1
        if not end and len(self._open) - start >= _MOST_FRAME_BYTES:
            return start + _MOST_FRAME_BYTES
        return min(end, start + _MOST_FRAME_BYTES) if end else start

    def _write_frame(self, start: int, end: int) -> None:
        with memoryview(self._open) as everything, everything[start:end] as data:
            frame = self._compressor.compress(data)
        self._file.write(frame)
        newlines = self._open.count(b"\n", start, end)
        ends_line = int(self._open[end - 1] == ord("\n"))
        self._rows.append((len(frame), end - start, newlines, ends_line, xxhash.xxh3_64_intdigest(frame)))

    def finish(self) -> None:
        """Write the last frame and the table; the caller syncs and closes the file."""
        if self._open:
            self._write_frame(0, len(self._open))
            self._open.clear()
        rows = np.array(self._rows, _ROW).tobytes()
        self._file.write(_SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(rows) + _END.size))
        self._file.write(rows)
        self._file.write(_END.pack(len(self._rows), xxhash.xxh3_64_intdigest(rows), _MARK))


def _read_table(file: io.FileIO, path: Path) -> FrameTable:
    size = os.fstat(file.fileno()).st_size
    if size < _LEAST_TABLE:
        raise _damaged(path, "it ends before its table")
    count, digest, mark = _END.unpack(os.pread(file.fileno(), _END.size, size - _END.size))
    begin = size - _END.size - count * _ROW.itemsize - _SKIPPABLE.size
    if mark != _MARK or begin < 0:
        raise _damaged(path, "there is no table of its frames at its end")
    head = os.pread(file.fileno(), _SKIPPABLE.size, begin)
    rows = os.pread(file.fileno(), count * _ROW.itemsize, begin + _SKIPPABLE.size)
    expected_head = _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(rows) + _END.size)
    if head != expected_head or xxhash.xxh3_64_intdigest(rows) != digest:
        raise _damaged(path, "the table of its frames does not have its digest")
    table = FrameTable(np.frombuffer(rows, _ROW))
    if int(table.stored_offsets[-1]) != begin:
        raise _damaged(path, "its size is not that of its frames")
    return table


def _damaged(path: Path, problem: str) -> LandingError:
    return LandingError(f"{path} is damaged: {problem}.", "Restore that file from a backup, or export again.")


class FramedFile(io.RawIOBase):
    """A stored file as a stream of the bytes before compression, from any offset. Keeps the frame that was read last.

    Opening and reading raise LandingError where the table or a frame does not have its digest, OSError for the disk.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("rb", buffering=0)
        try:
            self.table = _read_table(self._file, path)
        except BaseException:
            self._file.close()
            raise
        self._decompressor = zstandard.ZstdDecompressor()
        self._position = 0
        self._kept: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.table.bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """As many bytes as there are, at most `size`: never fewer because of a frame's end."""
        left = max(0, self.table.bytes - self._position)
        end = self._position + (left if size is None or size < 0 else min(size, left))
        pieces = []
        frame = self.table.frame_at(self._position)
        while self._position < end:
            begin = int(self.table.offsets[frame])
            content = self._frame(frame)
            pieces.append(content[self._position - begin : end - begin])
            self._position += len(pieces[-1])
            frame += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """For buffered readers: at most up to the end of the frame."""
        target = memoryview(buffer).cast("B")
        end = self.table.offsets[min(self.table.frame_at(self._position) + 1, len(self.table))]
        data = self.read(min(len(target), max(0, int(end) - self._position)))
        target[: len(data)] = data
        return len(data)

    def check(self) -> None:
        """Read all frames as they are stored, and compare their digests. Raises LandingError."""
        for number in range(len(self.table)):
            self._stored(number)

    def _frame(self, number: int) -> bytes:
        if self._kept[0] != number:
            expected = int(self.table.rows["bytes"][number])
            try:
                content = self._decompressor.decompress(self._stored(number), max_output_size=expected)
            except zstandard.ZstdError as error:
                raise _damaged(self._path, "a frame cannot be decompressed") from error
            if len(content) != expected:
                raise _damaged(self._path, "a frame has another length than the table says")
            self._kept = number, content
        return self._kept[1]

    def _stored(self, number: int) -> bytes:
        row = self.table.rows[number]
        frame = os.pread(self._file.fileno(), int(row["stored"]), int(self.table.stored_offsets[number]))
        if xxhash.xxh3_64_intdigest(frame) != int(row["digest"]):
            raise _damaged(self._path, f"frame {number + 1} does not have its digest")
        return frame

    def close(self) -> None:
        self._file.close()
        super().close()
