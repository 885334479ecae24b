"""Files that the demo leaves behind: complete or not there, and never over somebody's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qdeq.errors import QdeqValueError, expected
from qdeq.files.new_files import NewFiles

__all__ = ["FILES", "Folder"]

FILES = ("float.pt", "int8.pt", "dequantized.pt", "report.json", "results.json")


class Folder:
    """A folder for :data:`FILES`, made if it is not there; ``force`` replaces files of these names.

    Raises:
        QdeqValueError: the folder cannot be made, or a file is in the way and ``force`` is false.

    """

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.force = force
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = expected("--save", "a folder that can be made", f"{path} ({error.strerror})", "Name another one.")
            raise QdeqValueError(what) from error
        for name in FILES:
            self._free(name)

    def _free(self, name: str) -> Path:
        target = self.path / name
        if target.exists() and not self.force:
            raise QdeqValueError(
                expected("--save", f"no {name} in the folder", str(target), "Name another folder, or add --force.")
            )
        return target

    def write(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Let ``writer`` write one of :data:`FILES` and return its path; readers see all of it or nothing."""
        target = self._free(name)
        with NewFiles([target], force=self.force, size=0) as new:
            writer(new.unfinished(target))
            new.commit()
        return target
