"""The sections of the configuration, except for `task` (task_config.py) and the engines (engine_config.py)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from treeadv.dtypes import Dtype, fast_dtype
from treeadv.engine_config import EngineSettings, SGLangConfig, engine_settings
from treeadv.presets import AdvantageOverrides
from treeadv.section import Beta, Count, NonNegative, Positive, PositiveFloat, Seconds, Section, Share


class RunConfig(Section):
    """The name, the place and the length of a run."""

    root: str = Field(
        "runs",
        description="folder of all runs, shared by driver, queue and learners; with run.storage each may have its own",
    )
    name: str = Field(
        "", pattern=r"^([\w-][\w.-]*)?$", description="folder name of the run; empty: recipe name and start time"
    )
    storage: str = Field(
        "",
        description="URI (s3://bucket/runs, gs://...) whose folder run.name holds the run; empty: run.root holds it",
    )
    seed: int = Field(0, description="prompts, draws and the order of mini-batches follow from it")
    steps: Positive = Field(40, description="optimizer steps to take")
    checkpoint_every: Positive = Field(
        10, description="steps between checkpoints; what was trained since is trained again on resume"
    )
    keep_checkpoints: Positive = Field(2, description="newest checkpoints that are kept; older ones are deleted")
    stop_at: Share | None = Field(
        None, description="end the run when an evaluation (eval.every) reaches this mean over the sets of avg@samples"
    )
    patience: Positive | None = Field(
        None, description="end the run after so many evaluations that are not better than the best before them"
    )
    trackers: list[str] = Field(
        default_factory=list,
        description="experiment trackers that get the figures of every step: entries of treeadv.tracking.TRACKERS or"
        " module:Name",
    )
    heartbeat_timeout: Seconds = Field(
        60.0, description="seconds without a heartbeat after which an actor counts as hung and is killed"
    )
    start_timeout: Seconds = Field(
        300.0, description="seconds from the process of an actor to its first heartbeat; then it counts as hung"
    )


class ModelConfig(Section):
    """The language model that is trained."""

    path: str = Field(
        "smollm2-135m-instruct",
        description="a Hugging Face folder, a model of the hub as ORGANISATION/MODEL, or smollm2-135m-instruct",
    )
    cache: str = Field("models", description="where a packaged model is unpacked once")


class SamplingConfig(Section):
    """How a forest grows."""

    leaves: Positive = Field(8, description="G, the leaves of a forest")
    trees: Count = Field(0, description="M, its trees; 0 means max(2, G // 4)")
    rule: str = Field(
        "entropy",
        description="fork rule: an entry of sampling.rules.RULES or module:Name (docs/method.md)",
    )
    rule_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the fork rule, such as {gap: 8} for fixed"
    )
    tau: NonNegative = Field(1.0, description="threshold in nats")
    tau_quantile: Share | None = Field(
        None, description="tau as this quantile of the entropies of the newest forests of all generators"
    )
    tau_window: Positive = Field(64, description="tau_quantile: forests that the quantile is taken over")
    tau_min_tokens: Positive = Field(1000, description="tau_quantile: tau holds while those forests have fewer tokens")
    arity: Annotated[int, Field(ge=2)] = Field(2, description="children of a fork")
    split: Literal["even", "backbone"] = Field(
        "even", description="how children share leaf budget; backbone: one leaf each, the rest to the first child"
    )
    min_gap: Positive = Field(2, description="tokens between forks, and before the first")
    max_depth: Count = Field(4, description="forks on a path")
    min_tail: Positive = Field(4, description="room left after a fork, in tokens")
    topup: bool = Field(True, description="give leaf budget that no fork used to fresh roots")
    max_tokens: Positive = Field(64, description="tokens of a rollout")
    temperature: PositiveFloat = Field(0.7, description="divides the logits, in the engine and in the learner")
    top_p: float = Field(1.0, description="must be 1: the learner computes log-probs of the whole distribution")

    @property
    def roots(self) -> int:
        return min(self.leaves, self.trees or max(2, self.leaves // 4))

    @model_validator(mode="after")
    def _coherent(self) -> SamplingConfig:
        if self.trees > self.leaves:
            raise ValueError(
                f"sampling.trees={self.trees} is more than sampling.leaves={self.leaves}: a tree needs a leaf"
            )
        if self.top_p != 1:
            raise ValueError(
                f"sampling.top_p={self.top_p:g}: the learner's policy is the whole distribution; leave it at 1"
            )
        return self


class GeneratorConfig(Section):
    """The actors that grow forests. Each has one engine."""

    count: Positive = Field(1, description="generator actors")
    engine: str = Field(
        "embedded", description="an entry of engines.registry.ENGINES or module:Name (docs/extending.md)"
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict, description="options of an engine given as module:Name"
    )
    forests: Positive = Field(6, description="forests that a generator grows at first; then as many as fill its engine")
    rows: Positive = Field(48, description="embedded: branches decoded side by side")
    threads: Count = Field(0, description="torch threads; 0: the machine's cores")
    cpus: NonNegative = Field(1.0, description="CPUs that Ray reserves for one generator")
    gpus: NonNegative = Field(0.0, description="GPUs that Ray reserves for one generator")
    slot: str = Field("", description="custom Ray resource to ask one of, e.g. generator_slot; empty: none")
    sglang: SGLangConfig = SGLangConfig()
    dtype: Dtype = Field(
        "float32",
        description="of the weights and the computation; auto: bfloat16 on a GPU and, with engine=embedded, on a CPU"
        " that multiplies bfloat16; else float32",
    )

    @field_validator("dtype")
    @classmethod
    def _auto(cls, dtype: Dtype, info: ValidationInfo) -> Dtype:
        if dtype != "auto" or not {"engine", "sglang"} <= info.data.keys():  # a fault of these is reported by itself
            return dtype
        return engine_settings(info.data).auto_dtype

    @property
    def settings(self) -> EngineSettings:
        """The section of the engine, or the default settings of an engine without a section."""
        return engine_settings(self.__dict__)


class RewardConfig(Section):
    """The actors that grade the leaves. Each has its own verifier processes."""

    count: Positive = Field(1, description="reward actors")
    workers: Positive = Field(1, description="killable processes of one reward actor")
    timeout: Seconds = Field(5.0, description="seconds that one answer may take, from when a worker takes it")
    memory_mb: Positive = Field(1024, description="address space of one worker")
    cpus: NonNegative = Field(0.5, description="CPUs that Ray reserves for one reward actor")
    slot: str = Field("", description="custom Ray resource to ask one of; empty: none")


class QueueConfig(Section):
    """The replay queue between generators and learners."""

    max_staleness: Count = Field(2, description="largest learner version minus a trained forest's oldest token version")
    stale_drops: Count | None = Field(
        1,
        description="attempts at a prompt that may become stale; the learner waits for the next one; null: any number",
    )
    selection: str = Field(
        "fifo", description="order in which ready forests are leased: an entry of replay.selection.RULES or module:Name"
    )
    fsync: Literal["always", "interval", "none"] = Field(
        "interval",
        description="when the journal reaches the disk: at each record, each fsync_interval, or when the system writes",
    )
    fsync_interval: Seconds | None = Field(
        None, description="unset: 1 on a disk; 10 in an object store, where each flush is two objects"
    )
    lease_seconds: Seconds = Field(600.0, description="a lease not acknowledged after this goes back to ready")
    attempts: Positive = Field(
        5, description="attempts at a prompt that may fail; after them the queue drops the prompt with a warning"
    )
    mixed_only: bool = Field(False, description="drop forests whose leaves all have one reward and draw other prompts")
    payload_mb: Positive = Field(64, description="size at which a payload file is closed")
    retain: Literal["all", "unacknowledged"] = Field(
        "all", description="all: keep trained payloads for audit and replay"
    )


class LearnerConfig(Section):
    """The ranks that turn graded forests into optimizer steps."""

    count: Positive = Field(1, description="learner ranks; more than one shard the model (FSDP2)")
    forests_per_step: Positive = Field(6, description="forests of a step")
    preset: str = Field(
        "treeadv_per_leaf", description="an entry of treeadv.presets.PRESETS, or module:NAME of a Preset"
    )
    advantage: AdvantageOverrides = AdvantageOverrides()
    updates_per_batch: Positive = Field(
        1, description="optimizer updates of a pass over the forests of a step, each on its share of them"
    )
    passes_per_batch: Positive = Field(1, description="passes over the forests of a step")
    correction: str = Field(
        "tis",
        description="weight for what another policy drew: an entry of learning.correction.CORRECTIONS or module:NAME",
    )
    correction_bounds: tuple[NonNegative, NonNegative] | None = Field(
        None, description="below and above 1, where the correction truncates or masks; unset: those of the correction"
    )
    kl: NonNegative = Field(0.0, description="weight of the KL to the starting model")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="see docs/method.md for the gradient of each")
    truncated: Literal["graded", "masked", "penalty"] = Field(
        "graded", description="a leaf cut at the token limit keeps its grade, weighs 0, or pays DAPO's soft penalty"
    )
    penalty_tokens: Positive = Field(
        16, description="truncated=penalty: tokens before the limit where the penalty grows from 0 to 1"
    )
    max_nonfinite: Count = Field(
        3,
        description="updates in a row that may be skipped for a loss or "
        "gradient that is not finite; one more ends the run",
    )
    keep_log_probs: bool = Field(
        False,
        description="keep the learner's log-probability of every trained token in log_probs/ of the run's folder, on "
        "the machine of each rank, for treeadv view; not for presets that merge trees",
    )
    float32_head: bool = Field(False, description="compute logits in float32 whatever the dtype of the computation")
    lr: PositiveFloat = Field(2e-5, description="learning rate of AdamW after the warm-up")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="decay of AdamW's two moments")
    adam_eps: PositiveFloat = Field(1e-8, description="added to the root of AdamW's second moment")
    weight_decay: NonNegative = Field(0.0, description="of matrices; norms and biases do not decay")
    warmup_steps: Count = Field(0, description="steps in which the learning rate grows from 0 to lr")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate after the warm-up")
    decay_steps: Positive | None = Field(
        None,
        description="schedule=cosine: the step whose end has learning rate 0; unset: run.steps at the start of the run",
    )
    clip_grad: PositiveFloat = Field(1.0, description="largest norm of the gradient; longer ones are scaled")
    tokens_per_microbatch: Positive = Field(
        4096, description="a forest over this is cut at segments, its ancestors recomputed"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the learners compute")
    dtype: Dtype = Field(
        "bfloat16",
        description="of the computation; the master weights are float32; auto: bfloat16 on a GPU and on a CPU that"
        " multiplies bfloat16, else float32",
    )
    checkpoint_activations: bool = Field(
        False, description="compute the activations of a layer again in the backward pass instead of keeping them"
    )
    lora_rank: Count = Field(
        0, description="train a LoRA adapter of this rank through peft instead of all weights; 0: all weights"
    )
    replicas: Positive = Field(
        1, description="copies of the sharded model (HSDP): learner.count / replicas ranks share one copy"
    )
    accumulate: Literal["sharded", "whole"] = Field(
        "sharded",
        description="gradients between micro-batches; whole: one reduction a step, but a whole gradient on each rank",
    )
    threads: Count = Field(0, description="torch threads; 0: the machine's cores")
    cpus: NonNegative = Field(1.0, description="CPUs that Ray reserves for one rank")
    gpus: NonNegative = Field(0.0, description="GPUs that Ray reserves for one rank")
    slot: str = Field("", description="custom Ray resource to ask one of; empty: none")

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step, without skipped updates."""
        return self.updates_per_batch * self.passes_per_batch

    @field_validator("dtype")
    @classmethod
    def _auto(cls, dtype: Dtype, info: ValidationInfo) -> Dtype:
        return fast_dtype(info.data["device"]) if dtype == "auto" and "device" in info.data else dtype

    @model_validator(mode="after")
    def _coherent(self) -> LearnerConfig:
        if self.updates_per_batch > self.forests_per_step:
            raise ValueError(
                f"learner.updates_per_batch={self.updates_per_batch} is more than"
                f" learner.forests_per_step={self.forests_per_step}: an"
                " update needs a forest"
            )
        return self


