"""`python -m benchmarks.gpu`: checks and times the parts that need an accelerator. It prints one JSON object per line.
It exits with 1 if a part fails.

  check     relative error of the gradients of a forest through FlexAttention against its flattened leaves in float32:
            in float32, in bfloat16 (beside the error of the flattened leaves in bfloat16), and cut into pieces with
            recomputed activations. The forest has full and partial blocks of the kernel, lengths that no block divides,
            and heads of width 64
  step      forward and backward of one long forest with a model of the shape of Qwen2.5-0.5B in bfloat16: tree and
            flat, with MFU and peak memory
  learning  a small model learns to draw one token: mean reward of the first and of the last steps, with forests
            sampled from the policy

Start it at the root of the repository; treeadv need not be installed. It needs Python 3.11 or newer. A machine that has
only torch and transformers usually lacks pydantic, pydantic-core, annotated-types and typing-inspection. Download them
for the Python of that machine, copy the folder to it and put the folder on the Python path:

  pip install --target build/carry --python-version 3.12 --only-binary=:all: pydantic
  PYTHONPATH=build/carry python -m benchmarks.gpu

`--device cpu` runs the same with small shapes (SDPA in place of FlexAttention), as the tests do.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from actors.benchmarks.synthetic import flattened, synthetic_forest
from treeadv.command_line import run_command, tool_parser
from treeadv.config import parse
from treeadv.forest import Finish, Forest, Verdict
from treeadv.jsonl import JsonObject
from treeadv.learning import packing
from treeadv.learning.attention import flex_mask
from treeadv.learning.flops import utilisation
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer
from treeadv.seeds import derive


def main(argv: Sequence[str] | None = None) -> int:
    p = tool_parser("python -m benchmarks.gpu", __doc__)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--tokens", type=int, help="tokens of the timed forest (default 32768; 256 on cpu)")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--learning-steps", type=int, default=30)
    args = p.parse_args(argv)
    ok = _report("check", _check(args.device))
    ok &= _report("step", _step(args.device, args.tokens or (32768 if args.device == "cuda" else 256), args.rounds))
    ok &= _report("learning", _learning(args.device, args.learning_steps))
    return 0 if ok else 1


def _report(name: str, result: JsonObject) -> bool:
    print(json.dumps({"part": name, **result}), flush=True)
    return bool(result.get("ok", True))


def _small(vocab: int = 512) -> PretrainedConfig:
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )


def _half_billion() -> PretrainedConfig:
    """Return a configuration of the shape of Qwen2.5-0.5B."""
    return Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=65536,
    )  # fmt: skip


def _trainer(config: PretrainedConfig, device: str, **learner: Any) -> Trainer:
    """Return a trainer of a random model."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(place)
        settings = {"device": device, "tokens_per_microbatch": 1 << 16, **learner}
        return Trainer(
            parse({"task": {"families": [{"name": "chain_sum"}]}, "learner": settings}, "benchmark"), str(Path(place))
        )


def _check(device: str) -> JsonObject:
    """Compare the gradients of a forest with the gradients of its expanded leaves. Each leaf has the same advantage in
    both, so the gradients must be equal."""
    f = synthetic_forest(8, 413, 0.5757, 301, 512)  # two root segments of 317 tokens, each with 4 branches of 96
    flat = _expanded(f)
    exact = _gradient(device, flat)

    def error(form: Forest, **learner: Any) -> float:
        return float((_gradient(device, form, **learner) - exact).norm() / exact.norm())

    errors = {"float32": error(f), "cut": error(f, tokens_per_microbatch=900, checkpoint_activations=True)}
    rounded = {"bfloat16": error(f, dtype="bfloat16"), "bfloat16_flat": error(flat, dtype="bfloat16")}
    mask = flex_mask(packing.pack([f], packing.pieces([f], 1 << 16)), torch.device("cpu"))
    met = {
        "pieces": len(packing.pieces([f], 900)),
        "whole_blocks": int(mask.full_kv_num_blocks.sum()),
        "part_blocks": int(mask.kv_num_blocks.sum()),
    }
    sound = max(errors.values()) < 1e-4 and rounded["bfloat16"] < 1.5 * rounded["bfloat16_flat"] < 0.15
    return {"device": device, **errors, **rounded, **met, "ok": sound and min(met.values()) > 1}


def _gradient(device: str, f: Forest, **learner: Any) -> torch.Tensor:
    """Return the gradients of all parameters of the small model as one vector."""
    trainer = _trainer(_small(), device, **{"dtype": "float32", "preset": "flat_on_forest", **learner})
    trainer.gradients([f], Phases(device))
    return torch.cat([p.grad.flatten() for p in trainer.policy.parameters() if p.grad is not None]).double().cpu()


