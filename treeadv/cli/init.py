"""The command `treeadv init`, which writes a commented recipe for a model and a file of problems."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.files import replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import output
from treeadv.errors import BadInput

if TYPE_CHECKING:
    from treeadv.config import Config
    from treeadv.data.problems import Problem
    from treeadv.rewards.sandbox.pool import Judge

HELD_OUT = 0.1  # share of the problems that is held out, up to `MOST_HELD_OUT` problems
MOST_HELD_OUT = 200
MOST_UNMET = 0.1  # share of gold answers that `math` may fail to verify; above it the recipe takes `exact`
SAMPLE = 200  # number of gold answers that are tried
TOKENS = {"cpu": 256, "cuda": 1024}  # tokens of an answer, if the model has room for them

RECIPE = """\
# Written by `treeadv init`. `treeadv train --config {out} --dry-run` shows what it runs and starts nothing.
# docs/your-task.md explains it, docs/configuration.md lists every field.
# Relative paths start at the folder where treeadv is called.
run:
  steps: 100            # optimizer steps
  checkpoint_every: 10  # steps between checkpoints
model:
  path: {model}
task:
  source: {source}      # {count} problems; the first is {first}
{columns}  prompt: {prompt}   # the user's turn
  # system: You are a careful assistant.      # needs a chat template
  # template_args: {{enable_thinking: false}}   # arguments of the chat template
  verifier: {verifier}  # {why}
  # verifier: my_reward:judge   # a function of yours, called with problem, response, gold and the columns by name
  held_out: {held_out}  # problems that are never trained on: treeadv eval --config {out} --data held-out --model DIR
sampling:
  leaves: 8             # answers of a prompt
  max_tokens: {tokens}  # of an answer
  temperature: 1.0
  tau_quantile: 0.8     # fork where the entropy is in its upper fifth
generator:
  forests: 6            # forests grown at a time
  dtype: auto           # bfloat16 where the machine multiplies it, else float32
  threads: 1
learner:
  forests_per_step: 6   # prompts of an optimizer step
  lr: 2.0e-5
  device: {device}{gpus}
  dtype: auto
  threads: 1
"""


def add(commands: Commands) -> None:
    p = add_command(commands, "init", init, "write a commented recipe for a model and a file of problems")
    p.add_argument("model", metavar="MODEL", help="Hugging Face folder, ORGANISATION/MODEL or smollm2-135m-instruct")
    p.add_argument("data", metavar="DATA", help="a .jsonl, .parquet or .csv file, or hf:NAME[[:CONFIGURATION]:SPLIT]")
    p.add_argument("--out", type=output, default=Path("recipe.yaml"), metavar="FILE.yaml", help="default: recipe.yaml")
    p.add_argument("--problem", default="", metavar="COLUMN", help="column of the problem, if its name is not known")
    p.add_argument("--answer", default="", metavar="COLUMN", help="column of the gold answer")


def init(args: argparse.Namespace) -> int:
    from treeadv.cli.files import check_target
    from treeadv.config import build
    from treeadv.data.model_folder import check_path
    from treeadv.data.tasks import read_problems

    check_target(args.out)
    if args.out.exists():
        raise BadInput(f"{args.out}: exists; name another file by --out")
    columns = {key: name for key in ("problem", "answer") if (name := getattr(args, key))}
    given = [f"task.source={json.dumps(args.data)}", f"model.path={json.dumps(args.model)}"]
    config = build({}, [*given, f"task.columns={json.dumps(columns)}"], "treeadv init")
    check_path(config.model.path, config.model.cache)
    problems = read_problems(config.task.parts[0])
    text = _recipe(args, config, problems, columns)
    with replaced(args.out) as scratch:
        scratch.write_text(text, encoding="utf-8")
    print(f"{args.out}: {len(problems)} problems; next: treeadv train --config {args.out} --dry-run")
    return 0


def _recipe(args: argparse.Namespace, config: Config, problems: Sequence[Problem], columns: dict[str, str]) -> str:
    import torch

    verifier, why = _verifier(problems, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    distinct = len({p.key for p in problems})
    if distinct < 2:
        raise BadInput(f"{args.data}: holds {distinct} distinct problem; a run needs one to train on and one held out")
    boxed = verifier in ("literal", "math")
    return RECIPE.format(
        out=args.out,
        model=json.dumps(args.model),
        source=json.dumps(args.data),
        count=len(problems),
        first=json.dumps(problems[0].problem[:60]),
        columns=f"  columns: {json.dumps(columns)}\n" if columns else "",
        prompt=json.dumps("{problem}\nPut the final answer in \\boxed{}." if boxed else "{problem}"),
        verifier=verifier,
        why=why,
        held_out=min(MOST_HELD_OUT, max(1, int(HELD_OUT * distinct))),
        tokens=_tokens(problems, config, device),
        device=device,
        gpus="\n  gpus: 1" if device == "cuda" else "",
    )


def _verifier(problems: Sequence[Problem], config: Config) -> tuple[str, str]:
    """Return a verifier for the gold answers, and the reason for the choice."""
    from treeadv.rewards.sandbox.pool import judging

    sample = problems[:: max(1, len(problems) // SAMPLE)]
    if all(re.fullmatch(r"[A-J]", p.answer) for p in sample):
        return "choice", "all gold answers are letters"
    with judging(1, config.reward.timeout, config.reward.memory_mb) as judge:
        if not _unmet("literal", sample, judge):
            return "literal", "all gold answers are numbers; math would verify a copied calculation too"
        unmet = _unmet("math", sample, judge)
    if unmet > MOST_UNMET * len(sample):
        return "exact", f"math cannot verify {unmet} of {len(sample)} gold answers"
    return "math", f"verifies {len(sample) - unmet} of {len(sample)} gold answers that were tried"


def _unmet(verifier: str, sample: Sequence[Problem], judge: Judge) -> int:
    """Return the number of gold answers that a verifier does not verify."""
    from treeadv.rewards.golds import Gold, check_golds

    golds = [Gold(place=p.id, text=p.answer, verifier=verifier, meta="") for p in sample]
    try:
        found = check_golds(golds, judge)
    except BadInput:  # it verifies none of them
        return len(sample)
    return found.count if found else 0


def _tokens(problems: Sequence[Problem], config: Config, device: str) -> int:
    """Return the number of tokens of an answer.

    It is the usual number on this device, but at most half of the tokens that a prompt leaves."""
    from treeadv.data.model_check import longest_path
    from treeadv.data.model_folder import SMOLLM2, resolve, tokenizer_folder
    from treeadv.data.prompts import Prompter

    folder = tokenizer_folder(config.model.path, config.model.cache) or resolve(SMOLLM2, config.model.cache)
    prompter = Prompter(folder)
    longest = max(len(prompter.encode(p)) for p in problems[:: max(1, len(problems) // SAMPLE)])
    room = longest_path(folder) - longest
    if room < 2:
        raise BadInput(
            f"model.path={config.model.path}: a prompt of {longest} tokens leaves no room for an answer;"
            " remove long problems, or use a model with a longer context"
        )
    return min(TOKENS[device], max(1, room // 2))
