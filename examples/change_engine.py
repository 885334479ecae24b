"""Int8 model packed for one engine -> the same int8 weights packed for another (fbgemm: servers, qnnpack: phones).

A packed weight belongs to the engine that packed it. Through the float model it can be packed again for another one.
Usage: python examples/change_engine.py
"""

from __future__ import annotations

import torch
from common import SmallNet, example_images, int8_model, tq

import qdeq

LAYERS = ("features.0", "features.3", "classifier")


def repack(int8: torch.nn.Module, engine: str) -> torch.nn.Module:
    """Rebuild ``int8`` and convert it again under ``engine``, with the old scales of weights and activations."""
    rebuilt = qdeq.dequantize_model(int8)
    torch.backends.quantized.engine = engine
    model = SmallNet().eval()
    model.load_state_dict(rebuilt.state_dict())
    tq.fuse_modules(model, [["features.0", "features.1"], ["features.3", "features.4"]], inplace=True)
    model.qconfig = tq.get_default_qconfig("fbgemm")
    tq.prepare(model, inplace=True)
    model(example_images())
    tq.convert(model, inplace=True)
    for path in LAYERS:
        old, new = int8.get_submodule(path), model.get_submodule(path)
        new.set_weight_bias(old.weight(), old.bias())
        new.scale, new.zero_point = old.scale, old.zero_point
    model.quant.scale.copy_(int8.quant.scale)
    model.quant.zero_point.copy_(int8.quant.zero_point)
    return model


def main() -> None:
    x = example_images()
    fbgemm = int8_model()
    with torch.no_grad():
        expected = fbgemm(x)
    for engine in ("qnnpack", "fbgemm"):
        if engine not in torch.backends.quantized.supported_engines:
            print(f"{engine}: not in this build of torch")
            continue
        again = repack(fbgemm, engine)
        different = sum(
            int((again.get_submodule(path).weight().int_repr() != fbgemm.get_submodule(path).weight().int_repr()).sum())
            for path in LAYERS
        )
        with torch.no_grad():
            steps = ((again(x) - expected) / again.classifier.scale).abs().max()
        print(f"{engine}: {different} integers differ, outputs by at most {steps:.0f} steps")


if __name__ == "__main__":
    main()
