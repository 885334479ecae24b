"""A few buffers between two threads: one reads and computes a block while the other writes the block before."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Piece", "stream"]

BUFFERS = 4
_DONE = object()


@dataclass(frozen=True)
class Piece:
    """A run of bytes for a file. ``fill`` puts them into the buffer of ``size`` bytes that it is given.

    Attributes:
        file: the descriptor to write to.
        offset: bytes from the start of the file.
        size: bytes.
        fill: called in the reading thread with a uint8 tensor of ``size`` values.
        name: what the bytes belong to, for progress.

    """

    file: int
    offset: int
    size: int
    fill: Callable[[Tensor], object]
    name: str


def stream(pieces: Iterator[Piece], written: Callable[[Piece], object]) -> None:
    """Write all pieces.

    Args:
        pieces: iterated, and filled, in a thread of their own, in order.
        written: called in this thread when a piece has been handed to the system.

    Raises:
        Exception: whatever ``pieces``, ``fill`` or a write raised. The other thread has ended by then.

    """
    full: queue.SimpleQueue[object] = queue.SimpleQueue()
    free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    for _ in range(BUFFERS):
        free.put(torch.empty(0, dtype=torch.uint8))
    stop = threading.Event()
    reader = threading.Thread(target=_read, args=(pieces, full, free, stop), name="qdeq-read")
    try:
        reader.start()
        while (got := full.get()) is not _DONE:
            if isinstance(got, BaseException):
                raise got
            assert isinstance(got, tuple)
            piece, buffer = got
            _write_all(piece, buffer)
            free.put(buffer)
            written(piece)
    finally:
        stop.set()
        free.put(None)  # wakes a reader that waits
        if reader.is_alive():
            reader.join()


def _read(
    pieces: Iterator[Piece],
    full: queue.SimpleQueue[object],
    free: queue.SimpleQueue[Tensor | None],
    stop: threading.Event,
) -> None:
    try:
        for piece in pieces:
            buffer = free.get()
            if buffer is None or stop.is_set():
                return
            if buffer.numel() < piece.size:
                buffer = torch.empty(piece.size, dtype=torch.uint8)
            piece.fill(buffer[: piece.size])
            full.put((piece, buffer))
        full.put(_DONE)
    except BaseException as error:  # noqa: BLE001  # raised again by the writing thread
        full.put(error)


def _write_all(piece: Piece, buffer: Tensor) -> None:
    # A tensor's memory as a buffer, without numpy, which torch can do without.
    view = memoryview((ctypes.c_char * piece.size).from_address(buffer.data_ptr()))
    done = 0
    while done < piece.size:
        done += os.pwrite(piece.file, view[done:], piece.offset + done)
