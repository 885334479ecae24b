"""The real files that the fuzzer damages: small models in the forms that torch saves them in."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn


class Recurrent(nn.Module):
    """An LSTM and a linear layer."""

    def __init__(self) -> None:
        """Small sizes: a file of about 10 KB."""
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 5, 2), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(T, N, 6) to (T, N, 4)."""
        return self.fc(self.lstm(x)[0])


def write(folder: Path) -> None:
    """Write the corpus into ``folder``: models of every family; state dicts, whole models, scripts."""
    import torch.ao.quantization as tq

    import qdeq

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = (
            "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
        )
        body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 10)]
        net = nn.Sequential(tq.QuantStub(), *body, tq.DeQuantStub()).eval()
        net.qconfig = tq.get_default_qconfig("fbgemm")  # type: ignore[assignment]
        prepared = tq.prepare(net)
        prepared(torch.randn(2, 3, 8, 8))
        static = tq.convert(prepared)
        dynamic = tq.quantize_dynamic(Recurrent().eval(), {nn.LSTM, nn.Linear})
        table = nn.EmbeddingBag(30, 8).eval()
        table.qconfig = tq.float_qparams_weight_only_qconfig_4bit  # type: ignore[assignment]
        embedding = tq.convert(tq.prepare(nn.Sequential(table)))
        attention = nn.Sequential(nn.MultiheadAttention(8, 2), nn.ELU(0.5)).eval()
        attention.qconfig = tq.default_qconfig  # type: ignore[assignment]
        attention = tq.convert(tq.prepare(attention))
        upsample = nn.Sequential(tq.QuantStub(), nn.ConvTranspose2d(8, 16, 2), tq.DeQuantStub()).eval()
        upsample.qconfig = tq.default_qconfig  # type: ignore[assignment]
        upsample = tq.convert(tq.prepare(upsample))
        families = {"static": static, "dynamic": dynamic, "embedding": embedding}
        families |= {"attention": attention, "upsample": upsample}
        for name, model in families.items():
            torch.save(model.state_dict(), folder / f"{name}.pth")
            torch.save(model, folder / f"{name}_whole.pt")
        torch.save({"model": static.state_dict(), "epoch": 3}, folder / "nested.pth")
        torch.jit.save(torch.jit.script(static), folder / "script.pt")
        torch.jit.save(torch.jit.script(upsample), folder / "upsample_script.pt")
        torch.jit.save(torch.jit.freeze(torch.jit.script(static)), folder / "frozen.pt")
        torch.save(static.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
        with qdeq.open(folder / "static.pth") as weights:
            qdeq.save_safetensors(weights, folder / "kept.safetensors", keep="int8")
