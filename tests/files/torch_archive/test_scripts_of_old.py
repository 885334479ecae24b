"""Scripts that this torch does not write any more: of torch 1.3 to 1.7, of graph mode, and packed for mobile."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.files.torch_archive.forms import bits, poisoned
from tools.models import engine


class Script:
    """A script's archive, written by hand: objects by their class's qualified name and state, tensors in records."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def write(self, top: bytes, path: Path, *, constants: bytes = b")", mobile: bool = False) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("old/data.pkl", b"\x80\x02" + top + b".")
            if constants:  # torch.load takes a file that has them for a script
                archive.writestr("old/constants.pkl", b"\x80\x02" + constants + b".")
            archive.writestr("old/version", b"3\n")
            if mobile:
                archive.writestr("old/bytecode.pkl", b"\x80\x02).")
            for at, data in enumerate(self.storages):
                archive.writestr(f"old/data/{at}", data)
        return path

    @staticmethod
    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def object(self, name: str, state: bytes) -> bytes:
        module, _, last = name.rpartition(".")
        return b"c" + module.encode() + b"\n" + last.encode() + b"\n)\x81" + state + b"b"

    def module(self, name: str, **attributes: bytes) -> bytes:
        """A module of a script: its state is a dict."""
        items = b"".join(self.plain(key) + value for key, value in attributes.items())
        return self.object(f"__torch__.{name}", b"}(" + items + b"u")

    def tuple(self, *items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def tensor(self, value: Tensor) -> bytes:
        kind = {torch.float32: "Float", torch.qint8: "QInt8"}[value.dtype]
        raw = value.int_repr() if value.is_quantized else value
        self.storages.append(raw.contiguous().numpy().tobytes())
        key = str(len(self.storages) - 1)
        storage = b"(" + self.plain("storage") + b"ctorch\n" + f"{kind}Storage\n".encode() + self.plain(key)
        storage += self.plain("cpu") + self.plain(value.numel()) + b"tQ"
        layout = self.plain(0) + self.plain(tuple(value.shape)) + self.plain(torch.empty(value.shape).stride())
        if not value.is_quantized:
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"\x89}tR"
        scheme = b"(ctorch\nper_tensor_affine\n" + self.plain(value.q_scale()) + self.plain(value.q_zero_point()) + b"t"
        return b"ctorch._utils\n_rebuild_qtensor\n(" + storage + layout + scheme + b"\x89}tR"


WEIGHT = torch.quantize_per_tensor(torch.linspace(-1, 1, 12).reshape(3, 4), 0.01, 3, torch.qint8)
BIAS = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("module", "rest"),
    [
        ("torch.nn.quantized.modules.linear", (True, 12)),
        ("torch.nn.quantized.modules.linear.___torch_mangle_8", (False,)),
    ],
)
def test_linears_of_torch_1_3_to_1_7_have_the_names_of_their_modules(
    module: str, rest: tuple[object, ...], bias: bool, tmp_path: Path
) -> None:
    script = Script()
    state = script.tuple(script.tensor(WEIGHT), script.tensor(BIAS) if bias else b"N", *map(script.plain, rest))
    holder = script.object(f"__torch__.{module}.LinearPackedParams", state)
    linear = script.module(
        f"{module}.Linear", _packed_params=holder, scale=script.plain(0.5), zero_point=script.plain(7)
    )
    path = script.write(script.module("net.Net", fc=linear), tmp_path / "old.pt")
    with qdeq.open(path) as archive:
        assert list(archive) == (["fc.weight", "fc.bias"] if bias else ["fc.weight"])
        assert torch.equal(bits(archive["fc.weight"]), bits(WEIGHT.dequantize()))
        assert archive.activation_qparams == {"fc": (0.5, 7)}
        net = nn.Sequential()
        net.fc = nn.Linear(4, 3, bias=bias)
        qdeq.dequantize_state_dict(archive, into=poisoned(net))
    assert torch.equal(bits(net.fc.weight), bits(WEIGHT.dequantize()))


def test_a_float16_linear_of_torch_1_x(tmp_path: Path) -> None:
    script = Script()
    half = torch.randn(3, 4).half().float()
    state = script.tuple(script.tensor(half), b"N", b"\x88", script.plain(5))
    holder = script.object("__torch__.torch.nn.quantized.modules.linear.LinearPackedParams", state)
    path = script.write(
        script.module("net.Net", fc=script.module("x.Linear", _packed_params=holder)), tmp_path / "h.pt"
    )
    assert torch.equal(qdeq.open(path)["fc.weight"], half)


