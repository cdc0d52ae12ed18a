"""The table of all metrics. The exporters, docs/metrics.md, the dashboards, the alerts and the tests read this
table."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from treeadv.errors import BadInput
from treeadv.scrapers import Scrapers

Role = Literal["driver", "generator", "reward", "queue", "learner"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    `name` has the prefix, the base unit and, for a counter, `_total`. `unit` is the unit if the name does not end
    with it; 1 stands for a number without a unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    role: Role
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    unit: str = ""

    @property
    def measures(self) -> str:
        """Return the unit of a value: one of UNITS, or `X/s`. Raises ValueError if neither the name nor `unit`
        contains the unit."""
        words = self.name.removesuffix("_total").split("_")
        if words[-2:] == ["per", "second"]:
            return f"{words[-3]}/s"
        if (found := self.unit or words[-1]) not in UNITS:
            raise ValueError(f"{self.name} ends with no unit of {sorted(UNITS)}; give one")
        return found


# The units of metrics. BY_LABEL means that the label `unit` of a series holds the unit.
BY_LABEL = "label unit"
UNITS = frozenset(
    {"1", "seconds", "bytes", "ratio", "nats", "tokens", "forests", "leaves", "forks", "steps", "updates", "versions"}
    | {"records", "branches", "answers", "restarts", "resumes", "failures", "actors", "evaluations", BY_LABEL}
)
SPAN = 64  # number of ports that are tried, from metrics.port on
CONNECTIONS = 64  # number of connections that are answered at a time
CONNECTION_SECONDS = 10.0  # time limit of a request together with its answer
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_VERSIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# fmt: off
TABLE: tuple[Metric, ...] = (
    Metric("treeadv_steps_total", "counter", "driver",
        "Optimizer steps completed by this run since it started or resumed"),
    Metric("treeadv_policy_version", "gauge", "driver", "Policy version of the learner", unit="versions"),
    Metric("treeadv_run_steps", "gauge", "driver",
        "Policy version at which the run will have taken all its steps, or at which it ended on purpose",
        unit="versions"),
    Metric("treeadv_step_seconds", "histogram", "driver",
        "Wall time of one step, from lease to published weights", buckets=_SECONDS),
    Metric("treeadv_reward_mean", "gauge", "driver", "Mean reward over the leaves of the last step", unit="1"),
    Metric("treeadv_weight_sync_seconds", "histogram", "driver",
        "Wall time of bringing one policy version to all generators", buckets=_SECONDS),
    Metric("treeadv_weight_sync_bytes_total", "counter", "driver", "Bytes of weights published"),
    Metric("treeadv_weight_sync_failures_total", "counter", "driver", "Weight updates that a generator died over"),
    Metric("treeadv_generator_lag_versions", "gauge", "driver",
        "Policy versions that the last generator is behind, also one that hangs"),
    Metric("treeadv_learner_wait_seconds_total", "counter", "driver", "Time that the learner waited for forests"),
    Metric("treeadv_eval_correct_ratio", "gauge", "driver",
        "Share of correct answers to the held-out problems of a set in the last evaluation", ("set",)),
    Metric("treeadv_eval_answer_tokens", "gauge", "driver",
        "Mean tokens of an answer to the held-out problems of a set in the last evaluation", ("set",)),
    Metric("treeadv_eval_cut_ratio", "gauge", "driver",
        "Share of the answers to the held-out problems of a set that ran into the token limit", ("set",)),
    Metric("treeadv_eval_last_step", "gauge", "driver", "Step whose weights were evaluated last", unit="steps"),
    Metric("treeadv_eval_best_step", "gauge", "driver", "Step whose weights had the best evaluation", unit="steps"),
    Metric("treeadv_eval_seconds", "histogram", "driver", "Wall time of one evaluation", buckets=_SECONDS),
    Metric("treeadv_evals_skipped_total", "counter", "driver",
        "Evaluations that were due and not made", unit="evaluations"),
    Metric("treeadv_actors", "gauge", "driver", "Actors alive", ("role",)),
    Metric("treeadv_actors_target", "gauge", "driver",
        "Actors that the configuration or the autoscaler asks for", ("role",), unit="actors"),
    Metric("treeadv_actor_restarts_total", "counter", "driver", "Actors replaced after they died", ("role",)),
    Metric("treeadv_resumes_total", "counter", "driver",
        "Times that the run resumed from its last checkpoint because the queue or a learner died"),
    Metric("treeadv_generated_tokens_total", "counter", "generator", "Tokens drawn"),
    Metric("treeadv_generated_leaves_total", "counter", "generator", "Leaves finished", ("finish",)),
    Metric("treeadv_generated_forests_total", "counter", "generator", "Forests finished"),
    Metric("treeadv_forks_total", "counter", "generator", "Forks opened"),
    Metric("treeadv_branches_failed_total", "counter", "generator",
        "Branches lost and grown again or recorded as aborted", unit="branches"),
    Metric("treeadv_engine_prompt_tokens_total", "counter", "generator",
        "Prefix tokens sent to the engine with requests"),
    Metric("treeadv_engine_cached_tokens_total", "counter", "generator",
        "Of those, tokens whose keys and values were in the cache"),
    Metric("treeadv_engine_running_branches", "gauge", "generator", "Branches being decoded"),
    Metric("treeadv_engine_busy_seconds_total", "counter", "generator",
        "Time in which the engine had at least one branch to decode"),
    Metric("treeadv_forest_seconds", "histogram", "generator", "Wall time of growing one forest", buckets=_SECONDS),
    Metric("treeadv_forest_sharing_ratio", "histogram", "generator",
        "Share of the flattened tokens that a forest did not need", buckets=_SHARES),
    Metric("treeadv_entropy_nats", "gauge", "generator", "Mean entropy of the tokens drawn in the last forest"),
    Metric("treeadv_tau_nats", "gauge", "generator", "Fork threshold in force"),
    Metric("treeadv_generator_policy_version", "gauge", "generator",
        "Policy version that the engine holds", unit="versions"),
    Metric("treeadv_weight_update_seconds", "histogram", "generator",
        "Wall time of one weight update in the engine, pause to resume", buckets=_SECONDS),
    Metric("treeadv_rewards_total", "counter", "reward", "Answers graded", ("verdict",), unit="answers"),
    Metric("treeadv_reward_part_mean", "gauge", "reward",
        "Mean of a named part of the reward over the answers of the last forest", ("part",), unit="1"),
    Metric("treeadv_reward_seconds", "histogram", "reward",
        "Time of grading one answer, from when a worker takes it", buckets=_SECONDS),
    Metric("treeadv_reward_waiting_answers", "gauge", "reward", "Answers waiting for a worker"),
    Metric("treeadv_reward_worker_restarts_total", "counter", "reward",
        "Verifier processes killed or lost, and replaced"),
    Metric("treeadv_queue_forests", "gauge", "queue", "Forests in each state", ("state",)),
    Metric("treeadv_queue_admitted_total", "counter", "queue",
        "Forests admitted in this run, over restarts", ("unit",), unit=BY_LABEL),
    Metric("treeadv_queue_trained_total", "counter", "queue",
        "Forests whose step is in a durable checkpoint", ("unit",), unit=BY_LABEL),
    Metric("treeadv_queue_dropped_total", "counter", "queue", "Forests dropped", ("reason", "unit"), unit=BY_LABEL),
    Metric("treeadv_queue_law_error", "gauge", "queue",
        "admitted - ready - leased - trained - dropped; anything but 0 is a defect", ("unit",), unit=BY_LABEL),
    Metric("treeadv_queue_slots_free", "gauge", "queue",
        "Forests that may still be admitted before the staleness bound holds the generators back", unit="forests"),
    Metric("treeadv_queue_disk_bytes", "gauge", "queue", "Bytes of journal and payload files"),
    Metric("treeadv_queue_disk_free_bytes", "gauge", "queue",
        "Bytes free on the file system of the queue; infinite in an object store"),
    Metric("treeadv_queue_journal_records_total", "counter", "queue", "Records appended to the journal"),
    Metric("treeadv_queue_fsync_seconds", "histogram", "queue",
        "Wall time of one fsync of the journal", buckets=_SECONDS),
    Metric("treeadv_trained_tokens_total", "counter", "learner", "Tokens trained, each token of a forest once"),
    Metric("treeadv_trained_expanded_tokens_total", "counter", "learner",
        "Tokens that the same leaves would have had flattened"),
    Metric("treeadv_trained_leaves_total", "counter", "learner", "Leaves trained"),
    Metric("treeadv_learner_phase_seconds", "histogram", "learner",
        "Wall time of a phase of a step", ("phase",), _SECONDS),
    Metric("treeadv_staleness_versions", "histogram", "learner",
        "Learner version minus oldest token version of each trained forest", buckets=_VERSIONS),
    Metric("treeadv_answer_tokens", "gauge", "learner", "Mean tokens of an answer in the last step"),
    Metric("treeadv_verdict_answer_tokens", "gauge", "learner",
        "Mean tokens of an answer with a verdict, in the last step that had one", ("verdict",)),
    Metric("treeadv_truncated_ratio", "gauge", "learner",
        "Share of the answers of the last step that reached the token limit"),
    Metric("treeadv_mixed_ratio", "gauge", "learner",
        "Share of the forests of the last step with verified and other answers"),
    Metric("treeadv_zero_variance_ratio", "gauge", "learner",
        "Share of the forests of the last step whose leaves all have the same reward"),
    Metric("treeadv_family_reward_mean", "gauge", "learner",
        "Mean reward of a task family, in the last step that had it", ("family",), unit="1"),
    Metric(
        "treeadv_trained_verdicts_total",
        "counter", "learner", "Leaves trained by verdict", ("verdict",), unit="leaves"),
    Metric("treeadv_loss", "gauge", "learner", "Loss of the last step", unit="1"),
    Metric("treeadv_grad_norm", "gauge", "learner", "Gradient norm before clipping", unit="1"),
    Metric("treeadv_learning_rate", "gauge", "learner", "Learning rate of the last step", unit="1"),
    Metric("treeadv_clip_ratio", "gauge", "learner", "Share of tokens whose ratio was clipped"),
    Metric("treeadv_mask_ratio", "gauge", "learner", "Share of tokens masked by the correction"),
    Metric("treeadv_mismatch_kl_nats", "gauge", "learner", "KL (k3) between the behaviour policy and the learner's"),
    Metric("treeadv_effective_sample_ratio", "gauge", "learner",
        "Effective sample size of the importance weights over tokens"),
    Metric("treeadv_learner_tokens_per_second", "gauge", "learner", "Tree tokens trained per second of the last step"),
    Metric("treeadv_learner_mfu_ratio", "gauge", "learner",
        "Model FLOPs utilisation of the last step, where the device's peak is known"),
    Metric("treeadv_updates_total", "counter", "learner", "Optimizer updates taken"),
    Metric("treeadv_nonfinite_updates_total", "counter", "learner",
        "Optimizer updates skipped because loss or gradient was not finite"),
    Metric("treeadv_idle_updates_total", "counter", "learner",
        "Optimizer updates skipped because no forest could change the weights"),
    Metric("treeadv_clipped_gradients_total", "counter", "learner",
        "Optimizer updates whose gradient norm was above learner.clip_grad", unit="updates"),
    Metric("treeadv_forests_without_gradient_total", "counter", "learner",
        "Forests not packed because all their advantages are 0", unit="forests"),
    Metric("treeadv_publication_lag_updates", "histogram", "learner",
        "Updates between the arrival of a batch and the first update on each forest", buckets=_VERSIONS),
    Metric("treeadv_checkpoint_seconds", "histogram", "learner",
        "Wall time of writing one checkpoint", buckets=_SECONDS),
)
# fmt: on


class Exporter:
    """The server of one role's metrics at /metrics and of the role's health at /healthz."""

    def __init__(
        self, role: Role, health: Callable[[], str | None] = lambda: None, refresh: Callable[[], None] = lambda: None
    ) -> None:
        """Create the metrics of a role.

        `health` returns None, or the reason for which /healthz answers 503. `refresh` sets gauges. It is called
        before each answer, in one thread at a time."""
        self.registry, self.scrapers = CollectorRegistry(), Scrapers()
        self._health, self._refresh, self._refreshing = health, refresh, threading.Lock()
        self._server: WSGIServer | None = None
        self._by_name = {m.name: _collector(m, self.registry) for m in of_role(role)}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Increase a counter."""
        self._child(name, labels).inc(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._child(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        self._child(name, labels).observe(value)

    def _child(self, name: str, labels: dict[str, str]):
        metric = self._by_name[name]
        return metric.labels(**labels) if labels else metric

    def serve(self, host: str, port: int) -> str:
        """Answer HTTP requests in a thread until `close`. Returns host:port for Prometheus.

        The server takes the first free port from `port` on, so each actor of a machine gets a port. If `port` is 0,
        the server takes any free port. For a wildcard `host` the result has the address of the machine. Raises
        `BadInput` if no port is free."""
        metrics = make_wsgi_app(self.registry)

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/healthz":
                fault = self._health()
                start_response("503 Service Unavailable" if fault else "200 OK", [("Content-Type", "text/plain")])
                return [(fault or "ok").encode() + b"\n"]
            now = time.monotonic()
            with self._refreshing:
                self._refresh()
            self.scrapers.read(environ["REMOTE_ADDR"], now)
            return metrics(environ, start_response)

        self._server = _listen(host, port, app)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return f"{_own_address() if host in ('', '0.0.0.0', '::') else host}:{self._server.server_port}"

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


_Request = socket.socket | tuple[bytes, socket.socket]  # the type in the base class


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with one thread for each connection. So a silent client does not delay the answers to other
    clients.

    The number of connections and the time of each connection are bounded."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.BoundedSemaphore(CONNECTIONS)

    def verify_request(self, request: _Request, client_address: object) -> bool:
        return self._free.acquire(blocking=False)  # above the limit a connection is closed without an answer

    def process_request(self, request: _Request, client_address: object) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            self._free.release()
            raise

    def process_request_thread(self, request: _Request, client_address: object) -> None:
        # The timeout of the socket bounds each read. The timer also ends a client that sends single bytes with pauses.
        timer = threading.Timer(CONNECTION_SECONDS, _hang_up, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._free.release()

    def handle_error(self, request: _Request, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # an OSError means a client that left or was too slow
            super().handle_error(request, client_address)


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _SilentHandler(WSGIRequestHandler):
    timeout = CONNECTION_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because a scrape comes every few seconds."""


def _listen(host: str, first: int, app: Callable) -> WSGIServer:
    for port in range(first, first + SPAN) if first else [0]:
        try:
            return make_server(host, port, app, _Server, _SilentHandler)
        except OSError as e:
            fault = e
            if e.errno != errno.EADDRINUSE:
                break
    raise BadInput(
        f"metrics.port={first}: cannot listen on {host}:{port} ({fault.strerror}); choose another or 0 for any"
    ) from fault


def _own_address() -> str:
    """Return the address under which other machines reach this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # sends no packet, because connecting a UDP socket only chooses the route
        except OSError:  # the machine has no route
            return socket.gethostbyname(socket.gethostname())
        return str(s.getsockname()[0])


def of_role(role: Role) -> Iterable[Metric]:
    return (m for m in TABLE if m.role == role)


def _collector(m: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if m.kind == "counter":
        return Counter(m.name, m.help, m.labels, registry=registry)
    if m.kind == "gauge":
        return Gauge(m.name, m.help, m.labels, registry=registry)
    return Histogram(m.name, m.help, m.labels, buckets=m.buckets, registry=registry)
