"""Pickles made from nothing to do harm: each function draws one."""

from __future__ import annotations

import pickle
import random
import struct
import zlib
from collections.abc import Callable

__all__ = ["CRAFTED"]


def _call(module: str, name: str, argument: object) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + pickle.dumps((argument,), 2)[2:-1] + b"R."


def _hostile_global(rng: random.Random) -> bytes:
    module, name = rng.choice(
        [
            ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
            ("builtins", "__import__"), ("builtins", "open"), ("torch", "load"), ("torch.hub", "load"),
            ("numpy", "load"),
            ("torch.serialization", "os.system"), ("shutil", "rmtree"), ("runpy", "run_path"), ("__builtin__", "eval"),
            ("importlib", "import_module"), ("webbrowser", "open"), ("antigravity", "x"), ("pip", "main"),
        ]
    )  # fmt: skip
    body = _call(module, name, "touch /tmp/qdeq_fuzz_was_here")
    if rng.random() < 0.5:  # inside a dict
        body = b"\x80\x02}X\x01\x00\x00\x00w" + body[2:-1] + b"s."
    return body


def _tensor(rng: random.Random) -> bytes:
    """A tensor with hostile layout over storage 0."""
    kind = rng.choice(["FloatStorage", "QInt8Storage", "LongStorage", "DoubleStorage", "QUInt4x2Storage", "NoStorage"])
    big = [0, 1, 2, 4, 65536, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -1]
    dims = rng.choice([0, 1, 2, 3, 70])
    shape = tuple(rng.choice(big) for _ in range(dims))
    stride = tuple(rng.choice([0, 0, 1, 2**62, -1, 1]) for _ in range(dims))
    pid = (
        b"(" + pickle.dumps("storage", 2)[2:-1] + b"ctorch\n" + kind.encode() + b"\n"
        + pickle.dumps(rng.choice(["0", "1", "../x", "999", 0]), 2)[2:-1] + pickle.dumps("cpu", 2)[2:-1]
        + pickle.dumps(rng.choice(big), 2)[2:-1] + b"tQ"
    )  # fmt: skip
    rest = b"".join(pickle.dumps(part, 2)[2:-1] for part in (rng.choice(big), shape, stride))
    if rng.random() < 0.5:
        scheme = rng.choice([b"per_tensor_affine", b"per_channel_affine", b"nonsense"])
        numbers = (
            rng.choice([1.0, float("nan"), 0.0, "x"]),
            rng.choice([0, 2**40, -1, 1.5, None]),
            rng.choice([0, 1, 99, -1]),
        )
        params = b"(ctorch\n" + scheme + b"\n" + b"".join(pickle.dumps(n, 2)[2:-1] for n in numbers) + b"t"
        call = b"ctorch._utils\n_rebuild_qtensor\n(" + pid + rest + params + b"\x89}tR"
    else:
        call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + b"\x89}tR"
    return b"\x80\x02}X\x08\x00\x00\x00a.weight" + call + b"s."


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice([200, 5000, 200_000])
    opener, closer = rng.choice([(b"]", b"a"), (b"", b"\x85"), (b"}K\x00", b"s")])
    if not opener:
        return b"\x80\x02N" + closer * depth + b"."
    return b"\x80\x02" + opener * depth + b"N" + closer * depth + b"."


def _laughs(rng: random.Random) -> bytes:
    """Lists of lists of lists, each shared ten times."""
    levels = rng.choice([10, 40, 90])
    body = b"\x80\x02]q\x00"
    for level in range(levels):
        body += b"](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
    return body + b"."


def _flood(rng: random.Random) -> bytes:
    return b"\x80\x02" + rng.choice([b"]", b"(", b"}", b"N", b")", b"2"]) * rng.choice([1000, 3_000_000]) + b"."


def _copies(rng: random.Random) -> bytes:
    """One long list, rebuilt into a dict again and again."""
    pairs = b"](" + b"K\x01K\x02\x86" * 20_000 + b"eq\x00"
    return b"\x80\x02" + pairs + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 20_000 + b"."


def _cycle(rng: random.Random) -> bytes:
    return b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."


def _long_string(rng: random.Random) -> bytes:
    return b"\x80\x04\x8d" + struct.pack("<Q", rng.choice([2**63 - 1, 2**64 - 1, 2**32, 17 << 20])) + b"abc."


def _huge_number(rng: random.Random) -> bytes:
    size = rng.choice([300, 1_000_000])
    return b"\x80\x02\x8b" + struct.pack("<i", size) + bytes([0x7F]) * size + b"."


def _bomb(rng: random.Random) -> bytes:
    return zlib.compress(bytes(50 << 20))


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 400))


CRAFTED: dict[str, Callable[[random.Random], bytes]] = {
    "global": _hostile_global, "tensor": _tensor, "tensor again": _tensor, "depth": _deep, "laughs": _laughs,
    "flood": _flood, "copies": _copies, "cycle": _cycle, "string": _long_string, "number": _huge_number, "zlib": _bomb,
    "noise": _noise,
}  # fmt: skip
