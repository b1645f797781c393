"""`/metrics` for Prometheus: vLLM's names and meanings, under ``labsupport_``.

vLLM's metrics are called ``vllm:num_requests_running{model_name="..."}`` and so on. These have the same names with the
prefix ``labsupport_``: a colon is for recording rules, as `promtool check metrics` says. The rules of
deploy/prometheus-rules.yml record them under vLLM's names, for dashboards that were made for it. Gauges and the
engine's counters are read from the engine at each scrape; the histograms are filled as requests finish.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from labsupport.serving.backend import Backend
from labsupport.serving.observe import Observation

PREFIX = "labsupport_"

# seconds; from one step of a small model to a long answer in a long queue
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """One registry per app: two apps in a process do not share counts, and their names do not collide."""

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self._model = backend.model_name
        self._histograms: dict[str, Histogram] = {}
        for name, help_text, buckets in (
            ("time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN),
            ("inter_token_latency_seconds", "Between two tokens of a streamed answer", _BETWEEN),
            ("request_time_per_output_token_seconds", "Mean time of a token after the first", _BETWEEN),
            ("e2e_request_latency_seconds", "From arrival to the last token", _WHOLE),
            ("request_queue_time_seconds", "In the engine, before a first step", _WHOLE),
            ("request_prefill_time_seconds", "From the first step to the first token", _WHOLE),
            ("request_decode_time_seconds", "From the first token to the last", _WHOLE),
            ("request_prompt_tokens", "Tokens of a prompt", _TOKENS),
            ("request_generation_tokens", "Tokens of an answer", _TOKENS),
        ):
            self._histograms[name] = Histogram(
                PREFIX + name, help_text, ["model_name"], buckets=buckets, registry=self.registry
            )
            self._histograms[name].labels(self._model)  # shown before there is anything to count
        self._success = Counter(
            f"{PREFIX}request_success", "Requests that ended, by reason", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        for reason in ("stop", "length", "abort"):
            self._success.labels(self._model, reason)
        self._http = Counter(
            f"{PREFIX}http_requests", "HTTP requests", ["method", "handler", "status"], registry=self.registry
        )
        self.registry.register(_EngineCollector(backend))

    def answered(self, method: str, handler: str, status: int) -> None:
        self._http.labels(_known_method(method), handler, str(status)).inc()

    def observe(self, seen: Observation, seconds: float, client_gone: bool) -> None:
        """A request of `/v1/` that reached the engine is over, ``seconds`` after it arrived."""
        if client_gone:
            self._success.labels(self._model, "abort").inc(seen.choices - len(seen.finished))
        if seen.time_to_first_token is not None:
            self._observe("time_to_first_token_seconds", seen.time_to_first_token)
        gaps = self._histograms["inter_token_latency_seconds"].labels(self._model)
        for gap in seen.inter_token:
            gaps.observe(gap)
        for output in seen.finished:
            self._success.labels(self._model, output.finish_reason).inc()
            self._observe("request_prompt_tokens", len(output.prompt_token_ids))
            self._observe("request_generation_tokens", len(output.token_ids))
            times = output.times
            if times.first_scheduled is not None:
                self._observe("request_queue_time_seconds", times.first_scheduled - times.arrival)
                if times.first_token is not None:
                    self._observe("request_prefill_time_seconds", times.first_token - times.first_scheduled)
            if times.first_token is not None and times.finished is not None:
                decode = times.finished - times.first_token
                self._observe("request_decode_time_seconds", decode)
                if len(output.token_ids) > 1:
                    self._observe("request_time_per_output_token_seconds", decode / (len(output.token_ids) - 1))
        if seen.finished:
            self._observe("e2e_request_latency_seconds", seconds)

    def exposition(self) -> tuple[bytes, str]:
        """The text, and its content type; the same whoever asks."""
        encoder, content_type = choose_encoder("")
        return encoder(self.registry), content_type

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].labels(self._model).observe(max(0.0, value))


class _EngineCollector:
    """Reads `Backend.stats` at each scrape: nothing is counted twice, nothing is stale."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def collect(self) -> Iterable[Metric]:
        stats, labels = self.backend.stats(), [self.backend.model_name]
        for name, help_text, value in (
            ("num_requests_running", "Requests that get a token in each step", stats.num_requests_running),
            ("num_requests_waiting", "Requests in the queue", stats.num_requests_waiting),
            ("kv_cache_usage_perc", "Cache blocks in use, 1 is all", stats.kv_cache_usage_perc),
        ):
            gauge = GaugeMetricFamily(PREFIX + name, help_text, labels=["model_name"])
            gauge.add_metric(labels, value)
            yield gauge
        for name, help_text, value in (
            ("prefix_cache_queries", "Prompt tokens looked for in the cache", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the cache", stats.prefix_cache_hits),
            ("num_preemptions", "Requests whose blocks were taken", stats.num_preemptions),
            ("prompt_tokens", "Prompt tokens read", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generation_tokens),
        ):
            counter = CounterMetricFamily(PREFIX + name, help_text, labels=["model_name"])
            counter.add_metric(labels, value)
            yield counter


def _known_method(method: str) -> str:
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"
