"""Checks that the files of a model folder are complete. Reads headers and settings, but no weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from treeadv.data.tokenizer_file import SETTINGS, check_tokenizer, vocabulary_size
from treeadv.errors import BadInput
from treeadv.jsonl import read_object

_REMEDY = "copy or download the model again"
_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Raise `BadInput` for a missing, damaged or incomplete file."""
    for name in (*SETTINGS, "generation_config.json", _INDEX):
        if (folder / name).is_dir():
            raise BadInput(f"{folder / name}: is a folder; {_REMEDY}")
    config = read_object(folder / "config.json")
    if "model_type" not in config:
        raise BadInput(f"{folder / 'config.json'}: names no model_type; give the folder of a language model")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(
            f"{folder}: the folder has no weights (*.safetensors); convert other formats with save_pretrained"
        )
    if (folder / _INDEX).is_file():
        index = read_object(folder / _INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise BadInput(f"{folder / _INDEX}: has no weight_map; {_REMEDY}")
        for name in sorted(set(map(str, index.values()))):
            if not (folder / name).is_file():
                raise BadInput(f"{folder / name}: is missing, but {_INDEX} names it; {_REMEDY}")
    for path in files:
        _check_weights(path)
    stop, size = min(stop_ids(folder)), vocabulary_size(config)
    if size is not None and stop >= size:
        raise BadInput(
            f"{folder}: its eos_token_id {stop} is no token of the model, whose vocab_size in config.json is {size}, so"
            " no answer would end; correct generation_config.json"
        )
    check_tokenizer(folder, config)


def stop_ids(folder: Path) -> frozenset[int]:
    """Return the token ids that end an answer.

    They are those of generation_config.json or, without it, those of config.json. Raises `BadInput`."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file() and (ids := read_object(path).get("eos_token_id")) is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if not listed or not all(type(i) is int and i >= 0 for i in listed):
                raise BadInput(f"{path}: eos_token_id must be a token id or a list of them, got {ids!r}")
            return frozenset(listed)
    raise BadInput(
        f"{folder}: neither generation_config.json nor config.json names an eos_token_id, so no answer would end;"
        " add it to generation_config.json"
    )


def _check_weights(path: Path) -> None:
    """Check that a safetensors file has the length that its header gives: 8 bytes, the header, and all tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if 8 + length > size:
                raise BadInput(f"{path}: is cut off after {size} bytes; {_REMEDY}")
            header = json.loads(f.read(length))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror}); {_REMEDY}") from e
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as e:
        raise BadInput(f"{path}: is no safetensors file (its header cannot be read); {_REMEDY}") from e
    if size != (whole := 8 + length + max(ends, default=0)):
        raise BadInput(f"{path}: is {'cut off' if size < whole else 'damaged'}, {size} of {whole} bytes; {_REMEDY}")
