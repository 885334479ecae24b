"""What becomes of the int8 model's activation quantization in the rebuilt model.

:mod:`modes` has the three modes, :mod:`postprocess` the modules that clamp and round, :mod:`flow` and :mod:`rules` find
the operations that round on quantized tensors, :mod:`placing` and :mod:`rewrite` put the rounding behind them.
"""

from qdeq.grids.grid import Grid
from qdeq.grids.modes import check_mode, drop_activations, imitate
from qdeq.grids.modules import Clamp, FakeQuantize

__all__ = ["Clamp", "FakeQuantize", "Grid", "check_mode", "drop_activations", "imitate"]
