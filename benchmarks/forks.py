"""`python -m benchmarks.forks`: measures how much of the reward's variance a fork decides, by the entropy at the fork.

The model is the pretrained model of the task operator-tables. At a prefix h with next-token distribution pi, the value
Q(a) of each token a is estimated from continuations. The variance of Q under pi is the part of the reward's variance
that the next token decides. E[Q (1 - Q)] is the part that later tokens decide. The prefixes are places of independent
rollouts, the same number for each bin of entropy. The command prints one JSON object per line:

  entropy        bin in nats
  share          share of all tokens that lie in the bin
  places         number of prefixes
  decides        mean of Var_a Q(a), corrected for its sampling error
  error          standard error of `decides` over prefixes
  later          mean of E_a[Q (1 - Q)], with the same correction
  share_decided  decides / (decides + later)
  distinct       probability that two siblings draw different tokens

The last line has the means over prefixes at random, where a random rule forks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from treeadv import config as configuration
from treeadv.command_line import local, run_command, tool_parser
from treeadv.config import Config
from treeadv.data.problems import Problem
from treeadv.data.tasks import problem_source
from treeadv.evaluation.sets import independent
from treeadv.forest import Forest
from treeadv.local.rollouts import rollouts
from treeadv.local.warmup import VOCABULARY, Warmup, warm_model

BINS = (0.0, 0.01, 0.1, 0.3, 0.6, 1.2)
SMALLEST = 0.02  # tokens with a lower probability are left out; the rest is scaled to 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """A prefix, its entropy in nats, and the tokens that may follow with their probabilities."""

    problem: Problem
    text: str
    entropy: float
    tokens: list[int]
    prob: np.ndarray


def settings(model: Path, operators: int, seed: int) -> Config:
    tree = {
        "model": {"path": str(model)},
        "task": {"source": "operator-tables", "tables": {"operators": operators}},
        "run": {"seed": seed},
        "sampling": {"max_tokens": 36, "temperature": 1.0},
        "generator": {"threads": 1, "rows": 128},
    }
    return configuration.build(tree, [], "benchmarks.forks")


def places(forests: list[Forest], problems: list[Problem], model: Path, per_bin: int, seed: int) -> list[Place]:
    """Return `per_bin` random places of each bin of entropy, or all places of a bin that has fewer."""
    rng = np.random.default_rng(seed)
    all_entropies = np.concatenate([f.entropy for f in forests])
    owner = np.concatenate([np.full(f.tokens, i) for i, f in enumerate(forests)])
    at = np.concatenate([np.arange(f.tokens) for f in forests])
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    out = []
    for low, high in itertools.pairwise(BINS):
        inside = np.flatnonzero((all_entropies >= low) & (all_entropies < high))
        for k in rng.permutation(inside)[:per_bin]:
            f, problem = forests[owner[k]], problems[owner[k]]
            drawn = f.token[: at[k]]
            ids = torch.tensor([[*f.prompt.tolist(), *drawn.tolist()]])
            with torch.no_grad():
                prob = network(input_ids=ids).logits[0, -1].double().softmax(-1).numpy()
            kept = [int(t) for t in np.flatnonzero(prob > SMALLEST)]
            text = problem.problem + "".join(VOCABULARY[t] for t in drawn)
            out.append(
                Place(
                    problem=problem,
                    text=text,
                    entropy=float(all_entropies[k]),
                    tokens=kept,
                    prob=prob[kept] / prob[kept].sum(),
                )
            )
    return out


def measure(config: Config, model: Path, found: list[Place], samples: int) -> list[tuple[float, float, float]]:
    """Return (Var_a Q, E_a[Q (1 - Q)], probability of distinct siblings) by place, corrected for sampling error."""
    asked = [
        Problem(
            id=f"{i}-{t}",
            problem=place.text + VOCABULARY[t],
            answer=place.problem.answer,
            verifier=place.problem.verifier,
            meta="",
        )
        for i, place in enumerate(found)
        for t in place.tokens
        if VOCABULARY[t] != "$"
    ]
    forests = asyncio.run(rollouts(independent(config, samples), model, asked, lambda _: None))
    value = {f.prompt_id: float(f.reward.mean()) for f in forests}
    out = []
    for i, place in enumerate(found):
        # No token is drawn after the end of the answer, so the prefix decides the reward
        ended = float(place.text[-1] == place.problem.answer)
        Q = np.array([value.get(f"{i}-{t}", ended) for t in place.tokens])
        error = np.array([0.0 if VOCABULARY[t] == "$" else 1.0 for t in place.tokens]) * Q * (1 - Q) / (samples - 1)
        p = place.prob
        decides = float(p @ (Q - p @ Q) ** 2 - (p * (1 - p)) @ error)
        later = float(p @ (Q * (1 - Q) + error))
        out.append((decides, later, float(1 - p @ p)))
    return out


def row(name: str, share: float, figures: np.ndarray, weight: np.ndarray) -> dict[str, float | str]:
    """Return one line of the output: means of `figures` [places, 3] with `weight` [places]."""
    mean = weight @ figures / weight.sum()
    spread = np.sqrt((weight**2) @ (figures[:, 0] - mean[0]) ** 2) / weight.sum()
    decided = mean[0] / (mean[0] + mean[1]) if mean[0] + mean[1] > 0 else 0.0
    return {"entropy": name, "share": round(share, 4), "places": len(figures), "decides": round(mean[0], 4),
            "error": round(float(spread), 4), "later": round(mean[1], 4), "share_decided": round(decided, 3),
            "distinct": round(mean[2], 3)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.forks", __doc__)
    p.add_argument("--models", type=local, default=Path("models"), help="folder of pretrained models (default models)")
    p.add_argument("--prompts", type=int, default=60)
    p.add_argument("--places", type=int, default=30, help="prefixes for each bin of entropy (default 30)")
    p.add_argument("--samples", type=int, default=24, help="continuations for each token (default 24)")
    p.add_argument("--operators", type=int, default=1, help="tables that problems use (default 1)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    model = warm_model(Warmup(), args.models).resolve()
    config = settings(model, args.operators, args.seed)
    source = problem_source(config.task, args.seed)
    problems = [source[i] for i in range(args.prompts)]
    forests = asyncio.run(rollouts(independent(config, 1), model, problems, lambda _: None))
    found = places(forests, problems, model, args.places, args.seed)
    figures = np.array(measure(config, model, found, args.samples))
    entropy, every = np.array([x.entropy for x in found]), np.concatenate([f.entropy for f in forests])
    weight = np.zeros(len(found))
    for low, high in itertools.pairwise(BINS):
        mine, share = (entropy >= low) & (entropy < high), float(((every >= low) & (every < high)).mean())
        if mine.any():
            weight[mine] = share / mine.sum()
            print(json.dumps(row(f"{low:g} to {high:g}", share, figures[mine], np.ones(mine.sum()))), flush=True)
    print(json.dumps(row("random place", 1.0, figures, weight)), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
