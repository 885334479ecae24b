"""Int8 model -> a GPU, where torch's quantized kernels do not run. Without a GPU it runs on the CPU and says so.

Usage: python examples/run_on_gpu.py
"""

from __future__ import annotations

import torch
from common import example_images, int8_model

import qdeq


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no CUDA device here: running on the CPU")
    int8 = int8_model()
    x = example_images()
    with torch.no_grad():
        expected = int8(x)
        for activations in ("drop", "clamp", "fake_quant"):
            # Dequantized on the CPU, where the values are defined, then moved.
            rebuilt = qdeq.dequantize_model(int8, activations=activations, device=device)
            difference = (rebuilt(x.to(device)).cpu() - expected).abs().mean()
            print(f"{activations:10} on {device}: mean difference to int8 {difference:.2e}")
    half = qdeq.dequantize_model(int8, dtype=torch.bfloat16, device=device)
    print(f"bfloat16 on {device}: outputs are {half(x.to(device, torch.bfloat16)).dtype}")


if __name__ == "__main__":
    main()
