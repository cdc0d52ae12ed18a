"""Creates a tiny language model as a Hugging Face folder. It is a random Llama over single characters, with a
tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

CHARACTERS = [chr(c) for c in range(32, 127)]
END = "<end>"


def save(folder: Path, seed: int = 0, vocab_extra: int = 0, hidden: int = 64) -> Path:
    """Write the model and its tokenizer. `seed` determines the weights. `vocab_extra` adds token ids without a text."""
    words = [END, "<pad>", *CHARACTERS, *(f"<extra{i}>" for i in range(vocab_extra))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END, "<pad>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with (
        torch.no_grad()
    ):  # with such large weights the next token depends on the prefix, and entropies differ between positions
        model.model.embed_tokens.weight.mul_(14)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(140)
            layer.mlp.down_proj.weight.mul_(280)
    model.save_pretrained(folder)
    return folder
