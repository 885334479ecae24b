"""A few buffers between threads: one reads and computes a block, one writes the block before, one wakes the disk."""

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
        Exception: whatever ``pieces``, ``fill`` or a write raised. The other threads have ended by then.

    """
    full: queue.SimpleQueue[object] = queue.SimpleQueue()
    free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    for _ in range(BUFFERS):
        free.put(torch.empty(0, dtype=torch.uint8))
    stop = threading.Event()
    reader = threading.Thread(target=_read, args=(pieces, full, free, stop), name="qdeq-read")
    handed_over: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
    flusher = threading.Thread(target=_flush, args=(handed_over,), name="qdeq-flush")
    try:
        reader.start()
        flusher.start()
        while (got := full.get()) is not _DONE:
            if isinstance(got, BaseException):
                raise got
            assert isinstance(got, tuple)
            piece, buffer = got
            _write_all(piece, buffer)
            handed_over.put(piece)
            free.put(buffer)
            written(piece)
    finally:
        stop.set()
        free.put(None)  # wakes a reader that waits
        handed_over.put(None)
        for thread in (reader, flusher):
            if thread.is_alive():
                thread.join()


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


_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)


def _flush(handed_over: queue.SimpleQueue[Piece | None]) -> None:
    while (piece := handed_over.get()) is not None:
        _start_writeback(piece)


def _start_writeback(piece: Piece) -> None:
    """Let the disk begin with what was just handed over: the fsync at the end then has less to wait for."""
    if _sync_file_range is not None:  # Linux; elsewhere, and where it fails, fsync does all of it
        _sync_file_range(
            ctypes.c_int(piece.file),
            ctypes.c_int64(piece.offset),
            ctypes.c_int64(piece.size),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )


def _write_all(piece: Piece, buffer: Tensor) -> None:
    # A tensor's memory as a buffer, without numpy, which torch can do without.
    view = memoryview((ctypes.c_char * piece.size).from_address(buffer.data_ptr()))
    done = 0
    while done < piece.size:
        done += os.pwrite(piece.file, view[done:], piece.offset + done)
