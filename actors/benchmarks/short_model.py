"""Models of the benchmarks: the shape of a real model with another number of layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def shortened(source: Path, folder: Path, **changes: int) -> Path:
    """Write a model with random weights and the tokenizer of the model in `source`.

    Its configuration is that of `source` with `changes`."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, **changes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".model", ".jinja") and not (folder / path.name).exists():
            shutil.copy(path, folder)
    return folder
