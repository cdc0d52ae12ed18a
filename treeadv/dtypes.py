"""The choice of a number format for `dtype=auto`."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16"]
# Names of CPU features, as torch.cpu.get_capabilities() returns them. A CPU without them emulates bfloat16.
_BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def fast_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 for `device` "cuda", and for "cpu" if this machine's CPU multiplies bfloat16; else float32."""
    return "bfloat16" if device == "cuda" or multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Return whether the CPU of this machine has instructions that multiply bfloat16."""
    import torch

    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in _BFLOAT16_FEATURES)