class Branch(nn.Module):
    """Three layers of three shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.fc(torch.relu(self.conv(x)).mean((2, 3)))))


def test_graph_mode_weights_go_into_the_float_class_by_shape(tmp_path: Path) -> None:
    """Graph mode freezes the script: the names of the modules are gone, each weight has a number."""
    from torch.ao.quantization import get_default_qconfig
    from torch.ao.quantization.quantize_jit import quantize_jit

    torch.manual_seed(0)
    with engine("fbgemm"):
        script = torch.jit.script(Branch().eval().requires_grad_(False))
        data = torch.randn(2, 3, 8, 8)
        quantized = quantize_jit(script, {"": get_default_qconfig("fbgemm")}, lambda model, x: model(x), [data])
        torch.jit.save(quantized, tmp_path / "graph.pt")
    with qdeq.open(tmp_path / "graph.pt") as archive:
        numbers = [name.rpartition("packed_weight_")[2] for name in archive]
        assert numbers == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
        net = poisoned(Branch())
        qdeq.dequantize_state_dict(archive, into=net)
        assert torch.equal(bits(net.fc.weight), bits(list(archive.values())[2]))
    assert (net(data) - quantized(data)).abs().max() < 0.05


def test_float_weights_packed_for_mobile_are_read(tmp_path: Path) -> None:
    script = Script()
    weight, kernel, up = torch.randn(3, 4), torch.randn(2, 3, 1, 1), torch.randn(3, 2, 2, 2)
    pair, one = script.plain([1, 1]), script.plain(1)
    limits = (script.plain(0.0), b"N")
    linear = script.tuple(script.tensor(weight), script.tensor(BIAS), *limits)
    conv = script.tuple(script.tensor(kernel), b"N", pair, pair, pair, one, *limits)
    transposed = script.tuple(script.tensor(up), b"N", pair, pair, pair, pair, one, *limits)
    prefix = "__torch__.torch.classes.xnnpack"
    top = script.module(
        "net.Net",
        **{
            "prepack._jit_pass_packed_weight_0": script.object(f"{prefix}.LinearOpContext", linear),
            "prepack._jit_pass_packed_weight_1": script.object(f"{prefix}.Conv2dOpContext", conv),
            "prepack._jit_pass_packed_weight_2": script.object(f"{prefix}.TransposeConv2dOpContext", transposed),
        },
    )
    with qdeq.open(script.write(top, tmp_path / "model.ptl", mobile=True)) as archive:
        assert archive.warnings == []
        values = {name.removeprefix("prepack._jit_pass_packed_weight_"): value for name, value in archive.items()}
    assert list(values) == ["0.weight", "0.bias", "1.weight", "2.weight"]
    for name, wanted in (("0.weight", weight), ("0.bias", BIAS), ("1.weight", kernel), ("2.weight", up)):
        assert torch.equal(values[name], wanted)


def test_what_cannot_be_read_is_named_and_the_rest_is_not_lost(tmp_path: Path) -> None:
    script = Script()
    holder = script.object("__torch__.torch.classes.vulkan.Conv2dPackedContext", script.tuple(script.tensor(BIAS)))
    top = script.module("net.Net", fc=script.module("x.Linear", weight=script.tensor(BIAS)), conv=holder)
    with qdeq.open(script.write(top, tmp_path / "model.ptl")) as archive:
        assert list(archive) == ["fc.weight"]
        assert any(text.startswith("conv: ") and "vulkan.Conv2dPackedContext" in text for text in archive.warnings)
        assert "vulkan.Conv2dPackedContext" in archive.report.dropped[0].reason
        _, report = qdeq.dequantize_state_dict(archive)
    assert [item.source for item in report.dropped] == ["conv"]


def test_a_file_of_unknown_packed_weights_alone_is_refused_by_their_class(tmp_path: Path) -> None:
    script = Script()
    top = script.module("net.Net", conv=script.object("__torch__.torch.classes.vulkan.Linear", script.tuple()))
    with pytest.raises(qdeq.QdeqValueError, match=r"model\.ptl: .*conv: packed parameters of .*vulkan\.Linear"):
        qdeq.open(script.write(top, tmp_path / "model.ptl"))


def test_a_mobile_context_of_another_layout_is_refused(tmp_path: Path) -> None:
    script = Script()
    top = script.object("__torch__.torch.classes.xnnpack.LinearOpContext", script.tuple(script.tensor(BIAS)))
    with pytest.raises(qdeq.QdeqValueError, match=r"bad\.pt: fc: expected a weight and a bias packed for mobile"):
        qdeq.open(script.write(script.module("net.Net", fc=top), tmp_path / "bad.pt"))


def test_a_convolution_class_of_the_users_own_keeps_its_names(tmp_path: Path) -> None:
    """What a subclass of nnq.Conv2d pickles is torch's tuple, wherever its module lies."""
    script = Script()
    kernel = torch.quantize_per_tensor(torch.randn(2, 3, 1, 1), 0.02, 0, torch.qint8)
    head = [script.plain(v) for v in (3, 2, (1, 1), (1, 1), (0, 0), (1, 1), False, (0, 0), 1, "zeros")]
    numbers = [script.plain(0.25), script.plain(5), b"\x89"]
    conv = script.object("mine.blocks.Block", script.tuple(*head, script.tensor(kernel), b"N", *numbers))
    path = script.write(b"}" + script.plain("first") + conv + b"s", tmp_path / "own.pt")
    with qdeq.open(path) as archive:
        assert list(archive) == ["first.weight"]
        assert archive.activation_qparams == {"first": (0.25, 5)}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_the_archive_written_by_hand_is_one_that_torch_reads(tmp_path: Path) -> None:
    """The layout of tensors above is torch's own: it loads the same values."""
    script = Script()
    path = tmp_path / "w.pt"
    script.write(b"}" + script.plain("w") + script.tensor(WEIGHT) + b"s", path, constants=b"")
    loaded = torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert torch.equal(loaded["w"].int_repr(), WEIGHT.int_repr())