class ScalingConfig(Section):
    """The autoscaler, which changes the number of generators during the run (actors/driver/scaling_policy.py).

    `treeadv scale` works without the autoscaler."""

    enabled: bool = Field(False, description="add and remove generators by the share of time that the learner waits")
    min: Positive = Field(1, description="fewest generators")
    max: Positive = Field(4, description="most generators; on Ray, nodes must exist or be startable for them")
    wait_high: Share = Field(
        0.2, description="share of the time that the learner waits for forests, above which a generator is added"
    )
    wait_low: Share = Field(0.05, description="share below which one may be taken away")
    interval: Seconds = Field(5.0, description="seconds between observations")
    min_duration: Seconds = Field(30.0, description="seconds that a reason must last before the number changes")
    cooldown: Seconds = Field(60.0, description="seconds after a change in which nothing is changed")

    @model_validator(mode="after")
    def _coherent(self) -> ScalingConfig:
        if self.min > self.max:
            raise ValueError(f"scaling.min={self.min} is more than scaling.max={self.max}")
        if self.wait_low >= self.wait_high:
            raise ValueError(f"scaling.wait_low={self.wait_low} must be below scaling.wait_high={self.wait_high}")
        return self


class EvalConfig(Section):
    """The evaluation on held-out problems during the run (docs/evaluation.md)."""

    every: Count = Field(
        0, description="steps between evaluations; the first is of step 0, the last of the last step; 0: none"
    )
    data: str = Field(
        "",
        description="problems: a .jsonl, .parquet or .csv file, a folder of them, or held-out for task.held_out",
    )
    subset: Positive | None = Field(
        None, description="problems of each set, drawn once by the name of the set; unset: all"
    )
    samples: Positive = Field(4, description="independent answers to each problem")
    temperature: PositiveFloat | None = Field(None, description="unset: sampling.temperature")
    max_tokens: Positive | None = Field(None, description="of an answer; unset: sampling.max_tokens")


class LocalConfig(Section):
    """The settings of `treeadv train --local`."""

    staleness: Count = Field(
        0, description="draw with the weights of this many steps ago, to study what staleness does"
    )


class MetricsConfig(Section):
    """The addresses of /metrics and /healthz of each role."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for other machines")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="first port; the roles take the following ones; 0: any free port"
    )
