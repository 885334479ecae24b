"""What the archive reader accepts at most.

Every number bounds time or memory on a hostile file; none comes near what a real checkpoint needs (a state dict of
10,000 tensors takes about 600,000 opcodes and 2 MB of pickle).
"""

from __future__ import annotations

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_INFLATED_BYTES",
    "MAX_NAME",
    "MAX_NODES",
    "MAX_OPCODES",
    "MAX_PICKLE_BYTES",
    "MAX_RECORDS",
    "MAX_SHARES",
    "MAX_SOURCE_BYTES",
    "MAX_STACK",
    "MAX_STRING_BYTES",
    "REMEDY_BROKEN",
]

MAX_RECORDS = 200_000
MAX_PICKLE_BYTES = 64 << 20
MAX_INFLATED_BYTES = 64 << 20  # one compressed record; torch compresses source code only
MAX_OPCODES = 1_000_000
MAX_STACK = 200_000  # values that a pickle may have begun and not yet put anywhere
MAX_STRING_BYTES = 16 << 20  # one string or bytes object in a pickle
MAX_NODES = 200_000  # containers and leaves met while a checkpoint is flattened
MAX_SHARES = 64  # places that one container may stand in
MAX_SOURCE_BYTES = 4 << 20  # all code of a script that is looked at
MAX_DEPTH = 100
MAX_ENTRIES = 200_000
MAX_NAME = 1000  # characters of a name with all names above it; 200,000 entries may share a part of it

REMEDY_BROKEN = "The file is damaged or is no checkpoint of torch: get a fresh copy."
