"""The command `treeadv train --dry-run`.

It reads and checks a recipe and says what the recipe runs. It starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from treeadv.config import Config
from treeadv.data.model_folder import SMOLLM2, resolve, tokenizer_folder
from treeadv.data.problems import Problem
from treeadv.data.tasks import SplitSource, read_parts
from treeadv.planning.plan import GB, make_plan, render
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import judging
from treeadv.rewards.verifiers.registry import find_verifier
from treeadv.storage.folder import join

ASSUMED_GPU = 80 * GB  # bytes of a GPU if this machine has none
NO_ANSWER = "I do not know."


def describe_run(config: Config, name: str) -> tuple[str, bool]:
    """Return the description of a run, and whether its roles fit into memory.

    `config` has absolute paths. `name` is the name of the run if the configuration has none."""
    sources = read_parts(config.task, config.run.seed)
    problem = sources[0].train[0]
    folder = tokenizer_folder(config.model.path, config.model.cache) or resolve(SMOLLM2, config.model.cache)
    plan = make_plan(config, folder / "config.json", _gpu_bytes(), _host_bytes())
    run = join(config.run.storage or config.run.root, config.run.name or name)
    c = config
    lines = [
        "Nothing is started. This recipe would run:",
        "",
        f"run      {run}" + ("; its start checks the access to the store" if config.run.storage else ""),
        f"steps    {c.run.steps}, each of {c.learner.forests_per_step} forests with {c.sampling.leaves} leaves"
        f" of at most {c.sampling.max_tokens} tokens",
        *(f"data     {line}" for line in _data_lines(sources, config)),
        *_prompt_lines(problem, config, folder),
        *(f"graded   {line}" for line in _graded_lines(problem, config)),
        "",
        f"memory, as treeadv plan predicts it for GPUs of {_gpu_bytes() / GB:.0f} GB and hosts of"
        f" {_host_bytes() / GB:.0f} GB:",
        render(plan),
    ]
    return "\n".join(lines), not plan.faults


def _data_lines(sources: list[SplitSource], config: Config) -> Iterator[str]:
    total = sum(p.config.weight for p in sources)
    for source in sources:
        names = f" {', '.join(f.name for f in source.config.families)}" if source.config.families else ""
        size = "endless" if source.size is None else f"{source.size} problems"
        digest = config.task.content.get(source.config.source, "")
        shown = f", SHA-256 {digest[:12]}..." if digest else ""
        share = f", {source.config.weight / total:.0%} of the draws" if len(sources) > 1 else ""
        yield f"{source.config.source}{names}: {size} to train on, {len(source.held_out)} held out{share}{shown}"


def _prompt_lines(problem: Problem, config: Config, folder: Path) -> list[str]:
    from treeadv.data.prompts import Prompter  # imported here, because it loads transformers

    prompter = Prompter(folder, config.task)
    tokens = prompter.encode(problem)
    text = prompter.shown(tokens)
    return [
        f"prompt   of {problem.id}, {len(tokens)} tokens with the special ones:",
        *(f"  | {x}" for x in text.split("\n")),
    ]


def _graded_lines(problem: Problem, config: Config) -> Iterator[str]:
    """Yield lines with the judgement of the problem's verifier on the gold answer and on a missing answer."""
    perfect = find_verifier(problem.verifier).perfect_response(problem.answer)
    responses = [problem.answer if perfect is None else perfect, NO_ANSWER]
    yield f"{problem.id} by {problem.verifier}; its gold answer is {problem.answer!r}"
    with judging(1, config.reward.timeout, config.reward.memory_mb) as judge:
        judgements = judge(
            [Answer(response=r, gold=problem.answer, verifier=problem.verifier, meta=problem.meta) for r in responses]
        )
    for response, judged in zip(responses, judgements, strict=True):
        detail = f" ({judged.detail})" if judged.detail else ""
        yield f"  {response!r}: {judged.verdict.name.lower()}, reward {judged.reward:g}{detail}"


def _gpu_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else ASSUMED_GPU


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
