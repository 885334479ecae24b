"""What a comparison of quantized models gets wrong silently, each put to the test."""

import copy

import pytest
import torch

from qdeq.demo.chapters import Row, Run, accuracy, every_bit
from qdeq.demo.model import VGG11, prepare, to_int8
from qdeq.demo.naive import copy_in_place, copy_through_state_dict
from qdeq.demo.story import _engine, _torchs_own_warnings_silenced
from qdeq.demo.train import logits_of


@pytest.fixture(autouse=True)
def surroundings():
    with _engine(), _torchs_own_warnings_silenced():
        yield


def network(seed: int) -> VGG11:
    torch.manual_seed(seed)
    return VGG11(512, hidden=512)


@pytest.fixture(scope="module")
def models(few_digits):
    """Float, prepared and int8 VGG11 without any training: enough to see which weights arrive where."""
    with _engine(), _torchs_own_warnings_silenced():
        model = network(3)
        prepared = prepare(model)
        prepared(few_digits[0].batch(torch.arange(32))[0])  # shows the observers their ranges
        return model, prepared, to_int8(prepared)


def distance(model, reference, images) -> float:
    """Largest difference of a logit, in units of the reference's spread."""
    expected = logits_of(reference, images)
    return ((logits_of(model, images) - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("loop", [copy_through_state_dict, copy_in_place])
def test_training_seed_hides_the_missing_copy(models, few_digits, loop):
    _, _, int8 = models
    same, other = network(3), network(4)
    assert loop(int8, same) == loop(int8, other)
    assert distance(same, int8, few_digits[1]) < 1
    assert distance(other, int8, few_digits[1]) > 3


def test_loop_copies_81_percent_of_the_weights_whichever_way(models):
    int8 = models[2]
    first, second = network(4), network(5)
    copied = copy_through_state_dict(int8, first)
    assert copied == copy_in_place(int8, second)
    assert copied == [f"features.{i}.weight" for i in (0, 3, 6, 8, 11, 13, 16, 18)]
    untouched = network(4)
    for name in copied:
        assert torch.equal(first.get_parameter(name).view(torch.int32), second.get_parameter(name).view(torch.int32))
        assert not torch.equal(first.get_parameter(name), untouched.get_parameter(name))
    with torch.device("meta"):
        full = VGG11(512)
    weights = {name: value.numel() for name, value in full.named_parameters() if name.endswith("weight")}
    assert sum(weights.values()) == 11_355_840
    assert round(100 * sum(weights[name] for name in copied) / sum(weights.values()), 1) == 81.2


def test_evaluating_a_prepared_model_does_not_move_its_observers(models, few_digits):
    prepared = copy.deepcopy(models[1])
    before = copy.deepcopy(prepared.state_dict())
    logits_of(prepared, few_digits[1])
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    # eval() alone does not hold them:
    with torch.no_grad():
        prepared.eval()(few_digits[1].batch(torch.arange(32))[0])
    assert any(not torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_prepared_model_is_not_the_float_model(models, few_digits):
    model, prepared, _ = models
    assert not any("fake_quant" in name for name in model.state_dict())
    assert not torch.equal(logits_of(model, few_digits[1]), logits_of(prepared, few_digits[1]))


def run_of(int8, rebuilt, int8_accuracy=98.0, rebuilt_accuracy=98.0) -> Run:
    first, second = Row("int8", int8_accuracy, 100, 0), Row("qdeq", rebuilt_accuracy, 100, 0)
    return Run([first, second], first, second, int8, rebuilt, (rebuilt, rebuilt), [], images=None)


class Silent:
    def print(self, *_args, **_kwargs) -> None:
        pass


@pytest.fixture
def rebuilt(models):
    """A float network with every weight and bias of the int8 model, assigned by hand."""
    result = network(9)
    for name, module in models[2].named_modules():
        if callable(getattr(module, "weight", None)):
            target = result.get_submodule(name)
            target.weight = torch.nn.Parameter(module.weight().dequantize())
            target.bias = torch.nn.Parameter(module.bias().detach().clone())
    return result


def test_bit_check_passes_equal_models(models, rebuilt):
    outcome = every_bit(run_of(models[2], rebuilt), Silent())
    assert outcome.problems == []
    assert outcome.facts["bits"]["weights"] == {"tensors": 10, "values": 9_484_992, "differ": 0}


@pytest.mark.parametrize("name", ["features.0.weight", "classifier.2.bias"])
def test_bit_check_finds_one_changed_bit(models, rebuilt, name):
    value = rebuilt.get_parameter(name).data.view(torch.int32)
    value[(3,) + (0,) * (value.dim() - 1)] ^= 1
    assert every_bit(run_of(models[2], rebuilt), Silent()).problems == [f"{name}: 1 values differ in their bits"]


def test_bit_check_finds_what_only_one_model_has(models, rebuilt):
    rebuilt.classifier[2].bias = None
    rebuilt.extra = torch.nn.Parameter(torch.zeros(1))
    problems = every_bit(run_of(models[2], rebuilt), Silent()).problems
    assert problems == ["classifier.2.bias: in one of the two models only", "extra: in one of the two models only"]


@pytest.mark.parametrize(
    ("int8_accuracy", "rebuilt_accuracy", "said"),
    [(98.0, 98.4, []), (94.9, 94.9, ["under 95 %"]), (98.0, 97.4, ["0.60 points"]), (94.0, 95.0, ["under", "1.00"])],
)
def test_accuracy_limits(models, rebuilt, int8_accuracy, rebuilt_accuracy, said):
    problems = accuracy(run_of(models[2], rebuilt, int8_accuracy, rebuilt_accuracy), Silent()).problems
    assert len(problems) == len(said)
    assert all(words in problem for words, problem in zip(said, problems, strict=True))
