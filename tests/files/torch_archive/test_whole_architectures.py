"""torchvision's quantizable models and the demo's VGG11, in every form torch saves, and in their float class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qdeq
from qdeq.demo.data import load_digits
from qdeq.demo.model import VGG11, prepare, to_int8
from tests.files.torch_archive.conftest import live_weights
from tests.files.torch_archive.forms import FORMS, FROZEN, check_form, poisoned
from tests.helpers.models import engine
from tools.models import SIDES, converted_model, example, float_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams"),
]
ALL_FORMS = (*FORMS, FROZEN)
# Every architecture in every form; other widths of it as a state dict.
WIDTHS = ("shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "resnext101_64x4d")
FEATURES, HIDDEN = 512, 512


def check_into(source, target: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Load into the float class: nothing stays unwritten, and outputs are those of the rebuilt model."""
    qdeq.dequantize_state_dict(source, into=poisoned(target))
    with torch.no_grad():
        found, wanted = target(x), qdeq.dequantize_model(model)(x)
    # A bias that was folded is added by the batch norm, after the sum, instead of by the convolution.
    tolerance = 1e-3 if any(isinstance(module, nn.BatchNorm2d) for module in target.modules()) else 0
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def check_all(
    model: nn.Module, forms: tuple[str, ...], target: nn.Module, x: Tensor, folder: Path, *, traced: bool = False
) -> None:
    expected = live_weights(model)
    for form in forms:
        path = folder / f"{form}.pt"
        check_form(model, form, path, expected, x if traced else None)
        if form == "state_dict":
            with qdeq.open(path) as archive:
                check_into(archive, target, model, x)
        path.unlink()


@pytest.mark.parametrize("name", SIDES)
def test_torchvision(name: str, tmp_path: Path) -> None:
    forms = ("state_dict",) if name in WIDTHS else ALL_FORMS
    check_all(converted_model(name), forms, float_model(name), example(name), tmp_path)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["vgg11", "vgg11_bn"])
def test_digits(batch_norm: bool, tmp_path: Path) -> None:
    torch.manual_seed(17)
    images, _ = load_digits()[0].batch(torch.arange(16))
    with engine("fbgemm"):
        prepared = prepare(VGG11(FEATURES, HIDDEN, batch_norm))
        prepared(images)
        model = to_int8(prepared)
    torch.manual_seed(18)
    check_all(model, ALL_FORMS, VGG11(FEATURES, HIDDEN, batch_norm), images, tmp_path, traced=True)
