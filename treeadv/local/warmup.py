"""Creates the model of the task `operator-tables`: a small Llama, pretrained on text with deliberate errors.

`python -m treeadv.local.warmup` creates a model; `treeadv study run` creates the model that its file requests. The hash
of the configuration names the folder of a model, so each model is created once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from treeadv.command_line import local, run_command, tool_parser
from treeadv.data.model_folder import creating_folder
from treeadv.data.operator_tables import CHARACTERS, OPERATORS, Digits, Tables
from treeadv.section import Positive, PositiveFloat, Section, Share
from treeadv.seeds import derive
from treeadv.task_config import TablesConfig
from treeadv.visible import visible_logger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

END, PAD = "$", "_"
VOCABULARY = (END, PAD, *CHARACTERS)
_DIGIT, _OPERATOR = VOCABULARY.index("0"), VOCABULARY.index(OPERATORS[0])
_BAR, _EQUALS, _SEMICOLON = (VOCABULARY.index(c) for c in "|=;")
IGNORED = -100  # torch's cross entropy ignores this target
log = visible_logger(__name__)


class Pretraining(Section):
    """The sizes of a small model, and its pretraining."""

    steps: Positive = 1500
    batch: Positive = 128
    lr: PositiveFloat = 2e-3
    width: Annotated[int, Field(ge=4)] = 96
    layers: Positive = 3
    heads: Positive = 4
    seed: int = 0


class Warmup(Pretraining):
    """The configuration of the model and of its pretraining text. The name of the model's folder is a hash of all
    fields."""

    tables: TablesConfig = TablesConfig()
    right_easy: Share = 0.95  # share of right digits at easy entries
    right_hard: Share = 0.3

    @property
    def name(self) -> str:
        """Return the name of the model's folder, which contains a hash of all fields."""
        return f"tables-{blake2b(self.model_dump_json().encode(), digest_size=6).hexdigest()}"


def warm_model(warmup: Warmup, cache: Path, progress: Callable[[int, float], None] = lambda *_: None) -> Path:
    """Return the folder of the pretrained model in `cache`, and create the model if it does not exist.

    `progress` is called with (step, loss). If another process creates the same model, the model that is finished
    first is used."""
    folder = cache / warmup.name
    if (folder / "config.json").is_file():
        return folder
    tables, rng = Tables.of(warmup.tables), np.random.default_rng(derive(warmup.seed, "warmup-text"))
    model = pretrain(warmup, len(VOCABULARY), lambda: warmup_batch(warmup, tables, rng), progress)
    with creating_folder(folder) as scratch:
        model.save_pretrained(scratch)
        character_tokenizer(VOCABULARY).save_pretrained(scratch)
        (scratch / "warmup.json").write_text(warmup.model_dump_json(indent=2) + "\n")
    return folder


def warmup_batch(warmup: Warmup, tables: Tables, rng: np.random.Generator) -> tuple[Digits, Digits]:
    """Return (tokens, targets), both [batch, 8 * operations + 2]. The loss ignores the targets of prompt tokens."""
    B, K = warmup.batch, warmup.tables.operations
    value = rng.integers(0, 10, B)
    operator, operand = rng.integers(0, warmup.tables.operators, (B, K)), rng.integers(0, 10, (B, K))
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
    targets[:, : prompt.shape[1]] = IGNORED
    return tokens, targets


def pretrain(
    sizes: Pretraining,
    vocabulary: int,
    batch: Callable[[], tuple[Digits, Digits]],
    progress: Callable[[int, float], None],
) -> PreTrainedModel:
    """Return a Llama, pretrained on the (tokens, targets) of `batch`. Token 0 ends a text; token 1 is padding."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, get_cosine_schedule_with_warmup

    torch.manual_seed(derive(sizes.seed, "warmup-weights"))
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=sizes.width, intermediate_size=8 * sizes.width // 3,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads,
            max_position_embeddings=1024, eos_token_id=VOCABULARY.index(END), pad_token_id=VOCABULARY.index(PAD),
            bos_token_id=None, tie_word_embeddings=False,
        ),
        dtype=torch.float32,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, sizes.steps // 10), sizes.steps)
    for step in range(1, sizes.steps + 1):
        tokens, targets = (torch.from_numpy(x) for x in batch())
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    return model.eval()


def character_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each character. The first two entries are `END` and `PAD`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(vocabulary)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END, PAD])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def main(argv: Sequence[str] | None = None) -> None:
    """Create one pretrained model and print its folder."""
    p = tool_parser("python -m treeadv.local.warmup", main.__doc__)
    p.add_argument("--cache", type=local, default=Path("models"), help="folder of pretrained models (default models)")
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
    sys.exit(run_command(main))
