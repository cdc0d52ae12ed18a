"""The checks of a run before its start: names, files, devices, ports and prompts. The first fault raises a
`BadInput`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from treeadv.config import Config
from treeadv.data.model_folder import SMOLLM2, check_path, tokenizer_folder
from treeadv.data.problems import Problem
from treeadv.data.tasks import problem_source
from treeadv.dtypes import multiplies_bfloat16
from treeadv.engines.registry import check_engine, cuda_option
from treeadv.errors import BadInput
from treeadv.evaluation.sets import sets_of, shared_problems
from treeadv.forest import Verdict
from treeadv.learning import objective
from treeadv.places import is_uri
from treeadv.replay.selection import selection_rule
from treeadv.rewards.copies import copies
from treeadv.rewards.golds import Gold, check_golds
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import Judge, judging
from treeadv.rewards.verifiers.registry import find_verifier, is_built_in
from treeadv.sampling.rules import build_rule
from treeadv.storage.folder import check_uri
from treeadv.tracking import check_trackers
from treeadv.visible import visible_logger

log = visible_logger("treeadv.checks")
DRAWS = 8  # number of checked draws of an endless source
PROMPTS = 64  # number of prompts that are rendered
BY_CHANCE = 0.05  # share of problems whose text may contain the answer by chance


def check_run(config: Config, local: bool = False) -> None:
    """Check a run of `config`. Raises `BadInput` for the first fault. `local` means that the run uses this process
    alone."""
    objective.build_objective(config.learner, config.sampling)
    if build_rule(config.sampling.rule, config.sampling.rule_options).needs_rewards and not local:
        raise BadInput(
            f"sampling.rule_options of rule {config.sampling.rule}: it reads rewards while a forest grows, which a"
            " generator does not have; train with --local, or choose by=entropy or by=uniform"
        )
    selection_rule(config.queue.selection)
    check_trackers(config.run.trackers)
    if is_uri(config.run.root):
        raise BadInput(
            f"run.root={config.run.root} must be a path on this machine; name an object store in run.storage"
        )
    if config.run.storage:
        check_uri(config.run.storage)
    if config.run.storage and config.queue.fsync == "none":
        raise BadInput(f"queue.fsync=none never writes to {config.run.storage}; use interval or always")
    check_engine(config)
    if local:
        _check_local(config)
    for name, gpus in (("generator", config.generator.gpus), ("learner", config.learner.gpus)):
        if gpus > 1 and gpus != int(gpus):
            raise BadInput(f"{name}.gpus={gpus:g}: a number of GPUs above 1 must be a whole number")
    _check_port(config.metrics.host, config.metrics.port)
    check_path(config.model.path, config.model.cache)
    for source in config.task.parts:
        find_verifier(source.verifier)
    examples = problem_source(config.task, config.run.seed).examples(DRAWS)
    check_prompts(examples, config)
    check_dtypes(config)
    with verifiers(config) as judge:
        check_answers(examples, config, judge)
        check_copies(examples, config, judge)
        if config.eval.every:
            _check_evaluation(config, examples, judge)


def verifiers(config: Config) -> AbstractContextManager[Judge]:
    """Return a context manager that yields a judge with the verifier processes of `config`."""
    return judging(config.reward.workers, config.reward.timeout, config.reward.memory_mb)


def check_prompts(problems: Sequence[Problem], config: Config) -> None:
    """Render the prompts of a sample of the problems.

    The sample is spread over all problems. Raises `BadInput` if the model or its tokenizer cannot be loaded, if the
    chat template refuses a prompt, or if no prompt leaves room for an answer. A packaged model that is not unpacked yet
    is not checked."""
    folder = tokenizer_folder(config.model.path, config.model.cache)
    if folder is None:
        return
    from treeadv.data.model_check import check_generation, longest_path  # imported here, because it loads torch
    from treeadv.data.prompts import Prompter
    from treeadv.learning.loading import check_weights

    check_generation(folder)
    if config.model.path == SMOLLM2 or Path(config.model.path).is_dir():  # a model of the hub comes after the checks
        check_weights(folder)
    prompter, room = Prompter(folder, config.task), longest_path(folder) - config.sampling.max_tokens
    chosen = problems[:: max(1, len(problems) // PROMPTS)]
    lengths = {problem.id: len(prompter.encode(problem)) for problem in chosen}
    long = [f"{name} with {length} tokens" for name, length in lengths.items() if length > room]
    if long:
        text = (
            f"{len(long)} of {len(lengths)} prompts leave no room for sampling.max_tokens={config.sampling.max_tokens}"
            f" in the {longest_path(folder)} tokens of the model; the first is {long[0]}"
        )
        if len(long) == len(lengths):
            raise BadInput(f"{config.task.title}: {text}; lower sampling.max_tokens")
        log.warning("%s: %s; the run skips such prompts", config.task.title, text)


def check_answers(problems: Sequence[Problem], config: Config, judge: Judge) -> None:
    """Grade each gold answer against itself, and log the number of gold answers that are not verified.

    Raises `BadInput` if a verifier fails or verifies no gold answer."""
    golds = [Gold(place=p.id, text=p.answer, verifier=p.verifier, meta=p.meta) for p in problems]
    if unmet := check_golds(golds, judge):
        log.warning("%s: %s", config.task.title, unmet)


def check_copies(problems: Sequence[Problem], config: Config, judge: Judge) -> None:
    """Grade copies of a sample of the problems as answers, and log a warning if the verifier accepts them.

    A policy that is trained with such a verifier learns to copy: `math` verifies `6 + 7` for 13."""
    built_in = [p for p in problems if is_built_in(p.verifier)]
    chosen = built_in[:: max(1, len(built_in) // PROMPTS)]
    asked = [(p, copy) for p in chosen for copy in copies(p.problem)]
    answers = [Answer(response=copy, gold=p.answer, verifier=p.verifier, meta=p.meta) for p, copy in asked]
    accepted = {p.id: copy for (p, copy), j in zip(asked, judge(answers), strict=True) if j.verdict is Verdict.VERIFIED}
    if len(accepted) > BY_CHANCE * len(chosen):
        log.warning(
            "%s: for %d of %d problems the verifier accepts a copy of the problem as the answer, such as %r; a policy"
            " learns to copy; set task.verifier=literal for numbers, exact for other answers",
            config.task.title, len(accepted), len(chosen), next(iter(accepted.values()))[-60:],
        )  # fmt: skip


def _check_evaluation(config: Config, trained: Sequence[Problem], judge: Judge) -> None:
    """Raise `BadInput` for held-out problems that cannot be used. Log the number of held-out problems that are also
    trained on."""
    sets = sets_of(config)
    problems = [p for s in sets for p in s.problems]
    check_prompts(problems, config)
    check_answers(problems, config, judge)
    if shared := shared_problems(sets, trained):
        log.warning("eval.data=%s: %d of its %d problems are trained on too", config.eval.data, shared, len(problems))


def check_devices(config: Config) -> None:
    """Raise `BadInput` if this machine lacks the GPUs that learners and generators request."""
    c, g = config.learner, config.generator
    needed = c.gpus * c.count + g.gpus * g.count
    asked = [option for option in ("learner.device=cuda" if c.device == "cuda" else "", cuda_option(config)) if option]
    if not needed and not asked:
        return
    import torch

    available = torch.cuda.device_count()
    if asked and not available:
        key = asked[0].partition("=")[0]
        raise BadInput(f"{asked[0]}: torch {torch.__version__} finds no CUDA device on this machine; set {key}=cpu")
    if needed > available:
        raise BadInput(
            f"generator.gpus and learner.gpus ask for {needed:g} GPUs, but this machine has {available}; lower them"
        )


def check_dtypes(config: Config) -> None:
    """Log a warning for roles that compute in bfloat16 on this machine's CPU if the CPU only emulates it."""
    c, g = config.learner, config.generator
    slow = ["learner.dtype"] if c.device == "cpu" and c.dtype == "bfloat16" else []
    emulates = g.dtype == "bfloat16" and not g.settings.remote and not cuda_option(config)
    slow += ["generator.dtype"] if emulates else []
    if slow and not multiplies_bfloat16():
        log.warning(
            "%s: bfloat16 is several times slower than float32 on this machine, whose CPU has no instructions for it;"
            " set auto", ", ".join(slow),
        )  # fmt: skip


def _check_local(config: Config) -> None:
    for role, count in (("generator", config.generator.count), ("learner", config.learner.count)):
        if count > 1:
            raise BadInput(f"{role}.count={count}: --local has one {role}; set {role}.count=1 or omit --local")
    behind = config.local.staleness * config.learner.updates_per_step
    if behind > (bound := config.queue.max_staleness):
        raise BadInput(
            f"local.staleness={config.local.staleness}: queue.max_staleness={bound} would drop every forest; set"
            f" queue.max_staleness={behind}"
        )
    check_devices(config)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            if isinstance(e, socket.gaierror):
                raise BadInput(
                    f"metrics.host={host}: this name has no address ({e.strerror}); use 127.0.0.1 or 0.0.0.0"
                ) from e
            raise BadInput(
                f"metrics.port={port}: cannot listen on {host}:{port} ({e.strerror}); choose another, or 0 for any"
            ) from e
