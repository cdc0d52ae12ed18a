"""Grows forests for the tickets of the replay queue with one engine."""

from __future__ import annotations

from pathlib import Path

from treeadv.config import Config
from treeadv.data.model_files import stop_ids
from treeadv.data.problems import Problem
from treeadv.data.prompts import Prompter
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Engine
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow
from treeadv.sampling.search import Judge


class Grower:
    """The growth of forests with one engine. It uses the prompt template and the stop tokens of one model."""

    def __init__(self, config: Config, model_dir: Path, engine: Engine) -> None:
        self.prompter = Prompter(model_dir, config.task)
        self._sampling, self._engine, self._stop = config.sampling, engine, stop_ids(model_dir)

    def refusal(self, problem: Problem) -> str:
        """Return the reason why the prompt of a problem cannot be used, or "" if it can be used.

        A prompt cannot be used if the chat template refuses it or if it leaves no room for `sampling.max_tokens`."""
        try:
            length, limit = len(self.prompter.encode(problem)), self._sampling.max_tokens
        except BadInput as e:
            return str(e)
        if length + limit <= self._engine.longest:
            return ""
        return (
            f"the prompt of {problem.id} has {length} tokens: with "
            f"sampling.max_tokens={limit} its paths would be longer"
            f" than the {self._engine.longest} tokens that model and engine allow"
        )

    async def grow(self, ticket: Ticket, judge: Judge | None = None) -> Forest:
        """Return the ungraded forest of a ticket. Raises `EngineLost` if no branch draws a token."""
        request = GrowRequest(
            forest_id=ticket.forest_id,
            problem=ticket.problem,
            prompt=self.prompter.encode(ticket.problem),
            seed=ticket.seed,
        )
        return await grow(self._engine, request, self._sampling, ticket.tau, self._stop, judge)
