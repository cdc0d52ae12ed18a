"""The folder of an evaluation by `treeadv eval`. A killed evaluation continues from the files in its folder.

settings.json              all settings on which the answers depend: model, sets, prompt, chat template, sampling
answers/SET.jsonl          one line for each finished problem: its prompt as the model saw it, and its answers
results.json, results.md   the scores, which are written when all problems are finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treeadv.disk import fsync, replace_file, writing
from treeadv.errors import BadInput, one_line
from treeadv.evaluation.scores import Result, Score
from treeadv.evaluation.sets import EvalSet
from treeadv.evaluation.table import markdown
from treeadv.forest import Finish, Forest, Verdict
from treeadv.jsonl import JsonMapping, JsonObject, read_jsonl, read_object

_REMEDY = "restore the line, or delete it: the problem is then answered again"


class EvalFolder:
    """The stored results of finished problems. The lines of a set are in the order in which its problems were
    finished."""

    def __init__(self, path: Path, settings: JsonMapping) -> None:
        """Create the folder or open it. Raises `BadInput` for a folder that holds an evaluation with other settings."""
        self.path = path
        file = path / "settings.json"
        if file.is_file():
            if changed := _changed(read_object(file), json.loads(json.dumps(settings))):
                raise BadInput(f"{path}: holds an evaluation with another {changed}; choose another --out")
            return
        if path.exists() and any(path.iterdir()):
            raise BadInput(f"{path}: is not empty and holds no evaluation; choose another --out")
        with writing(path):
            (path / "answers").mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(settings, indent=2) + "\n")

    def results(self, name: str) -> dict[int, Result]:
        """Return the results of the finished problems of a set, by place. An incomplete last line is removed from
        the file."""
        file = self._file(name)
        if not file.is_file():
            return {}
        try:
            data = file.read_bytes()
        except OSError as e:
            raise BadInput(f"{file}: cannot be read ({e.strerror}); restore the file") from e
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            replace_file(file, whole)
        return dict(_result(line, f"{file}:{n}") for n, line in read_jsonl(file, "a finished problem"))

    def add(self, name: str, line: JsonMapping) -> None:
        """Append a finished problem and make the line durable."""
        file = self._file(name)
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            with file.open("a") as out:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            fsync(file.parent)

    def finish(self, score: Score, settings: JsonMapping) -> None:
        """Write results.json and results.md."""
        replace_file(self.path / "results.json", json.dumps({"settings": settings, **score.to_json()}, indent=2) + "\n")
        replace_file(self.path / "results.md", markdown(score) + "\n")

    def _file(self, name: str) -> Path:
        return self.path / "answers" / f"{name}.jsonl"


def line_of(forest: Forest, place: int, prompt: str, texts: Sequence[str]) -> JsonObject:
    """Return the line of a finished problem. `prompt` is the text of the prompt, and `texts` are the texts of the
    answers."""
    lengths = forest.lengths[forest.leaf_segment]
    answers = [
        {
            "text": texts[i], "tokens": int(lengths[i]), "finish": Finish(forest.finish[i]).name.lower(),
            "verdict": Verdict(forest.verdict[i]).name.lower(), "reward": float(forest.reward[i]),
            "detail": forest.detail[i] if forest.detail else "",
        }
        for i in range(forest.leaves)
    ]  # fmt: skip
    kept = {"place": place, "id": forest.prompt_id, "gold": forest.gold, "verifier": forest.verifier}
    return kept | {"prompt": prompt, "prompt_tokens": len(forest.prompt), "answers": answers}


def settings_of_sets(sets: Sequence[EvalSet]) -> JsonObject:
    """Return the number of problems of each set and a digest of the problems and their gold answers."""
    from hashlib import blake2b

    found = {}
    for s in sets:
        asked = [(n, p.problem, p.answer, p.verifier, p.meta) for n, p in zip(s.places, s.problems, strict=True)]
        texts = json.dumps(asked)
        found[s.name] = {"problems": len(s.problems), "digest": blake2b(texts.encode(), digest_size=16).hexdigest()}
    return found


def _result(line: Any, where: str) -> tuple[int, Result]:
    """Return (place of the problem, its result) of a line. Raises `BadInput`, which names `where` a damaged line is."""
    try:
        answers, place = line["answers"], line["place"]
        found = Result(
            verdicts=tuple(int(Verdict[a["verdict"].upper()]) for a in answers),
            finishes=tuple(int(Finish[a["finish"].upper()]) for a in answers),
            lengths=tuple(a["tokens"] for a in answers),
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"{where}: is no finished problem ({type(e).__name__}: {one_line(e)}); {_REMEDY}") from e
    if not answers or any(type(n) is not int or n < 0 for n in (place, *found.lengths)):
        raise BadInput(f"{where}: its place and the tokens of its answers must be integers from 0; {_REMEDY}")
    return place, found


def _changed(old: JsonMapping, new: JsonMapping) -> str:
    """Return the first setting that differs, with both values; "" if the settings are equal."""
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := _changed(a, b):
                return f"{key}.{inner}"
        elif a != b:
            return f"{key} ({_short(a)}, now {_short(b)})"
    return ""


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
