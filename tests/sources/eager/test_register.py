from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

import qdeq
from qdeq import QdeqError, dequantize_model
from qdeq.sources.eager import mappings
from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import build


class Scaled(nn.Module):
    """A quantized class that qdeq has never heard of: an int8 matrix and one factor."""

    def __init__(self, rows: int = 3, columns: int = 4) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
        self.weight = torch._make_per_tensor_quantized_tensor(integers, 0.25, 0)
        self.scale, self.zero_point = 0.5, 3


def build_scaled(module: Scaled, path: str, report: qdeq.Report) -> nn.Linear:
    layer = nn.Linear(module.in_features, module.out_features, bias=False)
    with torch.no_grad():
        layer.weight.copy_(qdeq.dequantize(module.weight))
    report.note(path, "was a Scaled")
    return layer


@pytest.fixture(autouse=True)
def _clean_registry():
    before = dict(mappings._REGISTERED)
    yield
    mappings._REGISTERED.clear()
    mappings._REGISTERED.update(before)


def test_unknown_until_registered():
    model = nn.Sequential(Scaled())
    with pytest.raises(QdeqError, match=r"0 is .*Scaled.*qdeq\.register"):
        dequantize_model(model)
    qdeq.register(Scaled, build_scaled)
    rebuilt, report = dequantize_model(model, return_report=True)
    assert type(rebuilt[0]) is nn.Linear
    assert_same_bits(rebuilt[0].weight, model[0].weight.dequantize())
    assert report.notes["0"] == ["was a Scaled"]
    assert [(entry.target, entry.source) for entry in report.entries] == [("0.weight", "0")]
    assert {item.source for item in report.dropped} == {"0.scale", "0.zero_point"}


def test_what_a_builder_returns_is_taken_even_if_it_counts_as_false():
    """An empty Sequential has the length 0."""

    class Nothing(nn.Sequential):
        def __init__(self, why: str) -> None:
            super().__init__()
            self.why = why

    qdeq.register(Scaled, lambda module, path, report: Nothing("dropped"))
    assert dequantize_model(nn.Sequential(Scaled()))[0].why == "dropped"


@pytest.mark.parametrize("activations", ["clamp", "fake_quant"])
def test_the_output_of_a_registered_class_is_named_as_not_imitated(activations):
    """Its scale and zero point may be those of its weight: only its builder knows."""
    qdeq.register(Scaled, build_scaled)
    model = nn.Sequential(Scaled(), nnq.Linear(3, 2))
    rebuilt, report = dequantize_model(model, activations=activations, return_report=True)
    assert [item.path for item in report.uncovered] == ["0"]
    assert not hasattr(rebuilt[0], "activation_post_process")
    assert hasattr(rebuilt[1], "activation_post_process")
    assert not dequantize_model(model, return_report=True)[1].uncovered


def test_explain_compares_what_the_builder_returns_also_where_nothing_else_is_quantized():
    qdeq.register(Scaled, build_scaled)
    model = nn.Sequential(Scaled())
    rebuilt = dequantize_model(model)
    assert qdeq.explain(model, rebuilt).agrees
    with torch.no_grad():
        rebuilt[0].weight[1, 2] += 1
    wrong = qdeq.explain(model, rebuilt)
    assert not wrong.agrees
    assert [(item.module, item.kind) for item in wrong.findings] == [("0", "parameter_wrong")]


def test_dtype_applies_to_what_a_registered_builder_returns():
    qdeq.register(Scaled, build_scaled)
    assert dequantize_model(nn.Sequential(Scaled()), dtype=torch.bfloat16)[0].weight.dtype == torch.bfloat16


def test_registering_again_replaces_and_goes_before_the_projects_own():
    class Marked(nn.Linear):
        pass

    qdeq.register(nnq.Linear, lambda module, path, report: nn.Linear(module.in_features, module.out_features))
    qdeq.register(nnq.Linear, lambda module, path, report: Marked(module.in_features, module.out_features))
    assert type(dequantize_model(nn.Sequential(build(nnq.Linear, 4, 3, backend="fbgemm")))[0]) is Marked


def test_a_subclass_is_another_class():
    class Sub(Scaled):
        pass

    qdeq.register(Scaled, build_scaled)
    with pytest.raises(QdeqError, match="Sub"):
        dequantize_model(nn.Sequential(Sub()))


WRONG = {
    "None": (lambda m, p, r: None, r"^up\.0: expected a torch\.nn\.Module from its builder, got .*NoneType"),
    "a tensor": (lambda m, p, r: torch.ones(2), r"^up\.0: expected a torch\.nn\.Module from its builder, got .*Tensor"),
    "itself": (lambda m, p, r: m, r"^up\.0: expected a float module, got .*Scaled"),
    "another size": (lambda m, p, r: nn.Linear(9, 3, bias=False), r"^up\.0: expected in_features=4 .*got 9"),
    "another shape": (
        lambda m, p, r: nn.Conv2d(4, 3, 1),
        r"^up\.0\.weight: expected shape \(3, 4\), got \(3, 4, 1, 1\)",
    ),
    "unwritten": (
        lambda m, p, r: nn.Linear(4, 3, device="meta"),
        r"unwritten parameters \['up\.0\.bias', 'up\.0\.weight'\]",
    ),
    "an exception": (lambda m, p, r: 1 / 0, r"^up\.0: .*ZeroDivisionError"),
}


@pytest.mark.parametrize(("builder", "message"), WRONG.values(), ids=WRONG)
def test_wrong_results_are_named(builder, message):
    qdeq.register(Scaled, builder)
    model = nn.ModuleDict({"up": nn.Sequential(Scaled())})
    integers = model["up"][0].weight.int_repr()
    with pytest.raises(QdeqError, match=message):
        dequantize_model(model)
    assert torch.equal(model["up"][0].weight.int_repr(), integers)


def test_memory_must_not_be_shared():
    class WithBias(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3))

    def aliasing(module, path, report):
        layer = nn.Linear(4, 3)
        layer.bias = module.bias
        return layer

    qdeq.register(WithBias, aliasing)
    with pytest.raises(QdeqError, match=r"^0\.bias: .*memory of the quantized module.*Clone"):
        dequantize_model(nn.Sequential(WithBias()))


@pytest.mark.parametrize("kind", [Tensor, 3, "nn.Linear", nn.Linear(2, 2)])
def test_only_module_classes_can_be_registered(kind):
    with pytest.raises(QdeqError, match="quantized_class: expected a subclass"):
        qdeq.register(kind, build_scaled)


def test_only_functions_can_be_builders():
    with pytest.raises(QdeqError, match="builder: expected a function"):
        qdeq.register(Scaled, nn.Linear(2, 2).weight)
