"""Turns a problem into the token ids of its prompt, by the chat template of the model if it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()


class Prompter:
    """The tokenizer of a model with the template of the user's turn."""

    def __init__(self, model_dir: str | Path, template: str = "{problem}") -> None:
        """`template` is the user's turn; `{problem}` in it is replaced."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)  # a class of transformers' choosing
        self._template = template

    def encode(self, problem: str) -> np.ndarray:
        """Return the token ids of the prompt, [P] int32."""
        text = self._template.replace("{problem}", problem)
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
        return np.asarray(ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
