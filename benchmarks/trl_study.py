"""`python -m benchmarks.trl_study DIR --row grpo`: runs a row of a finished study again with TRL's GRPOTrainer.

The baseline is independent: TRL draws the answers with transformers' generate, normalises the rewards, and computes the
loss and the optimizer step. Model, problems and their order, verifier, answers per prompt, token limit, optimizer and
evaluation are those of the row. DIR/trl/seed-N.json has each finished run, so a second call continues.
DIR/trl/comparison.json has the figures of both, and the comparison paired by seed, with the study's test.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from treeadv.command_line import local, run_command, tool_parser
from treeadv.config import Config
from treeadv.data.problems import Problem
from treeadv.data.prompts import load_tokenizer
from treeadv.data.tasks import problem_source
from treeadv.disk import replace_file
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.presets import build_advantage
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.study.analysis import compare, metric, read_cells
from treeadv.study.cell import evaluate, held_out
from treeadv.study.spec import Comparison, Study, load_study

ARM = "trl"
METRICS = ("test_accuracy", "dev_accuracy_at_tokens", "tokens_generated", "tokens_to_target")


def settings(config: Config, folder: Path) -> GRPOConfig:
    """Return TRL's settings for the run that `config` describes. Raises `BadInput` for a row that TRL cannot run with
    these settings."""
    learner, sampling = config.learner, config.sampling
    spec = build_advantage(learner.preset, learner.advantage)
    if spec.credit != "leaf" or spec.normaliser != "token_mean" or spec.ratio != "token":
        raise BadInput(f"learner.preset={learner.preset}: choose a row of flat answers with GRPO's loss")
    if learner.updates_per_batch * learner.passes_per_batch != 1 or learner.schedule != "constant" or learner.kl:
        raise BadInput("the row needs one update a batch, a constant learning rate and kl=0")
    answers = learner.forests_per_step * sampling.leaves
    return GRPOConfig(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no",
        save_strategy="no", seed=config.run.seed, shuffle_dataset=False, max_steps=config.run.steps,
        per_device_train_batch_size=answers, gradient_accumulation_steps=1, num_generations=sampling.leaves,
        max_completion_length=sampling.max_tokens, temperature=sampling.temperature, beta=0.0,
        bf16=learner.dtype == "bfloat16",
        loss_type="bnpo", scale_rewards="group", epsilon=spec.clip[0], epsilon_high=spec.clip[1],
        learning_rate=learner.lr, lr_scheduler_type="constant", adam_beta1=learner.betas[0],
        adam_beta2=learner.betas[1], adam_epsilon=learner.adam_eps, weight_decay=learner.weight_decay,
        max_grad_norm=learner.clip_grad, remove_unused_columns=False,
    )  # fmt: skip


class Looks(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """A callback that evaluates the policy on the development problems every `look_every` steps, as the study does."""

    def __init__(self, study: Study, config: Config, counted: dict[str, float]) -> None:
        self.study, self.config, self.counted, self.found = study, config, counted, []  # type: ignore[var-annotated]

    def look(self, model: torch.nn.Module, step: int) -> None:
        """Evaluate the model after `step` steps and append the figures to `found`."""
        development = self.study.development
        figures = evaluated(self.config, model, held_out(development, self.config), development.samples, "development")
        self.found.append({"step": step, "tokens_generated": self.counted["tokens"], **figures})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.study.look_every == 0 or state.global_step == args.max_steps:
            self.look(model, state.global_step)


class Rewards:
    """The reward function of a trainer of TRL. It grades with the verifiers of the run."""

    def __init__(self, config: Config, problems: Mapping[str, Problem], counted: dict[str, float]) -> None:
        """`problems` holds the problem of each prompt. `counted` gets the number of generated tokens."""
        self._config, self._problems, self._counted = config, problems, counted

    def __enter__(self) -> Rewards:
        reward = self._config.reward
        self._runner = asyncio.Runner()
        self._pool = VerifierPool(reward.workers, reward.timeout, reward.memory_mb)
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()

    def of(self, completions: list[str], prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        self._counted["tokens"] += sum(map(len, completion_ids))
        asked = [self._problems[p] for p in prompts]
        answers = [
            Answer(response=c, gold=p.answer, verifier=p.verifier, meta=p.meta)
            for c, p in zip(completions, asked, strict=True)
        ]
        return [j.reward for j in self._runner.run(self._pool.grade(answers))]


def evaluated(config: Config, model: Any, problems: list[Problem], samples: int, name: str) -> JsonObject:
    """Return the figures of the model in memory, from a copy of its folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        load_tokenizer(config.model.path).save_pretrained(folder)
        return evaluate(config, Path(folder), problems, samples, name)


