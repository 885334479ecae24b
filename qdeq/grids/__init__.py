"""What becomes of the int8 model's activation quantization in the rebuilt model.

:mod:`modes` has the modes, :mod:`modules` what clamps and rounds, :mod:`follow` and :mod:`rules` find the operations
that round on quantized tensors, :mod:`place` puts the rounding behind them, :mod:`exact` makes the result int8's to the
bit.
"""

from qdeq.grids.grid import Grid
from qdeq.grids.modes import check_mode, drop_activations, imitate
from qdeq.grids.modules import Clamp, FakeQuantize

__all__ = ["Clamp", "FakeQuantize", "Grid", "check_mode", "drop_activations", "imitate"]
