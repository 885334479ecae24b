"""Writes docs/supported.md from qdeq/sources/eager/mappings.py and the module classes that torch ships.

python docs/make_supported.py          write the file
python docs/make_supported.py --check  exit with 1 if it is out of date
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.nn as aonn

    from qdeq.sources.eager.mappings import RULES, why_not_rebuilt

PAGE = Path(__file__).with_name("supported.md")

HEADER = """# What `dequantize_model` rebuilds

Written by `docs/make_supported.py` from `qdeq/sources/eager/mappings.py`; a test fails when torch ships a class that
this page does not name. Classes are matched exactly: a subclass is an unknown class, which `qdeq.register` can teach
([extending](extending.md)). The old names (`torch.nn.quantized`, `torch.nn.intrinsic.quantized`, ...) are the same
classes.

Every weight has the bits of `dequantize()` of the module's unpacked weight and every bias is a copy, on fbgemm, x86,
onednn and qnnpack, whichever engine is current. Three limits are torch's own:

- qnnpack cannot unpack 3d convolutions: such a module is refused by name.
- qnnpack stores zeros where a layer has no bias. Where the module says that it has none (LSTM, cells), the rebuilt one
  has none; elsewhere the zeros are kept and the report says so.
- fbgemm's direct transposed convolution (`ConvTranspose2d`, kernel (2, 1..6), stride 1 or 2, no padding, channels
  divisible by 8, one group) cannot be unpacked or copied: `unpack()` returns uninitialized memory. It is refused unless
  `recover_direct_conv=True` states that the module was never copied, saved or loaded. Under x86 some CPUs pack these
  shapes with onednn, which gives them back.

A fused layer becomes the layer and its activation in the two places they had before fusing, where the forward proves
it; otherwise a class of the same parameter names that applies the activation itself (`LinearReLU`, `ConvReLU2d`, ...).
"""


def torch_classes() -> list[type[nn.Module]]:
    """Every module class that is defined below ``torch.ao.nn``."""
    found: set[type[nn.Module]] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for info in pkgutil.walk_packages(aonn.__path__, "torch.ao.nn."):
            module = importlib.import_module(info.name)
            found |= {
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, nn.Module)
                and value.__module__.startswith("torch.ao.nn")
            }
    return sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__))


def dotted(cls: type[nn.Module]) -> str:
    """The name as in reports: without the ``modules.<file>`` part."""
    return f"{cls.__module__.partition('.modules')[0]}.{cls.__qualname__}"


def page() -> str:
    """The whole text; raises where torch has a class that no list names."""
    rows: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for cls in torch_classes():
        name = dotted(cls)
        namespace, _, short = name.rpartition(".")
        if cls in RULES:
            rule = RULES[cls]
            rows.setdefault(namespace, []).append(f"| `{short}` | {rule.becomes} | {rule.note} |")
        else:
            reason = why_not_rebuilt(name)
            if reason is None:
                raise SystemExit(f"{name} is in no list of qdeq/sources/eager/mappings.py")
            others.setdefault(reason, []).append(f"`{name.removeprefix('torch.ao.nn.')}`")
    lines = [HEADER]
    for namespace, table in rows.items():
        lines += [f"## `{namespace}`", "", "| class | becomes | note |", "|---|---|---|", *table, ""]
    lines += ["## Not rebuilt by themselves", "", "Names below `torch.ao.nn`.", ""]
    lines += [f"- {reason}: {', '.join(names)}." for reason, names in others.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the page."""
    text = page()
    if "--check" in sys.argv:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
