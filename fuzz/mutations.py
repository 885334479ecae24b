"""Ways to damage a checkpoint; hostile ones made from nothing are in ``hostile.py``.

``mutate`` returns (kind, bytes, exact): with ``exact`` the file, if it is read, must hold the original's values; the
other files carry right checksums, and may be read as whatever they say.
"""

from __future__ import annotations

import io
import itertools
import pickle
import random
import struct
import zipfile
from collections.abc import Callable

from hostile import CRAFTED

PARTS = 300  # truncations at every 1/300th


def mutate(rng: random.Random, original: bytes, index: int) -> tuple[str, bytes, bool]:
    """Make file ``index`` from ``original``."""
    is_zip = original[:2] == b"PK"
    kinds: list[Callable[[random.Random, bytes, int], tuple[str, bytes, bool]]] = [
        truncate,
        pickle_bytes,
        pickle_numbers,
        crafted,
    ]
    if is_zip:
        # A zip that torch did not write, such as an .npz, has other names in it.
        kinds += [flip_anywhere, *([flip_data] if _records(original) else []), flip_directory, directory_fields, repack]
    return kinds[index % len(kinds)](rng, original, index)


def truncate(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """Cut at a multiple of 1/300th, each in its turn."""
    return "truncation", data[: len(data) * ((index // 9) % PARTS) // PARTS], True


def flip_anywhere(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """One bit, anywhere."""
    return "bit flip", _flip(data, rng.randrange(len(data)), rng), True


def flip_data(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """One bit in a weight's record: the checksum must tell."""
    infos = _records(data)
    info = infos[rng.randrange(len(infos))]
    name_len, extra_len = struct.unpack_from("<HH", data, info.header_offset + 26)
    at = info.header_offset + 30 + name_len + extra_len + rng.randrange(info.file_size)
    return "data bit flip", _flip(data, at, rng), True


def _records(data: bytes) -> list[zipfile.ZipInfo]:
    """The weights of an archive that torch wrote."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [i for i in archive.infolist() if "/data/" in i.filename or "/constants/" in i.filename if i.file_size]


def flip_directory(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """A few random bytes in the directory."""
    start = data.find(b"PK\x01\x02")
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(start, len(data))] = rng.randrange(256)
    return "directory bytes", bytes(changed), True


def directory_fields(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """Sizes, offsets, names and counts of a directory entry set to unlikely values, in both headers at times."""
    changed = bytearray(data)
    entries = [i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"]
    at = rng.choice(entries)
    field, width = rng.choice([(16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4), (10, 2), (8, 2)])
    value = rng.choice([0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, len(data), rng.getrandbits(32)]) & (256**width - 1)
    changed[at + field : at + field + width] = value.to_bytes(width, "little")
    if rng.random() < 0.5:
        other = rng.choice(entries)
        changed[at + 42 : at + 46] = changed[other + 42 : other + 46]  # two entries over one record
    return "directory fields", bytes(changed), True


def _flip(data: bytes, at: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Replace the main pickle, with a right checksum."""
    if data[:2] != b"PK":
        return change(data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith(".pkl") and "/code/" not in info.filename and len(content) > 10:
                content = change(content)
            target.writestr(info.filename, content)
    return out.getvalue()


def pickle_bytes(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """Random bytes of the pickle changed, removed or repeated."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(changed))
            action = rng.randrange(4)
            if action == 0:
                changed[at] = rng.randrange(256)
            elif action == 1:
                del changed[at : at + rng.randint(1, 20)]
            elif action == 2:
                changed[at:at] = changed[at : at + rng.randint(1, 40)]
            else:
                changed[at] = ord(
                    rng.choice("(.0123456789NtRbQcisuale}])]\x81\x85\x86\x87\x88\x89\x8a\x8b\x8f\x90\x91\x93\x94")
                )
            if not changed:
                changed = bytearray(b".")
        return bytes(changed)

    return "pickle bytes", _with_pickle(data, change), False


def pickle_numbers(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """Numbers of the pickle (shapes, strides, offsets, axes, zero points) replaced by unlikely ones."""

    def change(content: bytes) -> bytes:
        import pickletools

        places = []
        try:
            ops = list(pickletools.genops(content))
        except ValueError:
            return content
        for (op, _, at), (_, _, following) in itertools.pairwise(ops):
            if op.name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
                places.append((at, following, op.name))
        changed = content
        for at, end, name in sorted(rng.sample(places, min(len(places), rng.randint(1, 3))), reverse=True):
            numbers = [
                0,
                -1,
                1,
                2,
                3,
                255,
                256,
                2**31 - 1,
                2**31,
                2**40,
                2**62,
                2**63 - 1,
                2**63,
                2**64,
                -(2**63),
                10**30,
            ]
            new: object = rng.choice(numbers)
            if name == "BINFLOAT":
                new = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-310, 5e-324])
            changed = changed[:at] + pickle.dumps(new, 2)[2:-1] + changed[end:]
        return changed

    return "pickle numbers", _with_pickle(data, change), False


def repack(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """The same records, packed otherwise: deflated, renamed, missing, twice, in a bomb."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        infos = source.infolist()
        victim = rng.randrange(len(infos))
        action = rng.choice(["deflate", "bzip2", "missing", "twice", "path", "bomb", "resize"])
        for at, info in enumerate(infos):
            name, content, method = info.filename, source.read(info), zipfile.ZIP_STORED
            if action == "deflate":
                method = zipfile.ZIP_DEFLATED
            if at == victim:
                if action == "missing":
                    continue
                if action == "bzip2":
                    method = zipfile.ZIP_BZIP2
                if action == "path":
                    name = rng.choice(
                        ["../../tmp/x", "/etc/passwd", "a\\b", "C:/x", "./x", "x//y", "x\x01y", name.upper()]
                    )
                if action == "bomb":
                    content, method = bytes(rng.choice([1 << 20, 100 << 20])), zipfile.ZIP_DEFLATED
                if action == "resize":
                    content = content[: len(content) // 2] if rng.random() < 0.5 else content * 2
            target.writestr(name, content, method)
            if at == victim and action == "twice":
                import warnings

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    target.writestr(name, content, method)
    return f"repack {action}", out.getvalue(), action in ("deflate", "twice")


def crafted(rng: random.Random, data: bytes, index: int) -> tuple[str, bytes, bool]:
    """A pickle written for harm, in place of the main one."""
    name = rng.choice(list(CRAFTED))
    content = CRAFTED[name](rng)
    if data[:2] != b"PK":
        return f"crafted {name}", content, False
    return f"crafted {name}", _with_pickle(data, lambda _: content), False
