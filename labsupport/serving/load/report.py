"""What a load test found: a table for people, JSON for programs, and a picture of the latencies."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labsupport.files import replacing, write_atomically
from labsupport.serving.load.tester import Result
from labsupport.serving.monitor import Percentiles, percentiles

# Okabe and Ito's colours, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


@dataclass(frozen=True)
class Report:
    """Latencies of the requests that succeeded, in seconds, counted from when each was due.

    ``service_time`` counts from when it was sent. If it is much lower than ``latency``, the server kept the tester from
    sending; a tester that measures only the service time would not have noticed.
    """

    requests: int
    succeeded: int
    failures: dict[str, int]
    seconds: float
    offered_per_second: float
    sent_per_second: float
    requests_per_second: float
    tokens_per_second: float
    time_to_first_token: Percentiles | None
    inter_token: Percentiles | None
    latency: Percentiles | None
    service_time: Percentiles | None
    lag: Percentiles | None

    @classmethod
    def of(cls, results: Sequence[Result]) -> Report:
        good = [each for each in results if each.error is None]
        seconds = max(each.finished for each in results) - min(each.due for each in results)
        return cls(
            requests=len(results),
            succeeded=len(good),
            failures=dict(Counter(each.error for each in results if each.error is not None)),
            seconds=seconds,
            offered_per_second=_rate([each.due for each in results]),
            sent_per_second=_rate([each.sent for each in results]),
            requests_per_second=len(good) / seconds if seconds > 0 else math.nan,
            tokens_per_second=sum(each.completion_tokens for each in good) / seconds if seconds > 0 else math.nan,
            time_to_first_token=percentiles([t for each in good if (t := each.time_to_first_token) is not None]),
            inter_token=percentiles([gap for each in good for gap in each.inter_token]),
            latency=percentiles([each.latency for each in good]),
            service_time=percentiles([each.service_time for each in good]),
            lag=percentiles([each.lag for each in results]),
        )

    @property
    def behind(self) -> bool:
        """Whether requests were not sent as they were due: the load was another than the one that was asked for."""
        return self.sent_per_second < 0.95 * self.offered_per_second

    def __str__(self) -> str:
        lines = [
            f"requests           {self.requests:10,}   succeeded {self.succeeded:,}",
            f"duration           {self.seconds:10.2f} s",
            f"offered            {self.offered_per_second:10.2f} requests/s   sent {self.sent_per_second:,.2f}",
            f"throughput         {self.requests_per_second:10.2f} requests/s   {self.tokens_per_second:,.1f} tokens/s",
            "",
            f"{'milliseconds':18}{'mean':>11}{'p50':>11}{'p90':>11}{'p95':>11}{'p99':>11}{'max':>11}",
        ]
        rows = (
            ("to first token", self.time_to_first_token), ("between tokens", self.inter_token),
            ("to the end", self.latency), ("... once sent", self.service_time),
        )  # fmt: skip
        for name, values in rows:
            if values is not None:
                each = (values.mean, values.p50, values.p90, values.p95, values.p99, values.maximum)
                lines.append(f"{name:18}" + "".join(f"{1000 * value:11.1f}" for value in each))
        if self.behind and self.lag is not None:
            late = (self.requests - 1) * (1 / self.sent_per_second - 1 / self.offered_per_second)
            own = self.lag.maximum > late / 2
            why = (
                "this tester is too slow: add --processes" if own else "no connection was free: the server is too slow"
            )
            lines.append(f"BEHIND: requests were sent more slowly than they were due; {why}")
        lines += [f"failed: {count} x {reason}" for reason, count in sorted(self.failures.items())]
        return "\n".join(lines)


def _rate(times: Sequence[float]) -> float:
    span = max(times) - min(times)
    return (len(times) - 1) / span if span > 0 else math.nan


def write_report(report: Report, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write ``loadtest.json`` and ``latency.png`` to ``folder``, each in one step; the folder is made if need be."""
    numbers, picture = folder / "loadtest.json", folder / "latency.png"
    record = {"report": asdict(report), "requests": [asdict(each) for each in results]}
    write_atomically(numbers, json.dumps(_without_nan(record), indent=1) + "\n")
    with replacing(picture) as temporary:
        draw_latency(results, temporary)
    return [numbers, picture]


def draw_latency(results: Sequence[Result], path: Path) -> None:
    """Left: each request's latency by the time it was due. Right: the cumulative distribution of latencies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [each for each in results if each.error is None]
    bad = [each for each in results if each.error is not None]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, shares = figure.subplots(1, 2)
    over_time.plot([each.due for each in good], [1000 * each.latency for each in good], "o", color=BLUE, ms=3)
    for each in bad:
        over_time.axvline(each.due, color=ORANGE, linewidth=0.8, linestyle=":")
    failed = f"; {len(bad)} failed (dotted)" if bad else ""
    over_time.set(xlabel="due, seconds from the start", ylabel="latency, ms", ylim=(0, None))
    over_time.set_title(f"{len(good)} requests{failed}", fontsize=10)
    curves = (
        ("to first token", [t for each in good if (t := each.time_to_first_token) is not None], GREEN, ":"),
        ("to the end", [each.latency for each in good], BLUE, "-"),
        ("... once sent", [each.service_time for each in good], ORANGE, "--"),
    )
    for label, values, colour, style in curves:
        if values:
            milliseconds = sorted(1000 * value for value in values)
            share = [(index + 1) / len(values) for index in range(len(values))]
            shares.step(milliseconds, share, where="post", label=label, color=colour, linestyle=style)
    shares.set(xlabel="ms", ylabel="share of requests", ylim=(0, 1.02))
    shares.set_title("cumulative distribution", fontsize=10)
    if good:
        shares.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def _without_nan(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
