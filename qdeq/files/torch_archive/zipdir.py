"""The directory of a zip file, checked on its raw bytes, and its records, read through a memory map.

Nothing is trusted: the central directory and every local header must agree, records must lie one after another inside
the file, names must be plain relative paths, and only stored and (small) deflated records are read. Layout: PKWARE
APPNOTE 6.3, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

from qdeq.files.torch_archive.limits import MAX_INFLATED_BYTES, MAX_RECORDS
from qdeq.files.untrusted import refuse, shown

__all__ = ["Record", "ZipDirectory", "is_zip"]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_STORED, _DEFLATED = 0, 8
_FLAG_ENCRYPTED, _FLAG_DESCRIPTOR = 0x1, 0x8
_FULL32 = 0xFFFFFFFF
_SMALL, _SMALL_TOTAL = 64 << 10, 16 << 20  # bytes


@dataclass(frozen=True)
class Record:
    """One file of the archive: ``data`` is where its (possibly deflated) bytes begin, sizes are in bytes."""

    name: str
    method: int
    crc: int
    stored_size: int
    size: int
    header: int
    data: int


def is_zip(buffer: Any) -> bool:
    """Whether the file begins like a zip archive."""
    return bytes(buffer[:4]) in (b"PK\x03\x04", b"PK\x05\x06")


class ZipDirectory:
    """All records of a zip archive.

    Attributes:
        records: name -> :class:`Record`, in the order of the central directory.
        unchecked: names of records that were read and carry no CRC32.

    """

    def __init__(self, path: str, buffer: Any) -> None:
        """Read and check the directory of the archive in ``buffer`` (bytes or mmap); ``path`` is for errors."""
        self.path, self.buffer = path, buffer
        self.unchecked: list[str] = []
        self._verified: set[str] = set()
        try:
            self.records = self._read_directory()
            self._check_overlaps()
        except (struct.error, IndexError) as error:
            refuse(path, "a whole zip archive", f"a directory that ends early ({shown(str(error))})")

    def _end(self) -> tuple[int, int, int, int]:
        """Return (number of records, size and offset of the central directory, offset of the end record)."""
        size = len(self.buffer)
        tail_from = max(0, size - _END.size - 0xFFFF)
        tail = bytes(self.buffer[tail_from:size])
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            refuse(self.path, "a zip archive with its directory at the end", f"none in {size} bytes")
        end = tail_from + at
        _, disk, cd_disk, here, count, cd_size, cd_offset, comment = _END.unpack_from(tail, at)
        if end + _END.size + comment != size or disk or cd_disk or here != count:
            refuse(self.path, "one zip archive that ends with its directory", "bytes or disks beyond it")
        locator = end - _END64_LOCATOR.size
        if locator >= 0 and bytes(self.buffer[locator : locator + 4]) == b"PK\x06\x07":
            _, _, end64, disks = _END64_LOCATOR.unpack_from(self.buffer, locator)
            if end64 + _END64.size > locator or disks > 1:
                refuse(self.path, "a zip64 directory inside the file", f"one at byte {end64}")
            magic, _, _, _, disk, cd_disk, here, count64, size64, offset64 = _END64.unpack_from(self.buffer, end64)
            if magic != b"PK\x06\x06" or disk or cd_disk or here != count64:
                refuse(self.path, "a zip64 directory", shown(magic))
            for small, full, value in (
                (count, 0xFFFF, count64),
                (cd_size, _FULL32, size64),
                (cd_offset, _FULL32, offset64),
            ):
                if small not in (full, value):
                    refuse(self.path, "zip and zip64 directories that agree", f"{small} and {value}")
            count, cd_size, cd_offset, end = count64, size64, offset64, end64
        elif count == 0xFFFF or _FULL32 in (cd_size, cd_offset):
            refuse(self.path, "a zip64 directory", "none")
        return count, cd_size, cd_offset, end

    def _read_directory(self) -> dict[str, Record]:
        count, cd_size, cd_offset, end = self._end()
        if cd_offset + cd_size != end:
            refuse(self.path, f"the directory to end at byte {end}", f"byte {cd_offset + cd_size}")
        if count > MAX_RECORDS or count * _CENTRAL.size > cd_size:
            refuse(self.path, f"at most {min(MAX_RECORDS, cd_size // _CENTRAL.size)} records", str(count))
        records: dict[str, Record] = {}
        at = cd_offset
        for _ in range(count):
            record, at = self._read_entry(at, cd_offset, end)
            if record.name in records:
                refuse(f"{self.path}: {shown(record.name)}", "one record of a name", "two")
            records[record.name] = record
        if at != end:
            refuse(self.path, f"a directory of {cd_size} bytes", f"{at - cd_offset} bytes of entries")
        folded = {name.casefold() for name in records}
        if len(folded) != len(records):
            refuse(self.path, "record names that differ in more than case", "two that do not")
        return records

    def _read_entry(self, at: int, cd_offset: int, end: int) -> tuple[Record, int]:
        if at + _CENTRAL.size > end:
            refuse(self.path, "a whole directory entry", f"{end - at} bytes")
        fields = _CENTRAL.unpack_from(self.buffer, at)
        magic, _, _, flags, method, _, _, crc, stored, size, name_len, extra_len, comment_len, disk, _, _, header = (
            fields
        )
        after = at + _CENTRAL.size + name_len + extra_len + comment_len
        if magic != b"PK\x01\x02" or disk not in (0, 0xFFFF) or after > end:
            refuse(self.path, "a zip directory entry", f"{shown(magic)} at byte {at}")
        name_at = at + _CENTRAL.size
        name = self._name(bytes(self.buffer[name_at : name_at + name_len]))
        where = f"{self.path}: {shown(name)}"
        extra = bytes(self.buffer[name_at + name_len : name_at + name_len + extra_len])
        size, stored, header = _zip64(where, extra, size, stored, header)
        if flags & _FLAG_ENCRYPTED or method not in (_STORED, _DEFLATED):
            got = "an encrypted one" if flags & _FLAG_ENCRYPTED else f"compression method {method}"
            refuse(where, "a stored or deflated record", got, "Save the checkpoint again with torch.save.")
        if method == _STORED and stored != size:
            refuse(where, "a stored record of equal sizes", f"{stored} and {size} bytes")
        data = self._check_local(where, name, flags, method, crc, stored, size, header, cd_offset)
        return Record(name, method, crc, stored, size, header, data), after

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            refuse(self.path, "a record name in UTF-8", shown(raw))
        parts = name.rstrip("/").split("/")
        if (
            not name
            or "\\" in name
            or ":" in name
            or any(ord(c) < 32 for c in name)
            or any(p in ("", ".", "..") for p in parts)
        ):
            refuse(self.path, "record names that are plain relative paths", shown(name))
        return name

    def _check_local(
        self, where: str, name: str, flags: int, method: int, crc: int, stored: int, size: int, header: int, limit: int
    ) -> int:
        """Compare the local header with the directory; return where the data begins."""
        if header + _LOCAL.size > limit:
            refuse(where, f"a record before byte {limit}", f"byte {header}")
        fields = _LOCAL.unpack_from(self.buffer, header)
        magic, _, local_flags, local_method, _, _, local_crc, local_stored, local_size, name_len, extra_len = fields
        begin = header + _LOCAL.size
        data = begin + name_len + extra_len
        if magic != b"PK\x03\x04" or data + stored > limit:
            refuse(where, f"a record of {stored} bytes inside the file", f"byte {header} to {data + stored}")
        local_name = self._name(bytes(self.buffer[begin : begin + name_len]))
        if local_name != name or local_method != method or (local_flags ^ flags) & _FLAG_ENCRYPTED:
            refuse(where, "the local header to repeat the directory", shown(local_name))
        extra = bytes(self.buffer[begin + name_len : data])
        if _FULL32 in (local_size, local_stored):
            local_size, local_stored, _ = _zip64(where, extra, local_size, local_stored, 0)
        follows = bool(local_flags & _FLAG_DESCRIPTOR)
        for local, central in ((local_crc, crc), (local_stored, stored), (local_size, size)):
            if local != central and not (follows and local == 0):
                refuse(where, f"the local header to say {central}", str(local))
        return int(data)

    def _check_overlaps(self) -> None:
        before = 0
        for record in sorted(self.records.values(), key=lambda r: r.header):
            if record.header < before:
                refuse(f"{self.path}: {shown(record.name)}", f"a record after byte {before}", str(record.header))
            before = record.data + record.stored_size

    def check_small(self) -> None:
        """Check the CRC32 of records that are small, so that damage shows even in those that no tensor needs."""
        budget = _SMALL_TOTAL
        for record in self.records.values():
            if record.size <= _SMALL and record.size <= budget:
                budget -= record.size
                self.view(record)

    def view(self, record: Record, max_size: int | None = None) -> memoryview | bytes:
        """Return the bytes of a record, its CRC32 checked; a stored record is not copied.

        Raises:
            QdeqValueError: CRC32 differs, a deflated record is broken or larger than it says or than is allowed.

        """
        where = f"{self.path}: {shown(record.name)}"
        if max_size is not None and record.size > max_size:
            refuse(where, f"a record of at most {max_size} bytes", f"{record.size}", "Save the state_dict() alone.")
        if record.method == _STORED:
            data: memoryview | bytes = memoryview(self.buffer)[record.data : record.data + record.size]
        else:
            data = self._inflate(where, record)
        self._check_crc(where, record, data)
        return data

    def _inflate(self, where: str, record: Record) -> bytes:
        if record.size > MAX_INFLATED_BYTES:
            remedy = "Unpack and pack the archive again without compression."
            refuse(where, f"at most {MAX_INFLATED_BYTES} bytes in a deflated record", str(record.size), remedy)
        inflater = zlib.decompressobj(-15)
        try:
            source = memoryview(self.buffer)[record.data : record.data + record.stored_size]
            data = inflater.decompress(source, record.size + 1)
        except zlib.error as error:
            refuse(where, "deflated data", str(error))
        if len(data) != record.size or not inflater.eof:
            refuse(where, f"{record.size} bytes of deflated data", "another number")
        return data

    def _check_crc(self, where: str, record: Record, data: memoryview | bytes) -> None:
        if record.name in self._verified:
            return
        found = zlib.crc32(data)
        if record.crc == 0 and found != 0:  # a writer that leaves the checksum out
            self.unchecked.append(record.name)
        elif found != record.crc:
            refuse(where, f"CRC32 {record.crc:08x}", f"{found:08x}")
        self._verified.add(record.name)


def _zip64(where: str, extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Replace the fields that are full by those of the zip64 extra field, in its order: size, stored size, offset."""
    if _FULL32 not in (size, stored, header):
        return size, stored, header
    at = 0
    values: list[int] = []
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            break
        at += 4 + length
    fields = [size, stored, header]
    if len(values) < fields.count(_FULL32):
        refuse(where, "a zip64 extra field with every size", f"{len(values)} sizes")
    size, stored, header = (values.pop(0) if field == _FULL32 else field for field in fields)
    return size, stored, header
