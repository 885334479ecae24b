"""Archives with code of the tests' own."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.sources.torchscript.scripts import saved


class Plain(nn.Module):
    """A module whose code is easy to put something else in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


PATH = "__torch__.tests.sources.torchscript.archives"
HEAD = """class Plain(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
  training : bool
"""


def with_code(body: str, *, head: str = HEAD, more: str = "") -> bytes:
    """An archive whose ``forward(self, x)`` has these lines; ``more`` stands behind the class."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = f"{head}  def forward(self: __torch__.Plain,\n    x: Tensor) -> Tensor:\n{lines}{more}"
    return changed(saved(torch.jit.script(Plain())), lambda name, data: text.encode() if _is_code(name) else data)


def changed(archive: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """An archive with other records: ``change`` gives the bytes of each, None to leave it out."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(written, "w") as target:
        for record in source.infolist():
            data = change(record.filename, source.read(record))
            if data is not None:
                target.writestr(record.filename, data)
    return written.getvalue()


def _is_code(name: str) -> bool:
    return name.endswith(".py")
