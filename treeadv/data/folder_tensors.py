"""Translates between the tensors of a Hugging Face folder and the parameters of a transformers model.

transformers 5 fuses the experts of a layer into one parameter (`mlp.experts.gate_up_proj`), while the folder has one
tensor for each expert (`mlp.experts.0.gate_proj.weight`). Engines and readers of checkpoints expect the folder's names.
The rules of the translation are those of transformers (`conversion_mapping.py`), which `from_pretrained` and
`save_pretrained` use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonObject

Read = Callable[[str, slice], torch.Tensor]  # maps (name in the folder, rows) to these rows of the tensor


class FolderTensors:
    """The names of a folder, matched with the parameters and persistent buffers of a model.

    `unexpected` holds the names that the model does not use. `missing` holds the parameters that the folder does not
    have. `unchanged` holds the name in the folder of each parameter that needs no translation.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """Match `names` (of a folder, or of published weights) with `model`, which may be on the meta device.

        Sets `model._weight_conversions` to the rules that the folder needs, as `from_pretrained` does.
        """
        self._model: Any = model
        stored = dict(stored_tensors(model))
        rules = get_model_conversion_mapping(model)
        converters = [r for r in rules if isinstance(r, WeightConverter)]
        renamings = [r for r in rules if isinstance(r, WeightRenaming)]
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        self._converter = {pattern: c for c in converters for pattern in c.source_patterns}
        self.unexpected: list[str] = []
        for key in sorted(names, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, stored)
            if name in stored:
                self._sources.setdefault(name, []).append((key, pattern))
            elif name not in (model._tied_weights_keys or {}):
                self.unexpected.append(key)
        self.missing = [n for n in stored if n not in self._sources]
        self.unchanged = {n: found[0][0] for n, found in self._sources.items() if found[0][1] is None}
        model._weight_conversions = [r for r in rules if r.was_used()]  # type: ignore[assignment]

    def tensor(self, name: str, read: Read, rows: slice = slice(None)) -> torch.Tensor:
        """Return rows of the parameter `name`.

        `read` reads them, and reads only these rows of the folder if possible.
        """
        sources = self._sources[name]
        pattern = sources[0][1]
        if pattern is None:
            return read(sources[0][0], rows)
        converter = deepcopy(self._converter[pattern])
        first, *others = converter.operations
        stacked = isinstance(first, MergeModulelist) and first.dim == 0 and all(getattr(o, "dim", 0) for o in others)
        for p in converter.source_patterns:
            keys = [key for key, found in sources if found == p]
            for key in keys[rows] if stacked else keys:  # row i of a stacked parameter is tensor i of the folder
                converter.add_tensor(name, key, p, read(key, slice(None)))  # type: ignore[arg-type]
        if not converter.collected_tensors:  # the slice has no rows
            return read(sources[0][0], slice(None))[None][:0]
        (found,) = converter.convert(name, model=self._model, config=self._model.config).values()
        whole = found[0] if isinstance(found, list) else found
        return whole if stacked else whole[rows]


def stored_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every parameter and of every buffer that a folder stores.

    Tied parameters are yielded once.
    """
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def in_folder(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder, as views, that together are the whole parameter or buffer `name` of a model."""
    return revert_weight_conversion(model, {name: tensor})


class FolderReader:
    """A context manager that reads tensors, or rows of tensors, from the safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Open every safetensors file of `folder`. Raises `BadInput` if the folder has no such file."""
        self._files = ExitStack()
        self._file: JsonObject = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                content = self._files.enter_context(safe_open(path, "pt"))
            except (SafetensorError, OSError) as e:
                raise BadInput(f"{path}: cannot be read ({one_line(e)}); copy or download the model again") from e
            self._file |= dict.fromkeys(content.keys(), content)
        if not self._file:
            raise BadInput(
                f"{folder}: the folder has no weights (*.safetensors); convert other formats with save_pretrained"
            )

    @property
    def names(self) -> Iterable[str]:
        return self._file.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Reads no weights."""
        return tuple(self._file[name].get_slice(name).get_shape())

    def __call__(self, name: str, rows: slice) -> torch.Tensor:
        return self._file[name].get_slice(name)[rows] if rows != slice(None) else self._file[name].get_tensor(name)

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()
