"""Read checkpoints of quantized models without torch's loader: no code of the file runs, no quantized dtype is used.

:func:`open` maps the file, reads its pickle into descriptions (:mod:`~qdeq.archive.unpickler`), finds the tensors
(:mod:`~qdeq.archive.checkpoint`), names them as the float model would (:mod:`qdeq.naming`), and reads a weight's bytes
when it is asked for.
"""

from __future__ import annotations

from qdeq.archive.reader import Archive, Entry, open_archive

__all__ = ["Archive", "Entry", "open", "open_archive"]

open = open_archive
