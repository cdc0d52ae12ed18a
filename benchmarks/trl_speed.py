"""`python -m benchmarks.trl_speed`: leaves trained a second by TRL's GRPOTrainer and by this pipeline, end to end.

Model, prompts, verifier, answers per prompt, token limit, optimizer settings and machine are the same. TRL draws and
learns in turn in one process, which uses all cores. The pipeline is `treeadv train` with the presets of `--presets`,
and `treeadv train --local`, which also draws and learns in turn. The learning rate is nearly 0, so all answers are
those of the untrained model. Prints one JSON object per run; the first `--skip` steps of each are not counted.
`generation_share` is the share of TRL's time in which it draws and grades.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer

from actors.benchmarks.lines import print_figures
from benchmarks.trl_study import Rewards, settings
from treeadv import config as configuration
from treeadv.command_line import local, positive, run_command, tool_parser
from treeadv.config import Config
from treeadv.data import model_folder
from treeadv.data.problems import Problem
from treeadv.data.prompts import Prompter, load_tokenizer
from treeadv.data.tasks import problem_source
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject

FROZEN = "learner.lr=1e-9"


class Timed(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer. It adds the seconds in which it draws and grades to `drawing`."""

    drawing = 0.0

    def _generate_and_score_completions(self, inputs: list[JsonObject]) -> Any:
        began = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self.drawing += time.perf_counter() - began
        return found


class Ends(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """A callback that notes the time and the generated tokens at the end of each step."""

    def __init__(self, counted: dict[str, float]) -> None:
        self.trainer: Timed | None = None
        self.counted, self.found = counted, []  # type: ignore[var-annotated]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer
        self.found.append((time.perf_counter(), self.counted["tokens"], self.trainer.drawing))


def prompts(config: Config, steps: int) -> dict[str, Problem]:
    """Return the problem of each prompt, as text with special tokens. Raises `BadInput` if TRL would read other ids."""
    source, prompter = problem_source(config.task, config.run.seed), Prompter(config.model.path, config.task)
    tokenizer, found = prompter.tokenizer, {}
    for draw in range(steps * config.learner.forests_per_step):
        ids = prompter.encode(source[draw])
        text = prompter.shown(ids)
        if tokenizer(text).input_ids != ids.tolist():
            raise BadInput(f"draw {draw}: the text of the prompt has other ids; choose another model or prompt")
        found[text] = source[draw]
    return found


def of_trl(config: Config, steps: int, skip: int) -> JsonObject:
    """Train with TRL on all cores. Return its figures."""
    torch.set_num_threads(os.cpu_count() or 1)
    asked, counted = prompts(config, steps), {"tokens": 0.0}
    ends, groups = Ends(counted), steps * config.learner.forests_per_step
    with tempfile.TemporaryDirectory() as folder, Rewards(config, asked, counted) as rewards:
        rows = [{"prompt": text} for text in asked]
        ends.trainer = Timed(
            model=AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32),
            reward_funcs=rewards.of, args=settings(config, Path(folder)), callbacks=[ends],
            processing_class=load_tokenizer(config.model.path),
            train_dataset=Dataset.from_list((rows * groups)[:groups]),
        )  # fmt: skip
        with redirect_stdout(sys.stderr):  # TRL prints its figures
            ends.trainer.train()
    (began, before, drawn), (end, after, drawn_last) = ends.found[skip - 1], ends.found[-1]
    return {**figures(config, end - began, steps - skip, after - before),
            "generation_share": (drawn_last - drawn) / (end - began)}  # fmt: skip


def of_pipeline(config: Config, recipe: Path, preset: str, steps: int, skip: int, options: Sequence[str]) -> JsonObject:
    """Train with `treeadv train` in processes of its own. Return its figures."""
    with tempfile.TemporaryDirectory() as root:
        changes = [f"run.root={root}", "run.name=run", f"run.steps={steps}", f"learner.preset={preset}", FROZEN]
        command = [sys.executable, "-m", "actors.cli", "train", *options, "--config", str(recipe), *changes]
        subprocess.run(command, check=True, stdout=sys.stderr)
        lines = [json.loads(x) for x in (Path(root) / "run" / "metrics.jsonl").read_text().splitlines()]
    by_step = {x["step"]: x for x in lines}
    first, last = by_step[skip], by_step[steps]
    tokens = last["tokens_generated"] - first["tokens_generated"]
    return figures(config, last["elapsed_s"] - first["elapsed_s"], steps - skip, tokens)


def figures(config: Config, seconds: float, steps: int, tokens: float) -> JsonObject:
    leaves = steps * config.learner.forests_per_step * config.sampling.leaves
    return {"leaves_per_s": leaves / seconds, "step_s": seconds / steps, "tokens_per_leaf": tokens / leaves,
            "tokens_per_s": tokens / seconds}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.trl_speed", __doc__)
    p.add_argument("--config", type=local, default=Path("deploy/recipes/laptop.yaml"), metavar="RECIPE.yaml")
    p.add_argument("--steps", type=positive, default=12, help="optimizer steps of each run")
    p.add_argument("--skip", type=positive, default=2, help="steps at the start that are not counted")
    p.add_argument("--presets", nargs="*", default=["grpo", "treeadv"], help="presets of the pipeline")
    args = p.parse_args(argv)
    if args.skip >= args.steps:
        raise BadInput(f"--skip {args.skip} leaves no step of --steps {args.steps}; raise --steps")
    config = configuration.load(args.config, ["learner.preset=grpo", f"run.steps={args.steps}", FROZEN])
    folder = str(model_folder.resolve(config.model.path, config.model.cache))
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": folder})})
    print_figures(bench="trl_speed", system="trl", **of_trl(config, args.steps, args.skip))
    for preset in args.presets:
        for system, options in (("pipeline", ()), ("local", ("--local",))):
            found = of_pipeline(config, args.config, preset, args.steps, args.skip, options)
            print_figures(bench="trl_speed", system=system, preset=preset, **found)


if __name__ == "__main__":
    sys.exit(run_command(main))
