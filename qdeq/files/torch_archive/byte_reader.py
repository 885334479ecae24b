"""Bytes of a pickle, one argument after the other."""

from __future__ import annotations

from typing import Any

from qdeq.files.torch_archive.limits import MAX_STRING_BYTES

__all__ = ["ByteReader"]


class ByteReader:
    """The file interface that :func:`pickletools.genops` asks for, over ``buffer[start:stop]``; lengths are checked."""

    def __init__(self, buffer: Any, start: int, stop: int) -> None:
        """See the class; ``buffer`` is bytes, a memoryview or a mmap."""
        self.buffer, self.position, self.stop = buffer, start, stop

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        if size > MAX_STRING_BYTES:
            raise ValueError(f"a string of {size} bytes")
        begin = self.position
        self.position = min(begin + size, self.stop)
        return bytes(self.buffer[begin : self.position])

    def readline(self) -> bytes:
        """Return the bytes up to the next newline, and that."""
        chunk = bytes(self.buffer[self.position : min(self.position + (1 << 16), self.stop)])
        end = chunk.find(b"\n")
        if end < 0:
            raise ValueError("no newline found when trying to read a line")
        self.position += end + 1
        return chunk[: end + 1]

    def tell(self) -> int:
        """Return the position in the buffer."""
        return self.position
