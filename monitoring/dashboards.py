"""Writes the Grafana dashboards, monitoring/dashboards/*.json, from the table of metrics.

python -m monitoring.dashboards     # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import GridPos, VariableRefresh

from monitoring.events import EVENTS, Annotation, links
from monitoring.panels import SOURCE, Panel, gauge, panel, quantiles, rate, ratio
from treeadv.command_line import run_command, tool_parser
from treeadv.replay.ledger import UNITS

PROGRESS = ("treeadv_policy_version", "treeadv_run_steps")
TRAINED = ("treeadv_trained_tokens_total", "treeadv_trained_expanded_tokens_total")
REUSED = ("treeadv_engine_cached_tokens_total", "treeadv_engine_prompt_tokens_total")
LAW_ERROR = tuple(gauge("treeadv_queue_law_error", over="max", unit=u) for u in UNITS)
FOLDER = Path(__file__).resolve().parent / "dashboards"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard."""

    name: str
    title: str
    panels: tuple[Panel, ...]


OVERVIEW = Board(
    name="overview",
    title="treeadv: overview",
    panels=(
        Panel("Policy version, now and at the end", tuple(gauge(name, over="max") for name in PROGRESS), big=True),
        Panel("Mean reward, last step", (gauge("treeadv_reward_mean"),), big=True),
        Panel("Law error (must be 0)", LAW_ERROR, big=True),
        Panel("Non-finite updates", (rate("treeadv_nonfinite_updates_total"),), big=True),
        Panel("Mean reward", (gauge("treeadv_reward_mean"),)),
        Panel("Steps per second", (rate("treeadv_steps_total"),)),
        Panel("Tokens per second", (rate("treeadv_generated_tokens_total"), rate("treeadv_trained_tokens_total"))),
        Panel(
            "Tokens saved by sharing",
            (
                ratio(*TRAINED, "training", "Share of the flattened tokens that training did not compute", rest=True),
                ratio(*REUSED, "engines", "Share of the prefix tokens that came from the engines' caches"),
            ),
        ),
        Panel(
            "Forests and leaves per second",
            (rate("treeadv_generated_forests_total"), rate("treeadv_trained_leaves_total")),
        ),
        Panel("Duration of a step", quantiles("treeadv_step_seconds")),
        Panel("Share of the time that the learner waits", (rate("treeadv_learner_wait_seconds_total"),)),
        Panel(
            "Actors", (gauge("treeadv_actors", "role", over="max"), gauge("treeadv_actors_target", "role", over="max"))
        ),
        Panel("Actors replaced", (rate("treeadv_actor_restarts_total", "role"),)),
        Panel("Resumes from a checkpoint", (rate("treeadv_resumes_total"),)),
        Panel("Duration of weight synchronization", quantiles("treeadv_weight_sync_seconds")),
        Panel("Bytes of weights published", (rate("treeadv_weight_sync_bytes_total"),)),
        Panel("Failed weight updates", (rate("treeadv_weight_sync_failures_total"),)),
        Panel("Held-out problems: correct answers", (gauge("treeadv_eval_correct_ratio", "set"),)),
        Panel("Held-out problems: tokens of an answer", (gauge("treeadv_eval_answer_tokens", "set"),)),
        Panel("Held-out problems: answers cut at the limit", (gauge("treeadv_eval_cut_ratio", "set"),)),
        Panel(
            "Step evaluated last, and the best",
            (gauge("treeadv_eval_last_step", over="max"), gauge("treeadv_eval_best_step", over="max")),
        ),
        Panel("Duration of an evaluation", quantiles("treeadv_eval_seconds")),
        Panel("Evaluations skipped", (rate("treeadv_evals_skipped_total"),)),
    ),
)
GENERATORS = Board(
    name="generators",
    title="treeadv: generators",
    panels=(
        Panel("Tokens drawn", (rate("treeadv_generated_tokens_total", "instance"),)),
        Panel("Forests finished", (rate("treeadv_generated_forests_total", "instance"),)),
        Panel("Leaves by finish reason", (rate("treeadv_generated_leaves_total", "finish"),)),
        Panel("Forks and lost branches", (rate("treeadv_forks_total"), rate("treeadv_branches_failed_total"))),
        Panel("Duration of a forest", quantiles("treeadv_forest_seconds")),
        Panel("Shared tokens of a forest", quantiles("treeadv_forest_sharing_ratio")),
        Panel("Prefix tokens: cached and sent", tuple(rate(name) for name in REUSED)),
        Panel("Branches being decoded", (gauge("treeadv_engine_running_branches", "instance"),)),
        Panel("Share of the time that the engine decodes", (rate("treeadv_engine_busy_seconds_total", "instance"),)),
        Panel("Entropy and fork threshold", (gauge("treeadv_entropy_nats"), gauge("treeadv_tau_nats"))),
        Panel("Policy version of the engine", (gauge("treeadv_generator_policy_version", "instance"),)),
        Panel("Policy versions that the last generator is behind", (gauge("treeadv_generator_lag_versions"),)),
        Panel("Duration of a weight update in the engine", quantiles("treeadv_weight_update_seconds")),
    ),
)
QUEUE = Board(
    name="queue",
    title="treeadv: replay queue",
    panels=(
        Panel("Forests by state", (gauge("treeadv_queue_forests", "state", over="max"),)),
        Panel("Law error", LAW_ERROR),
        Panel("Admitted", tuple(rate("treeadv_queue_admitted_total", unit=u) for u in UNITS)),
        Panel("Trained and durable", tuple(rate("treeadv_queue_trained_total", unit=u) for u in UNITS)),
        Panel("Dropped", tuple(rate("treeadv_queue_dropped_total", "reason", unit=u) for u in UNITS)),
        Panel("Free slots under the staleness bound", (gauge("treeadv_queue_slots_free", over="max"),)),
        Panel("Staleness of trained forests", quantiles("treeadv_staleness_versions")),
        Panel("Journal records", (rate("treeadv_queue_journal_records_total"),)),
        Panel("Duration of an fsync", quantiles("treeadv_queue_fsync_seconds")),
        Panel(
            "Disk", (gauge("treeadv_queue_disk_bytes", over="max"), gauge("treeadv_queue_disk_free_bytes", over="min"))
        ),
    ),
)
REWARDS = Board(
    name="rewards",
    title="treeadv: rewards",
    panels=(
        Panel("Answers by verdict", (rate("treeadv_rewards_total", "verdict"),)),
        Panel("Duration of grading", quantiles("treeadv_reward_seconds")),
        Panel("Answers waiting", (gauge("treeadv_reward_waiting_answers", over="sum"),)),
        Panel("Verifier processes replaced", (rate("treeadv_reward_worker_restarts_total"),)),
        Panel("Named parts of the reward", (gauge("treeadv_reward_part_mean", "part"),)),
        Panel("Leaves trained by verdict", (rate("treeadv_trained_verdicts_total", "verdict"),)),
        Panel("Mean reward by task family", (gauge("treeadv_family_reward_mean", "family"),)),
        Panel("Tokens of an answer", (gauge("treeadv_answer_tokens"),)),
        Panel("Tokens of an answer by verdict", (gauge("treeadv_verdict_answer_tokens", "verdict"),)),
        Panel("Answers cut at the limit", (gauge("treeadv_truncated_ratio"),)),
        Panel(
            "Forests with mixed outcomes, and without variance",
            (gauge("treeadv_mixed_ratio"), gauge("treeadv_zero_variance_ratio")),
        ),
    ),
)
LEARNER = Board(
    name="learner",
    title="treeadv: learner",
    panels=(
        Panel("Loss", (gauge("treeadv_loss"),)),
        Panel("Gradient norm", (gauge("treeadv_grad_norm"),)),
        Panel("Tokens clipped and masked", (gauge("treeadv_clip_ratio"), gauge("treeadv_mask_ratio"))),
        Panel("KL of generator and learner", (gauge("treeadv_mismatch_kl_nats"),)),
        Panel("Effective sample size", (gauge("treeadv_effective_sample_ratio"),)),
        Panel("Learning rate", (gauge("treeadv_learning_rate"),)),
        Panel("Duration of a phase", quantiles("treeadv_learner_phase_seconds", "phase")),
        Panel("Tree tokens per second", (gauge("treeadv_learner_tokens_per_second"),)),
        Panel("Model FLOPs utilisation", (gauge("treeadv_learner_mfu_ratio"),)),
        Panel("Trained tokens: tree and flattened", tuple(rate(name) for name in TRAINED)),
        Panel("Leaves trained", (rate("treeadv_trained_leaves_total"),)),
        Panel("Duration of a checkpoint", quantiles("treeadv_checkpoint_seconds")),
        Panel(
            "Optimizer updates, and those whose gradient was clipped",
            (
                rate("treeadv_updates_total"),
                rate("treeadv_clipped_gradients_total"),
            ),
        ),
        Panel(
            "Updates skipped: not finite, nothing to learn",
            (
                rate("treeadv_nonfinite_updates_total"),
                rate("treeadv_idle_updates_total"),
            ),
        ),
        Panel("Forests without a gradient", (rate("treeadv_forests_without_gradient_total"),)),
        Panel("Updates before a batch is published", quantiles("treeadv_publication_lag_updates")),
    ),
)
BOARDS = (OVERVIEW, GENERATORS, QUEUE, REWARDS, LEARNER)


def rendered(board: Board) -> str:
    """Return the dashboard as Grafana's JSON. A row has four numbers or two curves, and the ids of the panels are in
    order."""
    build = dashboard.Dashboard(board.title).uid(f"treeadv-{board.name}").tags(["treeadv"])
    build = build.refresh("30s").time("now-1h", "now").timezone("browser")
    build = build.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    runs = (
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query("label_values(treeadv_policy_version, run)")
    )
    build = build.with_variable(
        runs.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True).all_value(".*")
    )
    for event in EVENTS:
        build = build.annotation(Annotation(event))
    for link in links():
        build = build.link(link)
    x = y = row_height = 0
    for number, spec in enumerate(board.panels, 1):
        width, height = (6, 4) if spec.big else (12, 8)
        if x + width > 24:
            x, y = 0, y + row_height
        build = build.with_panel(panel(spec, number, GridPos(h=height, w=width, x=x, y=y)))
        x, row_height = x + width, height
    return JSONEncoder(sort_keys=True, indent=1).encode(build.build()) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    tool_parser("python -m monitoring.dashboards", __doc__).parse_args(argv)
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(rendered(board))


if __name__ == "__main__":
    sys.exit(run_command(main))
