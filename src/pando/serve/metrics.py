"""Prometheus metrics, in vLLM's words with our prefix and a label for the skin. Own registry, so that several
servers can live in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from pando.serve.accounts import Spent
    from pando.serve.calls import Call
    from pando.serve.service import Service

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@runtime_checkable
class _Loaded(Protocol):
    """An engine that says how busy it is; an API of somebody else's does not."""

    busy_seconds: float

    @property
    def load(self) -> dict[str, int]: ...


class Metrics:
    """Counts what ended and reads how busy the engine is when asked."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

        def counter(name: str, about: str, *more: str) -> Counter:
            return Counter(f"pando_{name}", about, ["skin", *more], registry=self._registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...] = _LONG) -> Histogram:
            return Histogram(f"pando_{name}", about, ["skin"], buckets=buckets, registry=self._registry)

        self._success = counter("request_success", "Calls that were answered.", "finished_reason")
        self._failure = counter("request_failure", "Calls that were taken and not answered.", "status")
        self._prompt = counter("prompt_tokens", "Prompt tokens, reused ones included.")
        self._cached = counter("cached_tokens", "Prompt tokens whose computation was reused.")
        self._generated = counter("generation_tokens", "Tokens generated or scored.")
        self._compute = counter("compute_seconds", "Busy seconds of the machine; over all skins the engine's own.")
        self._usd = counter("usd", "What the calls cost, in US dollars.")
        self._first = histogram("time_to_first_token_seconds", "From submission to the first token.")
        self._between = histogram("inter_token_latency_seconds", "Mean time between a sample's tokens.", _SHORT)
        self._total = histogram("e2e_request_latency_seconds", "From submission to the end.")
        self._queue = histogram("request_queue_time_seconds", "Waiting for the engine.")
        self._prefill = histogram("request_prefill_time_seconds", "Reading the prompt.")
        self._decode = histogram("request_decode_time_seconds", "Generating, after the first token.")
        self._refused = Counter("pando_requests_refused", "Calls told to come back (429).", registry=self._registry)

    def ended(self, call: Call, status: str, spent: Spent) -> None:
        """Counts a call that was taken."""
        skin = call.name
        usage, seconds = spent.usage, spent.seconds
        if status == "success":
            self._success.labels(skin, spent.finish_reason).inc()
        else:
            self._failure.labels(skin, status).inc()
        self._prompt.labels(skin).inc(usage.prompt_tokens)
        self._cached.labels(skin).inc(usage.cached_tokens)
        self._generated.labels(skin).inc(usage.completion_tokens)
        self._compute.labels(skin).inc(seconds.compute)
        self._usd.labels(skin).inc(self._service.settings.usd(seconds.compute))
        if status != "success":
            return
        self._first.labels(skin).observe(seconds.queue + seconds.prefill)
        self._total.labels(skin).observe(seconds.queue + seconds.prefill + seconds.decode)
        self._queue.labels(skin).observe(seconds.queue)
        self._prefill.labels(skin).observe(seconds.prefill)
        self._decode.labels(skin).observe(seconds.decode)
        for gap in spent.gaps:
            self._between.labels(skin).observe(gap)

    def refused(self) -> None:
        """Counts a call that was told to come back."""
        self._refused.inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """Gauges, read when scraped (prometheus_client's collector protocol)."""
        yield GaugeMetricFamily("pando_calls_under_way", "Calls under way.", self._service.under_way)
        model: object = self._service.registry.model if self._service.status != "loading" else None
        if not isinstance(model, _Loaded):
            return
        load = model.load
        yield GaugeMetricFamily("pando_num_requests_running", "Sequences in the engine's batch.", load["running"])
        yield GaugeMetricFamily("pando_num_requests_waiting", "Sequences waiting for the engine.", load["waiting"])
        used = load["blocks_used"] / max(load["blocks"], 1)
        yield GaugeMetricFamily("pando_kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", used)
        yield CounterMetricFamily("pando_engine_busy_seconds", "Seconds that the engine computed.", model.busy_seconds)
