"""Converts a problem to the token ids of its prompt, with the chat template of the model if the model has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2 import meta
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from treeadv.data.model_check import model_config
from treeadv.data.problems import Problem, Turn
from treeadv.data.tokenizer_file import FILE, SETTINGS, check_tokenizer, vocabulary_size
from treeadv.errors import BadInput, one_line
from treeadv.jsonl import read_object
from treeadv.task_config import TaskConfig

transformers_logging.set_verbosity_error()
_OURS = ("messages", "conversation", "add_generation_prompt", "tokenize", "return_dict", "chat_template", "documents")


class Prompter:
    """A tokenizer, together with the prompt template, the system message and the arguments of the chat template."""

    def __init__(self, model_dir: str | Path, task: TaskConfig | None = None) -> None:
        """Load the tokenizer. Without `task` the user's turn is the text of the problem.

        Raises `BadInput` for a tokenizer that cannot be loaded, and for arguments that its chat template does not
        have."""
        self._folder = model_dir
        self.tokenizer = load_tokenizer(model_dir)
        self._size = vocabulary_size(read_object(Path(model_dir) / "config.json"))
        self._prompt = task.prompt if task else "{problem}"
        self._system = task.system if task else ""
        self._args = dict(task.template_args) if task else {}
        for key, text in (("task.prompt", self._prompt), ("task.system", self._system)):
            if half := next((c for c in text if "\ud800" <= c <= "\udfff"), None):
                raise BadInput(f"{key}: has an unpaired surrogate ({half!a}); write complete characters")
        self._check_arguments()

    def encode(self, problem: Problem) -> np.ndarray:
        """Return the token ids of the prompt, [P] int32. Raises `BadInput` if the chat template refuses the prompt."""
        turns = self._turns(problem)
        if not self.tokenizer.chat_template and len(turns) > 1:
            raise BadInput(
                f"{problem.id}: the tokenizer of {self._folder} has no chat template for {len(turns)} messages"
            )
        try:
            ids = self._ids(turns)
        except Exception as e:  # the template is code of the model and may raise anything, tokenizers even Exception
            failing = "chat template" if self.tokenizer.chat_template else "tokenizer"
            raise BadInput(f"{problem.id}: the {failing} of {self._folder} fails on its prompt: {one_line(e)}") from e
        if self._size is not None and (wrong := next((i for i in ids if i >= self._size), None)) is not None:
            raise BadInput(
                f"{problem.id}: its prompt has the token id {wrong}, but the vocab_size of"
                f" {Path(self._folder) / 'config.json'} is {self._size}; use the tokenizer of this model"
            )
        return np.asarray(ids, np.int32)

    def _ids(self, turns: Sequence[Turn]) -> Sequence[int]:
        if not self.tokenizer.chat_template:
            found: Sequence[int] = self.tokenizer(turns[0].content)["input_ids"]
            return found
        messages = [{"role": t.role, "content": t.content} for t in turns]
        found = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, **self._args
        )["input_ids"]
        return found

    def decode(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

    def shown(self, tokens: np.ndarray) -> str:
        """Return the text of tokens, including special tokens."""
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def _turns(self, problem: Problem) -> tuple[Turn, ...]:
        """Return the conversation: the system message and the turns.

        The prompt template is applied to the last turn.
        """
        turns = problem.turns or (Turn(role="user", content=problem.problem),)
        last = Turn(role="user", content=self._prompt.replace("{problem}", turns[-1].content))
        system = (Turn(role="system", content=self._system),) if self._system and turns[0].role != "system" else ()
        return (*system, *turns[:-1], last)

    def _check_arguments(self) -> None:
        template = self.tokenizer.chat_template
        if not template:
            for key, value in (("task.system", self._system), ("task.template_args", self._args)):
                if value:
                    raise BadInput(f"{key}: the tokenizer of {self._folder} has no chat template; remove {key}")
            return
        if ours := [name for name in self._args if name in _OURS]:
            raise BadInput(f"task.template_args: {ours[0]} is set by treeadv; remove {ours[0]}")
        texts = template.values() if isinstance(template, dict) else [template]
        try:
            known = set().union(*(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) for text in texts))
        except jinja2.TemplateError as e:
            raise BadInput(f"{self._folder}: its chat template is not a Jinja template: {one_line(e)}") from e
        if unknown := [name for name in self._args if name not in known]:
            takes = ", ".join(sorted(known - set(_OURS) - {"raise_exception", "strftime_now"}))
            raise BadInput(
                f"task.template_args: the chat template of {self._folder} does not use {unknown[0]} (it uses {takes});"
                f" remove {unknown[0]}"
            )


class _Generation(jinja2.ext.Extension):
    """An extension that parses {% generation %}, which marks the turns of the assistant in some templates."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = jinja2.Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False)


def load_tokenizer(folder: str | Path) -> Any:  # transformers chooses the class
    """Return the tokenizer of a model folder. Raises `BadInput` for damaged files."""
    check_tokenizer(Path(folder), read_object(Path(folder) / "config.json"))
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as e:  # transformers and tokenizers raise many types, even Exception
        model_config(folder)  # raises a more precise error for a damaged config.json
        raise BadInput(
            f"{folder}: its tokenizer cannot be loaded ({one_line(e)}); restore {', '.join((FILE, *SETTINGS))}"
        ) from e