def run(study: Study, config: Config) -> JsonObject:
    """Train with TRL and return a result with the fields of cell.json that the analysis reads."""
    source, groups = problem_source(config.task, config.run.seed), config.run.steps * config.learner.forests_per_step
    problems = [source[draw] for draw in range(groups)]
    counted = {"tokens": 0.0}
    tokenizer = load_tokenizer(config.model.path)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    tokenizer.pad_token_id = model.config.pad_token_id
    looks = Looks(study, config, counted)
    looks.look(model, 0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Rewards(config, {p.problem: p for p in problems}, counted) as rewards:
        trainer = GRPOTrainer(
            model=model, reward_funcs=rewards.of, args=settings(config, Path(folder)), processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": p.problem} for p in problems]), callbacks=[looks],
        )  # fmt: skip
        trainer.train()
    seconds = time.monotonic() - began
    tested = evaluated(config, trainer.model, held_out(study.test, config), study.test.samples, "test")
    series = {"tokens_generated": [x["tokens_generated"] for x in looks.found]}
    return {"row": ARM, "seed": config.run.seed, "status": "done", "test": tested, "looks": looks.found,
            "series": series, "seconds": seconds}  # fmt: skip


def table(study: Study, home: Path, row: str, theirs: dict[int, JsonObject]) -> JsonObject:
    """Return the figures of each seed and the comparisons of TRL with the row."""
    cells = read_cells(study, home) | {(ARM, seed): result for seed, result in theirs.items()}
    analysis = study.analysis.model_copy(update={"comparisons": tuple(
        Comparison(claim=f"TRL's {m} differs from that of {row}", arm=ARM, against=row, metric=m) for m in METRICS
    )})  # fmt: skip
    found = compare(study.model_copy(update={"analysis": analysis, "seeds": tuple(theirs)}), cells)
    return {
        "study": study.name, "row": row, "seeds": list(theirs),
        "accuracy": {name: [round(metric(study, cells[name, s], "test_accuracy", math.nan), 4) for s in theirs]
                     for name in (ARM, row)},
        "comparisons": [
            {"metric": o.comparison.metric, "trl": o.arm_mean, row: o.against_mean, "difference": o.difference,
             "interval": o.interval, "p": o.p, "p_holm": o.p_holm, "note": o.note} for o in found
        ],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.trl_study", __doc__.split(":")[0])
    p.add_argument("dir", type=local, metavar="DIR", help="folder of a finished study (treeadv study run)")
    p.add_argument("--row", default="grpo", help="row of the study that TRL repeats (default grpo)")
    args = p.parse_args(argv)
    study = load_study(args.dir / "study.yaml")
    cells, theirs = read_cells(study, args.dir), {}
    (args.dir / "trl").mkdir(exist_ok=True)
    for seed in study.seeds:
        cell, out = cells[args.row, seed], args.dir / "trl" / f"seed-{seed}.json"
        if cell["status"] != "done":
            raise BadInput(f"{args.dir}: {args.row}, seed {seed} is not finished; run the study first")
        if not out.is_file():
            replace_file(out, json.dumps(run(study, Config.model_validate(cell["config"]))) + "\n")
        theirs[seed] = json.loads(out.read_text())
    text = json.dumps(table(study, args.dir, args.row, theirs), indent=1)
    replace_file(args.dir / "trl" / "comparison.json", text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
