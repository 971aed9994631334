"""All Prometheus metrics of Tokka, each declared once with its meaning. docs/metrics.md is generated from this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tokka.core import Outcome, RequestRecord
from tokka.engine_facts import DeathReason, EngineStats
from tokka.observability.loop_turns import Turn

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TURN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_ERROR_BUCKETS_S = (-10, -1, -0.3, -0.1, -0.03, -0.01, -0.003, 0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10)
# Maximum tenants with their own label. Further tenants share the label `other`.
_MAX_TENANTS = 1000
ENGINE_STATES = ("stopped", "starting", "ready", "draining", "failed")
REPLICA_STATES = ("starting", "ready", "draining", "failed")
START_OUTCOMES = ("ready", "failed")
OUTCOMES = get_args(Outcome)
RESTART_REASONS = get_args(DeathReason)
_FRONTEND_CPU = ("frontend_cpu_seconds", "CPU time of the server process, without the engine.")
_DROPPED_USAGE = (
    "usage_dropped",
    "Requests missing from the usage: writing to the database failed for so long that the memory limit was reached.",
)
_PREEMPTIONS = ("preemptions", "Requests that the engine suspended for lack of KV cache memory, to compute them again.")
_DROPPED_LINES = ("log_lines_dropped", "Log lines lost because nobody read the log or the disk was full.")


class Metrics:
    """Tokka's metrics, in a separate registry, so that each test starts from zero. vLLM uses the default registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # (name, type, labels, meaning) of every metric, for docs/metrics.md.
        self.catalogue: list[tuple[str, str, tuple[str, ...], str]] = []
        # Each function updates one metric with a number that another part of the server keeps.
        self._reads: list[Callable[[], None]] = []
        self._requests = self._counter("requests", "Generation requests, by outcome.", ["model", "endpoint", "outcome"])
        self._duration = self._histogram(
            "request_duration_seconds", "Time from arrival to the last byte.", _LATENCY_BUCKETS_S
        )
        self._ttft = self._histogram("ttft_seconds", "Time from arrival to the first token event.", _LATENCY_BUCKETS_S)
        self._tpot = self._histogram(
            "tpot_seconds", "Time per output token after the first, one value a request.", _TPOT_BUCKETS_S
        )
        self._queue = self._histogram("queue_seconds", "Time from arrival to admission.", _LATENCY_BUCKETS_S)
        self._tokens = self._counter(
            "tokens",
            "Tokens processed. kind: prompt, cached (part of prompt), completion.",
            ["tenant", "model", "kind"],
        )
        self._tenants: set[str] = set()
        # The library checks and converts the labels of each use, which takes more time than counting.
        self._series = cache(lambda metric, *labels: metric.labels(*labels))
        self._rejections = self._counter("rejections", "Rejected requests, by error code.", ["reason"])
        self._ignored = self._counter(
            "ignored_fields",
            "Unknown fields that the server ignored. place: request (with --unknown-fields ignore), message.",
            ["place"],
        )
        for place in ("request", "message"):
            self._ignored.labels(place)
        self._declare_engine()
        self._declare_process()
        self.set_engine_state("stopped")

    def _declare_engine(self) -> None:
        self._running = self._gauge("requests_running", "Choices that are running on the engine.")
        self._waiting = self._gauge("requests_waiting", "Choices that are waiting for the engine.")
        self._prediction_errors = self._histogram(
            "prediction_error_seconds",
            "Measured time minus the time that admission predicted. of: ttft (time to the first token), "
            "pace (time per further token).",
            _ERROR_BUCKETS_S,
            ["of"],
        )
        self._admission_limit = self._gauge("admission_limit", "Maximum running choices now. It follows --slo-tpot.")
        self._state = self._gauge("engine_state", "1 for the main engine's current state, else 0.", ["state"])
        self._model_ready = self._gauge("model_ready", "1 if the model's engine is ready, else 0.", ["model"])
        self._replicas = self._gauge(
            "replicas", "Engines of the model, by state. A worker counts once it has joined.", ["model", "state"]
        )
        self._starts = self._counter(
            "replica_starts",
            "Workers that a fleet has started. outcome: ready, failed (the worker ended before its engine was ready).",
            ["model", "outcome"],
        )
        self._restarts = self._counter(
            "engine_restarts",
            "Engine restarts. reason: died, stalled (the engine had work but made no step), "
            "unresponsive (the engine did not answer a call), start_failed (the previous restart failed).",
            ["reason"],
        )
        for reason in RESTART_REASONS:
            self._restarts.labels(reason)

    def _declare_process(self) -> None:
        self._connections = self._gauge("connections", "Open connections.")
        self._cuts = self._counter(
            "connections_cut",
            "Connections that the server closed. reason: header_timeout (headers came too late), write_timeout (the "
            "client did not read the response), evicted (closed to make room), refused (no room).",
            ["reason"],
        )
        self._lag = self._gauge("event_loop_lag_seconds", "Delay of the event loop's last timer.")
        self._turns = self._histogram(
            "event_loop_turn_seconds",
            "CPU time that the event loop used before it reached a new event, sampled while the loop is busy.",
            _TURN_BUCKETS_S,
            [],
        )
        self._threads_held = self._histogram(
            "event_loop_held_by_threads_seconds",
            "Time that a new event waited while other threads computed instead of the event loop, sampled alike.",
            _TURN_BUCKETS_S,
            [],
        )
        self._longest_turn = self._gauge(
            "event_loop_longest_turn_seconds", "Maximum of event_loop_turn_seconds since the start."
        )
        self._database_up = self._gauge(
            "state_database_up", "1 if the database of keys and usage works, else 0. Requests do not need it."
        )
        self._usage_pending = self._gauge("usage_pending", "Entries of usage not yet written to the database.")
        for name, meaning in (_FRONTEND_CPU, _PREEMPTIONS, _DROPPED_USAGE, _DROPPED_LINES):
            self._describe(f"{name}_total", "counter", (), meaning)

    def observe(self, record: RequestRecord, now_s: float) -> None:
        """Count an ended request. `now_s`: by the clock of the record's times."""
        outcome, series = record.outcome or "error", self._series
        series(self._requests, record.model, record.endpoint, outcome).inc()
        series(self._duration, record.model, record.endpoint).observe(now_s - record.arrived_s)
        if outcome == "rejected":
            self._rejections.labels(record.reason or "unknown").inc()
        for kind, tokens in (
            ("prompt", record.prompt_tokens),
            ("cached", record.cached_tokens),
            ("completion", record.completion_tokens),
        ):
            if tokens:
                series(self._tokens, self._tenant_label(record.tenant), record.model, kind).inc(tokens)
        for place, fields in (("request", len(record.ignored.names)), ("message", record.ignored.in_messages)):
            if fields:
                self._ignored.labels(place).inc(fields)
        if record.queue_s is not None:
            series(self._queue, record.model, record.endpoint).observe(record.queue_s)
        if record.first_token_s is not None and record.last_token_s is not None:
            series(self._ttft, record.model, record.endpoint).observe(record.first_token_s - record.arrived_s)
            if record.completion_tokens > 1:
                decode_s = record.last_token_s - record.first_token_s
                series(self._tpot, record.model, record.endpoint).observe(decode_s / (record.completion_tokens - 1))

    def _tenant_label(self, tenant: str) -> str:
        """Return the tenant, or `other` beyond `_MAX_TENANTS`.

        An issuer of tokens may have any number of tenants, and each label is a series for ever.
        """
        if tenant not in self._tenants and len(self._tenants) < _MAX_TENANTS:
            self._tenants.add(tenant)
        return tenant if tenant in self._tenants else "other"

    def set_engine_state(self, state: str) -> None:
        for known in ENGINE_STATES:
            self._state.labels(known).set(known == state)

    def observe_prediction(self, of: str, error_s: float) -> None:
        self._prediction_errors.labels(of).observe(error_s)

    def count_cut(self, reason: str) -> None:
        self._cuts.labels(reason).inc()

    def count_restart(self, reason: DeathReason) -> None:
        self._restarts.labels(reason).inc()

    def watch(
        self,
        stats: Callable[[], EngineStats],
        queued: Callable[[], int],
        limit: Callable[[], int],
        cpu_s: Callable[[], float],
    ) -> None:
        """Read numbers of the engine and of admission, and CPU time, at each scrape, never on the request path."""
        self._read(self._admission_limit, limit)
        self._read(self._running, lambda: stats().running)
        self._read(self._waiting, lambda: queued() + stats().waiting)
        self._read(self._kept(*_FRONTEND_CPU), cpu_s)
        self._read(self._kept(*_PREEMPTIONS), lambda: stats().preemptions)

    def watch_model(self, name: str, is_ready: Callable[[], bool], states: Callable[[], Sequence[str]]) -> None:
        """`states`: returns the state of each engine of the model."""
        self._read(self._model_ready.labels(name), is_ready)
        for state in REPLICA_STATES:
            self._read(self._replicas.labels(name, state), lambda state=state: states().count(state))  # type: ignore[misc]

    def expect_starts(self, model: str) -> None:
        """Show zeros for the workers of a model from the beginning, so that the first start is an increase."""
        for outcome in START_OUTCOMES:
            self._starts.labels(model, outcome)

    def count_start(self, model: str, outcome: Literal["ready", "failed"]) -> None:
        """Count a worker that a fleet has started."""
        self._starts.labels(model, outcome).inc()

    def watch_state(self, is_up: Callable[[], bool], pending: Callable[[], int], dropped: Callable[[], int]) -> None:
        self._read(self._database_up, is_up)
        self._read(self._usage_pending, pending)
        self._read(self._kept(*_DROPPED_USAGE), dropped)

    def observe_turn(self, turn: Turn) -> None:
        self._turns.observe(turn.cpu_s)
        self._threads_held.observe(turn.threads_s)

    def watch_lag(self, late_s: Callable[[], float]) -> None:
        self._read(self._lag, late_s)

    def watch_turns(self, longest_s: Callable[[], float]) -> None:
        self._read(self._longest_turn, longest_s)

    def watch_log(self, dropped_lines: Callable[[], int]) -> None:
        self._read(self._kept(*_DROPPED_LINES), dropped_lines)

    def watch_connections(self, count: Callable[[], int]) -> None:
        self._read(self._connections, count)

    def look(self) -> None:
        """Read all watched numbers. Call this in the event loop: another thread could see them half changed."""
        for read in self._reads:
            read()

    def render(self) -> bytes:
        """Return Prometheus text: our metrics as of the last `look`, then vLLM's and the process's. Thread-safe."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)

    def _read(self, number: Gauge | _Kept, value: Callable[[], float]) -> None:
        self._reads.append(lambda: number.set(value()))

    def _kept(self, name: str, meaning: str) -> _Kept:
        kept = _Kept(f"tokka_{name}", meaning)
        self.registry.register(kept)
        return kept

    def _counter(self, name: str, meaning: str, labels: Sequence[str]) -> Counter:
        self._describe(f"{name}_total", "counter", labels, meaning)
        return Counter(f"tokka_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        self._describe(name, "gauge", labels, meaning)
        return Gauge(f"tokka_{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], labels: Sequence[str] = ("model", "endpoint")
    ) -> Histogram:
        self._describe(name, "histogram", labels, meaning)
        return Histogram(f"tokka_{name}", meaning, labels, registry=self.registry, buckets=buckets)

    def _describe(self, name: str, kind: str, labels: Sequence[str], meaning: str) -> None:
        self.catalogue.append((f"tokka_{name}", kind, tuple(labels), meaning))


class _Kept(Collector):
    """A counter with a value that another part of the server keeps."""

    def __init__(self, name: str, meaning: str) -> None:
        self._name = name
        self._meaning = meaning
        self._value = 0.0

    def set(self, value: float) -> None:
        self._value = value

    def collect(self) -> list[Metric]:
        return [CounterMetricFamily(self._name, self._meaning, self._value)]
