"""Checks that engine and learner support a model's configuration, and computes the longest supported path.

Engine and learner compute attention over trees themselves. A token attends to every earlier token of its path, and
attention has no other term. The learner applies the model's output matrix and no operation after it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from treeadv.errors import BadInput, one_line, short
from treeadv.jsonl import JsonMapping

_GENERATION = "generation_config.json"
_SUPPORTED = ("full_attention", "sliding_attention")
# Unsupported terms of attention or of the output, with the value that means that a model does not use the term.
_EXTRA_TERMS = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
}
_LENGTH_DEPENDENT = (
    "dynamic",
    "longrope",
)  # rotary frequencies that change when a path is longer than the original context
# Keywords of attention functions that have no effect here, because no path is longer than the window (`longest_path`).
_HARMLESS = ("position_ids", "use_cache", "is_causal", "sliding_window", "dropout")
_REMEDY = "use a model with plain attention (docs/models.md)"


def model_config(place: str | Path) -> PretrainedConfig:
    """Return the configuration of a model. `place` is its folder or its config.json. Raises `BadInput`."""
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(place)
    except Exception as e:  # transformers raises many types, for an unknown model_type or a field of a wrong type
        file = Path(place) if Path(place).is_file() else Path(place) / "config.json"
        raise BadInput(f"{file}: cannot be used: {one_line(e)}") from e
    return found


def check_generation(folder: Path) -> None:
    """Raise `BadInput` for a generation_config.json that transformers cannot load."""
    if not (folder / _GENERATION).is_file():
        return
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as e:  # transformers raises many types, as `model_config` says
        raise BadInput(f"{folder / _GENERATION}: cannot be used: {one_line(e)}") from e


def longest_path(folder: str | Path) -> int:
    """Return the largest supported number of tokens of a path (prompt and answer) of the model in `folder`.

    The number is the minimum of the model's context, its sliding window, and the length up to which its rotary
    frequencies are constant. The window has no effect on a path within the window. Raises `BadInput` for an unsupported
    model.
    """
    config = model_config(folder)
    name = f"{folder}: {(config.architectures or [type(config).__name__])[0]}"
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - set(_SUPPORTED))
    if kinds:
        raise BadInput(f"{name} has layers with {', '.join(kinds)}, which cannot attend to a tree; {_REMEDY}")
    for term, neutral in _EXTRA_TERMS.items():
        value = getattr(config, term, None)
        if value is not None and value != neutral:
            raise BadInput(f"{name} has {term}={value}, which is not supported; {_REMEDY}")
    limits = [getattr(config, "max_position_embeddings", None), _window(config), *_rotary_limits(config)]
    if wrong := [limit for limit in limits if limit and type(limit) is not int]:
        raise BadInput(f"{name}: a limit of its context in config.json is no integer ({short(wrong[0])}); {_REMEDY}")
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise BadInput(f"{name}: config.json gives it no layers (num_hidden_layers={config.num_hidden_layers})")
    return min((limit for limit in limits if limit), default=sys.maxsize)


def check_terms(keywords: JsonMapping) -> None:
    """Raise `BadInput` if a model uses unsupported arguments of its attention function (sinks, soft caps)."""
    for name, value in keywords.items():
        if name not in _HARMLESS and (torch.is_tensor(value) or value):
            raise BadInput(f"the attention of the model uses {name}, which is not supported")


def _window(config: PretrainedConfig) -> int | None:
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


def _rotary_limits(config: PretrainedConfig) -> list[int | None]:
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # one dict, or one per layer type
    return [
        kind.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") in _LENGTH_DEPENDENT
    ]
