"""The kinds of finding: how each is worded, what to do about it, and which are no fault."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "REBUILD", "Kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    phrase: str  # what is wrong, to follow "<modules>: " in the verdict
    # A line of code; ``{module}`` is the dotted path, ``{source}`` the path in the int8 model, and ``{extra}``,
    # ``{norm}``, ``{activation}``, ``{side}`` and ``{advice}`` are from the evidence.
    remedy: str
    benign: bool = False  # the two models still count as agreeing
    # "weight" or "bias": it is about a layer's own, which can be put back; empty for everything else.
    about: str = ""
    urgency: int = 1  # of two findings with equal weight, the one with the higher number comes first


_COPY = (
    "float_model.get_submodule('{module}').weight.data = qdeq.dequantize(int8_model.get_submodule('{source}').weight())"
)
_BIAS = (
    "float_model.get_submodule('{module}').bias = "
    "torch.nn.Parameter(int8_model.get_submodule('{source}').bias().detach().clone())"
)
_CALIBRATE = (
    "prepared = torch.ao.quantization.prepare(fused_model); [prepared(x) for x in typical_inputs]; "
    "int8_model = torch.ao.quantization.convert(prepared)"
)
_FORWARD = "print(inspect.getsource(type(float_model).forward))  # {advice}"
REBUILD = "float_model = qdeq.dequantize_model(int8_model)"


def _of_weight(phrase: str, urgency: int = 3) -> Kind:
    return Kind(phrase, _COPY, about="weight", urgency=urgency)


def _of_bias(phrase: str) -> Kind:
    return Kind(phrase, _BIAS, about="bias")


KINDS: dict[str, Kind] = {
    "not_finite": _of_weight("NaN or infinite values", urgency=5),
    "shape_mismatch": Kind("weights of another shape", REBUILD, urgency=5),
    "no_partner": Kind("quantized modules without a partner in the float model", REBUILD, urgency=4),
    "not_compared": Kind("quantized, and not compared: nothing is known about it", REBUILD, urgency=0),
    "parameter_wrong": Kind("parameters that are not quantized differ", REBUILD, urgency=2),
    "weight_not_copied": _of_weight("weights never copied", urgency=4),
    "weight_partly_copied": _of_weight("weights copied in part"),
    "weight_of_other_layer": _of_weight("weights copied from another layer"),
    "weights_swapped": _of_weight("weights swapped between layers"),
    "weight_transposed": _of_weight("weights transposed"),
    "weight_altered": _of_weight("weights changed after the copy", urgency=2),
    "channels_permuted": _of_weight("channels in another order"),
    "other_checkpoint": Kind("weights of a different checkpoint", REBUILD, about="weight", urgency=3),
    "scale_missing": _of_weight("integers copied without their scale"),
    "scale_of_activation": _of_weight("multiplied by the scale of the output, not of the weight"),
    "scale_of_one_channel": _of_weight("one channel's scale used for all channels"),
    "scale_mean": _of_weight("the mean scale used for all channels"),
    "scale_wrong_axis": _of_weight("scales applied along the wrong axis"),
    "scale_divided": _of_weight("integers divided by the scale"),
    "scale_wrong": _of_weight("integers multiplied by wrong scales"),
    "zero_point_ignored": _of_weight("zero point ignored"),
    "zero_point_wrapped": _of_weight("zero point subtracted in int8, which wraps around"),
    "bias_missing": _of_bias("biases missing"),
    "bias_zeroed": _of_bias("biases zeroed"),
    "bias_not_copied": _of_bias("biases never copied"),
    "bias_wrong": _of_bias("wrong biases"),
    "activation_lost": Kind(
        "activation lost",
        "float_model.get_submodule('{module}').register_forward_hook(lambda m, x, y: torch.nn.{activation}()(y))",
        urgency=4,
    ),
    "activation_doubled": Kind(
        "activation applied twice", "float_model.set_submodule('{extra}', torch.nn.Identity())", urgency=2
    ),
    "activation_added": Kind("an activation that the int8 model has not", REBUILD, urgency=2),
    "bn_applied_twice": Kind(
        "batch norm applied again to weights that contain it",
        "float_model.set_submodule('{norm}', torch.nn.Identity())",
        urgency=4,
    ),
    "quant_stub_lost": Kind(
        "no identity where the int8 model has its stub",
        "float_model.set_submodule('{module}', torch.nn.Identity())",
        urgency=4,
    ),
    "training_mode": Kind("left in training mode", "float_model.eval()", urgency=4),
    "flatten_order": _of_weight("features flattened in another order", urgency=4),
    "draws_at_random": Kind(
        "a forward that gives other outputs for the same inputs", "{side}.eval()  # {advice}", urgency=4
    ),
    "never_calibrated": Kind("outputs that were never calibrated", _CALIBRATE, urgency=4),
    "input_range": Kind("inputs that do not fit the grid of the stub", _CALIBRATE, urgency=4),
    "calibrated_wide": Kind("calibrated too wide: few levels of the grid are in use", _CALIBRATE, urgency=3),
    "calibrated_narrow": Kind("calibrated too narrow: values are clipped", _CALIBRATE, urgency=3),
    "levels_collapsed": Kind(
        "one scale for channels of uneven weights",
        "fused_model.get_submodule('{module}').qconfig = torch.ao.quantization.QConfig("
        "activation=torch.ao.quantization.default_observer, "
        "weight=torch.ao.quantization.default_per_channel_weight_observer)",
        urgency=3,
    ),
    "differs_before": Kind("the forwards differ before this layer, the first one that both run", _FORWARD, urgency=3),
    "differs_between": Kind("the forwards differ before this layer", _FORWARD, urgency=3),
    "differs_after": Kind("the forwards differ behind this layer, the last one that both run", _FORWARD, urgency=3),
    "outputs_part": Kind(
        "the outputs part, and no single cause stands out",
        "print(qdeq.explain(int8_model, float_model, data, sensitivity=True))",
        urgency=1,
    ),
    "int8_kernel_wrong": Kind(
        "torch's own int8 kernel is wrong here; the float model is right",
        "float_model = qdeq.dequantize_model(int8_model)  # or quantize with another engine",
        urgency=5,
    ),
    "saturation": Kind(
        "the int8 model saturates in 16-bit sums on CPUs without VNNI; the float model is right",
        "quantize with reduce_range=True: torch.ao.quantization.get_default_qconfig('fbgemm')",
    ),
    "clipping": Kind("values outside what int8 represents are clipped", "none needed", benign=True, urgency=0),
    "rounding": Kind("right weights, rounding only", "none needed", about="weight", benign=True, urgency=-1),
}