def _expanded(f: Forest) -> Forest:
    """Return the same rollouts as trees of one leaf each, which share only the prompt."""
    paths = [[np.arange(f.start[s], f.start[s + 1]) for s in f.path(int(e))] for e in f.leaf_segment]
    at = np.concatenate([np.concatenate(p) for p in paths])
    lengths = [sum(map(len, p)) for p in paths]
    forest = Forest.assemble(
        forest_id=f.forest_id, prompt_id=f.prompt_id, gold=f.gold, verifier=f.verifier, meta=f.meta, tau=f.tau,
        temperature=f.temperature, prompt=f.prompt, parent=[-1] * f.leaves, lengths=lengths, token=f.token[at],
        logprob=f.logprob[at], entropy=f.entropy[at], version=f.version[at], finish=f.finish,
    )  # fmt: skip
    return forest.with_rewards(f.reward.tolist(), f.verdict.tolist())


def _step(device: str, tokens: int, rounds: int) -> JsonObject:
    cuda = device == "cuda"
    trainer = _trainer(_half_billion() if cuda else _small(), device, dtype="bfloat16", checkpoint_activations=cuda)
    leaves, sharing = 16, 0.5
    f = synthetic_forest(
        leaves, round(tokens / leaves / (1 - sharing)), sharing, 256 if cuda else 16, trainer.policy.vocabulary
    )
    flat = flattened(f)
    out: JsonObject = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tokens": f.tokens,
        "sharing": f.sharing,
    }
    for name, batch in (("tree", [f]), ("flat", flat)):
        best = float("inf")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds + 1):  # the first round compiles
            clock = Phases(device)
            trainer.gradients(batch, clock)
            best = min(best, clock.seconds["forward_backward"])
        out[f"{name}_s"] = best
        out[f"{name}_mfu"] = utilisation(trainer.policy.model, batch, best, device)
        out[f"{name}_peak_gb"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    prompt = len(f.prompt)
    bound = (prompt + f.tokens) / sum(prompt + g.tokens for g in flat)
    return out | {"bound": bound, "ratio_to_bound": out["tree_s"] / out["flat_s"] / bound}


def _learning(device: str, steps: int) -> JsonObject:
    """Train on a reward that is the share of a given token in a leaf. The mean reward must rise by half of the distance
    between the mean reward of a random policy and 1."""
    trainer = _trainer(_small(vocab=16), device, dtype="bfloat16", lr=3e-3, correction="tis")
    began, means = time.perf_counter(), []
    for step in range(steps):
        forests = [_sampled(trainer, step, n) for n in range(4)]
        means.append(trainer.step(forests, trainer.version).reward_mean)
    first, last = float(np.mean(means[:3])), float(np.mean(means[-3:]))
    return {
        "first": first,
        "last": last,
        "seconds": time.perf_counter() - began,
        "steps": steps,
        "ok": last > first + (1 - first) / 2,
    }


@torch.no_grad()
def _sampled(trainer: Trainer, step: int, number: int) -> Forest:
    """Draw a forest of two trees from the policy: a root segment of 4 tokens with 4 branches of 8."""
    torch.manual_seed(derive("gpu-learning", step, number))
    model, device = trainer.policy.model, trainer.policy.device
    prompt = torch.tensor([[1, 2, 3]], device=device)
    tokens: list[np.ndarray] = []
    logprob: list[np.ndarray] = []
    for _ in range(2):
        path, drawn, logp = _draw(model, prompt, 4)
        tokens.append(drawn[0])
        logprob.append(logp[0])
        _, drawn, logp = _draw(model, path.repeat(4, 1), 8)
        tokens += list(drawn)
        logprob += list(logp)
    up = np.array([-1, 0, 0, 0, 0, -1, 5, 5, 5, 5], np.int32)
    ends = np.flatnonzero(up >= 0)
    reward = [float(np.mean(np.concatenate([tokens[up[e]], tokens[e]]) == 7)) for e in ends]
    forest = Forest.assemble(
        forest_id=f"{step}-{number}", prompt_id="p", verifier="exact", rule="fixed", prompt=[1, 2, 3], parent=up,
        lengths=[len(t) for t in tokens], token=np.concatenate(tokens), logprob=np.minimum(np.concatenate(logprob), 0),
        version=trainer.version, finish=Finish.LENGTH,
    )  # fmt: skip
    return forest.with_rewards(reward, [Verdict.VERIFIED] * len(ends))


def _draw(model: Any, path: torch.Tensor, count: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Draw `count` tokens after each row of `path` by plain forward passes. Returns (longer path, tokens, log-probs of
    the tokens)."""
    start, logps = path.shape[1], []
    for _ in range(count):
        logp = model(input_ids=path).logits[:, -1].float().log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1)
        logps.append(logp.gather(1, token))
        path = torch.cat([path, token], 1)
    return path, path[:, start:].cpu().numpy(), torch.cat(logps, 1).cpu().numpy()


if __name__ == "__main__":
    sys.exit(run_command(main))
