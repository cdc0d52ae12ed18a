"""The evaluation of one model, whose results are stored in a folder problem by problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from treeadv.config import Config
from treeadv.data.prompts import Prompter
from treeadv.evaluation.folder import EvalFolder, line_of
from treeadv.evaluation.scores import Score, result_of, score
from treeadv.evaluation.sets import EvalSet, tickets
from treeadv.forest import Forest
from treeadv.local.rollouts import ForestMaker

_LINES = 20  # lines of progress if the output is not a terminal


async def measure(config: Config, model: Path, sets: Sequence[EvalSet], samples: int, folder: EvalFolder) -> Score:
    """Return the score of a model. `config.sampling` and `config.run.seed` define the draws.

    Problems whose results are in the folder are not answered again. Every other problem is stored as soon as it is
    graded. Raises `BadInput` if a prompt is too long."""
    results = {s.name: folder.results(s.name) for s in sets}
    asked = {t.forest_id: (s.name, t) for s in sets for t in tickets(s, config.run.seed)}
    missing = {key: (name, t) for key, (name, t) in asked.items() if t.draw not in results[name]}
    if missing:
        maker = await ForestMaker.start(config, model)
        try:
            maker.check_lengths([p for s in sets for p in s.problems])
            prompter = Prompter(model, config.task)
            with _progress(len(asked), len(asked) - len(missing)) as advance:

                def keep(forest: Forest) -> None:
                    name, ticket = missing[forest.forest_id]
                    prompt = prompter.tokenizer.decode(forest.prompt.tolist())
                    texts = [prompter.decode(forest.leaf_tokens(i)) for i in range(forest.leaves)]
                    folder.add(name, line_of(forest, ticket.draw, prompt, texts))
                    results[name][ticket.draw] = result_of(forest)
                    advance(forest.tokens)

                await maker.make([t for _, t in missing.values()], keep)
        finally:
            await maker.close()
    return score({s.name: [results[s.name][place] for place in s.places] for s in sets}, samples)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts one more problem, given the number of its tokens.

    The progress is a bar on a terminal and a few lines on any other output."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, tokens = Console(stderr=True), 0
    if done:
        console.print(f"going on: {done} of {total} problems are finished", highlight=False)
    counted = MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[tokens]}")
    columns = (*Progress.get_default_columns()[:2], *counted)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("problems", total=total, completed=done, tokens="")

        def advance(drawn: int) -> None:
            nonlocal done, tokens
            done, tokens = done + 1, tokens + drawn
            progress.update(task, advance=1, tokens=f"{tokens:,} tokens")
            if not console.is_terminal and (done == total or done % -(-total // _LINES) == 0):
                console.print(f"{done} of {total} problems, {tokens:,} tokens drawn", highlight=False)

        yield advance
