"""The model of the task `operator-tables`: a small Llama made from scratch, warmed up on text that is wrong on purpose.

`python -m treeadv.local.warmup --help` makes one; `treeadv study run` makes the one that its file asks for. A folder is
named by the hash of its configuration and made once.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from treeadv.config import TablesConfig
from treeadv.data.operator_tables import CHARACTERS, OPERATORS, Digits, Tables
from treeadv.seeds import derive
from treeadv.visible import visible_logger

END, PAD = "$", "_"
VOCABULARY = (END, PAD, *CHARACTERS)
_DIGIT, _OPERATOR = VOCABULARY.index("0"), VOCABULARY.index(OPERATORS[0])
_BAR, _EQUALS, _SEMICOLON = (VOCABULARY.index(c) for c in "|=;")
_IGNORED = -100  # a target that torch's cross entropy leaves out
log = visible_logger(__name__)


class Warmup(BaseModel):
    """The model, and the text that it learns first. All of it is in the name of its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tables: TablesConfig = TablesConfig()
    right_easy: Annotated[float, Field(ge=0, le=1)] = 0.95  # share of right digits at entries that are not hard
    right_hard: Annotated[float, Field(ge=0, le=1)] = 0.3
    steps: Annotated[int, Field(ge=1)] = 1500
    batch: Annotated[int, Field(ge=1)] = 128
    lr: Annotated[float, Field(gt=0)] = 2e-3
    width: Annotated[int, Field(ge=4)] = 96
    layers: Annotated[int, Field(ge=1)] = 3
    heads: Annotated[int, Field(ge=1)] = 4
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its folder: a hash of every field."""
        return f"tables-{blake2b(self.model_dump_json().encode(), digest_size=6).hexdigest()}"


def warm_model(warmup: Warmup, cache: Path, progress: Callable[[int, float], None] = lambda *_: None) -> Path:
    """The folder of the warm model below `cache`, made now if it is not there. `progress` gets (step, loss).

    Another process may make the same model; the first one counts.
    """
    folder = cache / warmup.name
    if (folder / "config.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    model = _train(warmup, progress)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        whole = Path(scratch) / folder.name
        model.save_pretrained(whole)
        _tokenizer().save_pretrained(whole)
        (whole / "warmup.json").write_text(warmup.model_dump_json(indent=2) + "\n")
        try:
            whole.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    return folder


def warmup_batch(warmup: Warmup, tables: Tables, rng: np.random.Generator) -> tuple[Digits, Digits]:
    """(tokens, targets), both [batch, 8 * operations + 2]. The targets of prompt tokens are left out of the loss."""
    B, K = warmup.batch, warmup.tables.operations
    value = rng.integers(0, 10, B)
    operator, operand = rng.integers(0, len(OPERATORS), (B, K)), rng.integers(0, 10, (B, K))
    prompt = np.empty((B, 2 * K + 2), np.int64)
    prompt[:, 0], prompt[:, -1] = value + _DIGIT, _BAR
    prompt[:, 1:-1:2], prompt[:, 2:-1:2] = operator + _OPERATOR, operand + _DIGIT
    answer = np.empty((B, K, 6), np.int64)
    for k in range(K):
        at = (operator[:, k], value, operand[:, k])
        is_right = rng.random(B) < np.where(tables.hard[at], warmup.right_hard, warmup.right_easy)
        answer[:, k, 0] = value + _DIGIT
        value = np.where(is_right, tables.right[at], tables.wrong[at])
        answer[:, k, 1], answer[:, k, 2] = operator[:, k] + _OPERATOR, operand[:, k] + _DIGIT
        answer[:, k, 3], answer[:, k, 4], answer[:, k, 5] = _EQUALS, value + _DIGIT, _SEMICOLON
    answer[:, -1, 5] = VOCABULARY.index(END)
    tokens = np.concatenate([prompt, answer.reshape(B, -1)], axis=1)
    targets = tokens.copy()
    targets[:, : prompt.shape[1]] = _IGNORED
    return tokens, targets


def _train(warmup: Warmup, progress: Callable[[int, float], None]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, get_cosine_schedule_with_warmup

    torch.manual_seed(derive(warmup.seed, "warmup-weights"))
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=warmup.width, intermediate_size=8 * warmup.width // 3,
            num_hidden_layers=warmup.layers, num_attention_heads=warmup.heads, num_key_value_heads=warmup.heads,
            max_position_embeddings=1024, eos_token_id=VOCABULARY.index(END), pad_token_id=VOCABULARY.index(PAD),
            bos_token_id=None, tie_word_embeddings=False,
        ),
        dtype=torch.float32,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=warmup.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, warmup.steps // 10), warmup.steps)
    tables, rng = Tables.of(warmup.tables), np.random.default_rng(derive(warmup.seed, "warmup-text"))
    for step in range(1, warmup.steps + 1):
        tokens, targets = (torch.from_numpy(x) for x in warmup_batch(warmup, tables, rng))
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    return model.eval()


def _tokenizer() -> Any:
    """One token a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(VOCABULARY)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END, PAD])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def main(argv: list[str] | None = None) -> None:
    """Make one warm model and print its folder."""
    p = argparse.ArgumentParser(prog="python -m treeadv.local.warmup", description=main.__doc__)
    p.add_argument("--cache", type=Path, default=Path("models"), help="folder of warm models (default models)")
    p.add_argument("--operations", type=int, default=5)
    p.add_argument("--hard", type=float, default=0.3)
    p.add_argument("--steps", type=int, default=1500)
    args = p.parse_args(argv)
    warmup = Warmup(tables=TablesConfig(operations=args.operations, hard=args.hard), steps=args.steps)

    def show(step: int, loss: float) -> None:
        if step % 100 == 0:
            log.info("warm-up step %d of %d: loss %.4f", step, warmup.steps, loss)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(warm_model(warmup, args.cache, show))


if __name__ == "__main__":
    main()
