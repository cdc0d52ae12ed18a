"""The typed configuration of a run: one YAML file, any field overridden as `section.key=value`."""

from __future__ import annotations

import difflib
from copy import deepcopy
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails

from treeadv.errors import BadInput, short
from treeadv.jsonl import JsonObject, reason
from treeadv.presets import build_advantage, find_preset
from treeadv.recipes import find_recipe
from treeadv.section import Section
from treeadv.sections import (
    EvalConfig,
    GeneratorConfig,
    LearnerConfig,
    LocalConfig,
    MetricsConfig,
    ModelConfig,
    QueueConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    ScalingConfig,
)
from treeadv.task_config import TaskConfig


class Config(Section):
    """The configuration of a run. `treeadv train --help` prints every field with its default."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig
    sampling: SamplingConfig = SamplingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    reward: RewardConfig = RewardConfig()
    queue: QueueConfig = QueueConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    scaling: ScalingConfig = ScalingConfig()
    metrics: MetricsConfig = MetricsConfig()
    local: LocalConfig = LocalConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: object) -> object:
        """Fill in the fields whose defaults depend on other fields: the sampling of the preset, and the end of the
        cosine.

        The recorded configuration is then complete."""
        if not isinstance(data, dict):
            return data
        learner, sampling, run = ({} if (x := data.get(k)) is None else x for k in ("learner", "sampling", "run"))
        if isinstance(sampling, dict) and isinstance(learner, dict):
            name, leaves = learner.get("preset", "treeadv"), sampling.get("leaves", 8)
            if isinstance(name, str) and isinstance(leaves, int):
                data = data | {"sampling": find_preset(name).sampling(leaves) | sampling}
        if isinstance(learner, dict) and isinstance(run, dict) and learner.get("decay_steps") is None:
            data = data | {"learner": learner | {"decay_steps": run.get("steps", RunConfig().steps)}}
        return data

    @model_validator(mode="after")
    def _coherent(self) -> Config:
        c, last = self.learner, self.run.steps
        if self.eval.every and not self.eval.data:
            raise ValueError(f"eval.every={self.eval.every} needs eval.data: a file or folder of held-out problems")
        for key in ("stop_at", "patience"):
            if (given := getattr(self.run, key)) is not None and not self.eval.every:
                raise ValueError(f"run.{key}={given:g} needs evaluations: set eval.every and eval.data")
        if c.keep_log_probs and build_advantage(c.preset, c.advantage).tree == "merged":
            raise ValueError(
                f"learner.keep_log_probs: learner.preset={c.preset} merges trees, so its tokens are not those of the"
                " recorded forests; remove learner.keep_log_probs"
            )
        if c.schedule == "cosine" and c.decay_steps is not None and last > c.decay_steps:
            raise ValueError(
                f"run.steps={last} is beyond learner.decay_steps={c.decay_steps}, where the cosine has reached 0: set"
                f" learner.decay_steps={last}, which raises the learning rate again, or learner.schedule=constant"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that occurs twice in one mapping. PyYAML would silently take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    fault = f"the key {key.value} occurs twice"
                    raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text. Raises yaml.YAMLError, ValueError or RecursionError if it is not YAML."""
    return yaml.load(text, _Loader)


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a recipe and apply overrides of the form `a.b=value`. A recipe is a YAML file, or the name of a recipe of
    the package.

    Raises a `BadInput` of one line for every fault.

    >>> _ = Path("recipe.yaml").write_text("task: {source: problems.jsonl}")
    >>> load_config(Path("recipe.yaml"), ["sampling.leaves=4"]).sampling.leaves
    4
    """
    path = find_recipe(path)
    return build(read_mapping(path, "a configuration is a mapping of sections"), overrides or [], str(path))


def read_mapping(path: Path, expected: str) -> JsonObject:
    """Return the mapping in a YAML file; {} for an empty file. Raises `BadInput`, which says what is `expected`."""
    try:
        text = path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    return mapping_of(text, str(path), expected)


def mapping_of(text: str | bytes, where: str, expected: str) -> JsonObject:
    """Return the mapping in a YAML text; {} for an empty text. Raises `BadInput`, which names `where` the text is."""
    try:
        tree = parse_yaml(text if isinstance(text, str) else text.decode("utf-8-sig")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # includes text that is not UTF-8, and long integers
        raise BadInput(f"{where} is not YAML: {reason(e)}") from e
    if not isinstance(tree, dict):
        raise BadInput(f"{where}: {expected}, found {type(tree).__name__}")
    return tree


def build(tree: JsonObject, overrides: list[str], where: str) -> Config:
    """Validate a configuration tree with overrides. `where` names the origin of the tree in errors."""
    tree = deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    return parse(tree, where)


def parse(tree: JsonObject, where: str) -> Config:
    """Validate a configuration tree. `where` names the origin of the tree in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise BadInput(f"{where}: " + "; ".join(_explain(err) for err in e.errors())) from e


def _apply(tree: JsonObject, override: str) -> None:
    path, eq, text = override.partition("=")
    if not eq:
        raise BadInput(f"override {override!r}: write section.key=value")
    *sections, key = path.split(".")
    for s in sections:
        tree = tree.setdefault(s, {})
        if not isinstance(tree, dict):
            raise BadInput(f"override {override!r}: {s} is not a section")
    try:
        tree[key] = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # includes an integer of more than 4,300 digits
        raise BadInput(f"override {short(override)}: the value is not YAML ({reason(e)[:100]})") from e


def _explain(error: ErrorDetails) -> str:
    loc = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        close = " or ".join(similar_keys(loc))
        meant = f", did you mean {close}?" if close else ""
        return f"unknown key {loc}{meant} (treeadv train --help lists all)"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] in ("missing", "value_error") else f", got {short(error['input'])}"
    return f"{loc}: {message}{got}" if loc else message


def similar_keys(name: str) -> list[str]:
    """Return the keys that `name` may mean. There may be none, one or several.

    These are the keys whose last part is `name`, or else the keys with the most similar spelling."""
    keys = known_keys()
    last = name.rpartition(".")[2]
    if "." not in name and (exact := [key for key in keys if key.rpartition(".")[2] == last]):
        return exact
    if close := difflib.get_close_matches(name, keys, n=1, cutoff=0.5):
        return close
    parts = {key.rpartition(".")[2] for key in keys}
    nearest = difflib.get_close_matches(last, sorted(parts), n=1, cutoff=0.7)
    return [key for key in keys if nearest and key.rpartition(".")[2] == nearest[0]]


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the configuration, in the order of the fields."""
    out = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            out += known_keys(info.annotation, f"{prefix}{name}.")
        else:
            out.append(prefix + name)
    return out


def describe(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (key, default, description) of every field, for `treeadv train --help`."""
    out = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            out += describe(info.annotation, f"{prefix}{name}.")
        else:
            default = "required" if info.is_required() else repr(info.get_default(call_default_factory=True))
            out.append((prefix + name, default, info.description or ""))
    return out
