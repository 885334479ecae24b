"""Files that appear complete under their names, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from qdeq.errors import QdeqError, QdeqValueError, expected

__all__ = ["NewFiles", "naming_errors"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class NewFiles:
    """A set of files of one folder. As a context: leaving it before :meth:`commit` removes every trace.

    Args:
        paths: the files, in the order in which they appear; the one that refers to the others last.
        force: replace files of these names.
        size: bytes that will be written, to be compared with the room on the disk before anything is.
        replaced: other files that belong to what is being replaced: in the way unless ``force``, then removed last.

    Raises:
        QdeqValueError: a file is in the way.
        QdeqError: the folder is not there, cannot be written to, or is too full.

    """

    def __init__(self, paths: Sequence[Path], *, force: bool, size: int, replaced: Sequence[Path] = ()) -> None:
        self._paths = list(paths)
        self._force = force
        self._replaced = list(replaced)
        self._open: dict[Path, tuple[int, Path]] = {}
        self._unfinished: list[Path] = []
        self._placed: list[Path] = []
        self._size = size

    def check(self) -> None:
        """Refuse what can be seen to fail before anything is written."""
        folder = self._paths[0].parent
        if not folder.is_dir():
            remedy = "Make it first, or name another one."
            raise QdeqError(expected(str(self._paths[0]), "a folder to write to", f"no folder {folder}", remedy))
        for path in (*self._paths, *self._replaced):
            if path.is_dir():
                raise QdeqValueError(expected(str(path), "a file name", "a folder", "Name a file in it."))
            if not self._force:
                self._check_free(path)
        disk = os.statvfs(folder)
        room = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and room < self._size:
            what = f"room for {self._size} bytes"
            raise QdeqError(
                expected(str(self._paths[0]), what, f"{room} free bytes", "Make room, or name another disk.")
            )

    def __enter__(self) -> NewFiles:
        self.check()
        try:
            for path in self._paths:
                unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                self._unfinished.append(unfinished)  # first, so that an interrupt finds it
                with self.naming_errors(path):
                    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                self._open[path] = (descriptor, unfinished)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def descriptor(self, path: Path) -> int:
        """Return the open file that will become ``path``."""
        return self._open[path][0]

    def unfinished(self, path: Path) -> Path:
        """Return where the file lies that will become ``path``."""
        return self._open[path][1]

    def write(self, path: Path, data: bytes, offset: int) -> None:
        """Write bytes into the file that will become ``path``."""
        view = memoryview(data)
        with self.naming_errors(path):
            while view:
                done = os.pwrite(self.descriptor(path), view, offset)
                view, offset = view[done:], offset + done

    def commit(self) -> int:
        """Bring everything to the disk, then give each file its name.

        Returns:
            Bytes of all files.

        """
        total = 0
        for path, (descriptor, _) in self._open.items():
            with self.naming_errors(path):
                os.fsync(descriptor)
                total += os.fstat(descriptor).st_size
        for path, (_, unfinished) in self._open.items():
            with self.naming_errors(path):
                self._place(unfinished, path)
        for path in self._replaced if self._force else ():
            path.unlink(missing_ok=True)
        _sync_folder(self._paths[0].parent)
        self._placed.clear()
        return total

    def _place(self, unfinished: Path, path: Path) -> None:
        if not self._force:
            try:
                os.link(unfinished, path)  # unlike a rename, it never replaces
                self._placed.append(path)
                return
            except FileExistsError:
                self._check_free(path)
                raise
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            self._check_free(path)
        os.replace(unfinished, path)
        if not self._force:
            self._placed.append(path)

    def _check_free(self, path: Path) -> None:
        if os.path.lexists(path):
            remedy = "Choose another name, or replace it with force=True (--force)."
            raise QdeqValueError(expected(str(path), "no file of this name yet", "one that is there", remedy))

    def naming_errors(self, path: Path | None = None) -> contextlib.AbstractContextManager[None]:
        """Turn the system's errors into qdeq's, with the name of the file."""
        return naming_errors(path or self._paths[0], self._size)

    def _remove(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()
        for path in self._unfinished:
            path.unlink(missing_ok=True)
        for path in self._placed:
            path.unlink(missing_ok=True)
        self._placed.clear()


@contextlib.contextmanager
def naming_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the system's errors into qdeq's, with the name of the file or folder that is written, of ``size`` bytes."""
    try:
        yield
    except OSError as error:
        if isinstance(error, QdeqError):
            raise
        if error.errno in _FULL:
            remedy, room = "Make room, or name another disk.", "room" if size is None else f"room for {size} bytes"
            raise QdeqError(expected(str(path), room, str(error.strerror), remedy)) from error
        remedy = "Check the folder and its permissions, or name another one."
        raise QdeqError(expected(str(path), "a file that can be written", str(error.strerror), remedy)) from error


def _sync_folder(folder: Path) -> None:
    """Make the names last, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
