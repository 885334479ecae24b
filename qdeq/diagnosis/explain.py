"""``explain``: why two models disagree; ``compare``: by how much, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdeq.diagnosis.findings.plain import plain_findings, unread_findings
from qdeq.diagnosis.findings.structure import structure_findings
from qdeq.diagnosis.findings.uncalibrated import uncalibrated_findings, uncalibrated_outputs
from qdeq.diagnosis.findings.verdict import order, verdict
from qdeq.diagnosis.findings.weights import weight_findings
from qdeq.diagnosis.kinds import REBUILD
from qdeq.diagnosis.measure.activations import fill_table, runtime_findings
from qdeq.diagnosis.measure.attribution import Attribution, attribute
from qdeq.diagnosis.measure.data import batches
from qdeq.diagnosis.measure.imitation import Imitations
from qdeq.diagnosis.measure.judging import Run, accuse, acquit
from qdeq.diagnosis.measure.kernels import kernel_findings
from qdeq.diagnosis.measure.repair import Repairs
from qdeq.diagnosis.measure.sensitivity import Progress, sensitivities
from qdeq.diagnosis.measure.watching import run_side_by_side
from qdeq.diagnosis.results import Finding, Layer, Sensitivity, make_finding
from qdeq.diagnosis.say.explanation import Explanation
from qdeq.diagnosis.say.remedies import in_terms_of
from qdeq.diagnosis.sides.float_side import float_tensors
from qdeq.diagnosis.sides.int8_side import read_int8_side
from qdeq.diagnosis.sides.integers import Int8Side, IntegerLayer
from qdeq.diagnosis.sides.open import Side, open_side
from qdeq.diagnosis.sides.pairs import Pair, match_layers
from qdeq.errors import QdeqValueError, expected
from qdeq.rebuild import dequantize_model

__all__ = ["explain"]

Source = nn.Module | Mapping[str, Any] | str | Path
Data = Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]

# Attribution by repair and the sensitivity run on the data's first samples, this many at most.
MOST_REPAIR_SAMPLES = 512


@dataclass
class _Ran:
    """What running both models brings."""

    run: Run | None = None
    repaired: Attribution = field(default_factory=Attribution)
    sensitivity: list[Sensitivity] = field(default_factory=list)


def explain(
    int8_model: Source,
    float_model: Source,
    data: Data | None = None,
    *,
    layers: bool = True,
    sensitivity: bool | str = False,
    progress: Progress | None = None,
    trust: bool = False,
) -> Explanation:
    """Say why a quantized model and a float model disagree.

    The weights are compared with the integers they should come from; activations, batch norm and training mode are
    compared by tracing both models. With data both are run too, on copies that share the parameters: the table of
    layers gets numbers, every fault is repaired, alone and after the others, to see what it causes, and outputs that
    part are a finding of their own.

    Args:
        int8_model: converted model, its ``state_dict()``, or the path of a checkpoint.
        float_model: float model, prepared QAT model, ``state_dict()`` or path. A state_dict is run in the
            architecture that :func:`qdeq.dequantize_model` rebuilds.
        data: a batch, or an iterable of batches such as a DataLoader. A batch is a tensor (n, ...), a tuple of the
            forward's arguments, or a dict of them by name; with labels int64 (n,) as the last of a tuple, behind it
            (``((a, b), labels)``), or in the dict as ``labels``. With labels, accuracy is measured.
        layers: fill ``Explanation.layers``.
        sensitivity: fill ``Explanation.sensitivity``: what quantizing each layer costs, weights and activations apart
            (True, two forwards of the float model for each layer) or at once (``"together"``, one forward). Needs data.
        progress: called while that is measured, as ``progress(module, done, total)``.
        trust: also read files that hold a pickled model or TorchScript; reading them runs their code.

    Returns:
        The explanation; both models are as before.

    Raises:
        QdeqTypeError: a side or ``data`` is of no known kind.
        QdeqValueError: nothing quantized on the first side, no layer in common, a file that cannot be read, data that
            a model does not take, labels that do not fit, a forward that fails (the module is named), or data with a
            side that cannot run.

    """
    _check_sensitivity(sensitivity, data)
    ours, theirs = open_side(int8_model, "int8_model", trust=trust), open_side(float_model, "float_model", trust=trust)
    held = read_int8_side(ours)
    quantized = held.layers
    if not held.is_quantized:
        remedy = "Pass the converted model first and the float model second."
        raise QdeqValueError(expected("int8_model", "a model with quantized weights", "none", remedy))
    pairs, alone = match_layers(held, theirs)
    total = max(1, sum(layer.numel for layer in quantized))
    findings, table, histograms = weight_findings(pairs)
    findings += [_no_partner(layer, total) for layer in alone]
    findings += plain_findings(held, theirs, total) + unread_findings(held.unread)
    findings += uncalibrated_outputs(held) if ours.model is None else uncalibrated_findings(ours.model, quantized)
    right = {item.module for item in findings if item.kind == "rounding"}
    if theirs.model is not None:
        findings += structure_findings(ours.model, theirs.model, pairs, right)
    ran = _Ran()
    if data is not None:
        findings, ran = _run(ours, held, theirs, pairs, table, findings, data, sensitivity, progress)
    findings = order(findings, ran.repaired.groups)
    for item in findings:
        if any(f"int8_model.get_submodule('{path}')" in item.remedy for path in ours.functions):
            item.remedy = REBUILD
        item.remedy = in_terms_of(item.remedy, int8_state=ours.model is None, float_state=theirs.model is None)
    outcome = None if ran.run is None else ran.run.outcome
    return Explanation(
        findings,
        list(table.values()) if layers else [],
        verdict(findings, ran.repaired.groups, ran.repaired.lost, outcome),
        outcome,
        None if ran.run is None else ran.run.first,
        ran.repaired.cumulative,
        ran.repaired.lost,
        [layer.path for layer in alone],
        ran.sensitivity,
        histograms,
    )


def _check_sensitivity(sensitivity: object, data: object) -> None:
    if sensitivity not in (False, True, "apart", "together"):
        remedy = 'Pass True for weights and activations apart, or "together".'
        raise QdeqValueError(expected("sensitivity", 'True, False, "apart" or "together"', repr(sensitivity), remedy))
    if sensitivity and data is None:
        remedy = "What a layer's quantization costs is measured by running the float model: pass data."
        raise QdeqValueError(expected("data", "inputs for the sensitivity", "none", remedy))


def _run(
    ours: Side,
    held: Int8Side,
    theirs: Side,
    pairs: list[Pair],
    table: dict[str, Layer],
    findings: list[Finding],
    data: Data,
    sensitivity: bool | str,
    progress: Progress | None,
) -> tuple[list[Finding], _Ran]:
    if ours.model is None:
        remedy = "Pass the model, or the file of a whole one with trust=True (--trust); or leave data out."
        raise QdeqValueError(expected("int8_model", "a model that can run on data", "a state_dict", remedy))
    float_model = theirs.model
    if float_model is None:
        pairs = [pair.as_applied() for pair in pairs]
        float_model = _model_of_state(ours.model, theirs, pairs)
    same_shape = [pair for pair in pairs if pair.same_shape]
    runnable = [pair for pair in same_shape if pair.alone]
    watches, outputs, answers = run_side_by_side(
        ours.model, float_model, runnable, batches(data, ours.model), MOST_REPAIR_SAMPLES
    )
    run = Run((ours.model, float_model), watches, outputs, answers)
    fill_table(watches, table)
    findings += kernel_findings(ours.model, float_model, same_shape, held.unread, answers[0].batch)
    findings = accuse(run, findings + runtime_findings(watches), pairs)
    repairs = Repairs(ours.model, {pair.layer.path: pair for pair in same_shape}, held.plain)
    imitations = Imitations(repairs, ours.model, float_model, watches)
    repaired = Attribution() if outputs.shapes else attribute(findings, imitations, float_model, answers)
    ran = _Ran(run, repaired)
    if sensitivity:
        apart = sensitivity != "together"
        ran.sensitivity = sensitivities(
            imitations, float_model, watches, same_shape, answers, apart=apart, progress=progress
        )
    return acquit(run, findings, repaired), ran


def _model_of_state(int8_model: nn.Module, side: Side, pairs: list[Pair]) -> nn.Module:
    """Return the rebuilt model with the state_dict's weights in it."""
    model = dequantize_model(int8_model)
    own = {name: value.shape for name, value in model.state_dict().items()}
    fitting = {name: value for name, value in float_tensors(side).items() if own.get(name) == value.shape}
    model.load_state_dict(fitting, strict=False)
    for pair in pairs:
        module: Any = model.get_submodule(pair.layer.module)
        if not pair.same_shape:
            remedy = "Leave data out, or pass a model."
            raise QdeqValueError(
                expected(pair.layer.path, "a weight that fits", str(pair.partner.weight.shape), remedy)
            )
        name = pair.layer.parameter
        setattr(module, name, nn.Parameter(pair.partner.weight.clone()))
        if hasattr(module, bias_name := name.replace("weight", "bias")):
            setattr(module, bias_name, None if pair.bias is None else nn.Parameter(pair.bias.clone()))
    return model


def _no_partner(layer: IntegerLayer, total: int) -> Finding:
    text = f"{layer.path}: no module of the float model has this name, and none that is left has its shape"
    return make_finding(layer.path, "no_partner", text, {"shape": list(layer.shape)}, layer.numel / total)
