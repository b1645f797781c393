"""/metrics in Prometheus's text format, of the app's own engine: a second app is made, with an engine of its own."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from labsupport.checks.channel import Channel
from labsupport.checks.check import Answer, Inputs
from labsupport.checks.ex06_inference_api.drawing import draw_answers
from labsupport.checks.ex06_inference_api.oracles import expected_answer
from labsupport.checks.ex06_inference_api.reading import judge_serving, short, text_of
from labsupport.checks.ex06_inference_api.serving import APP, COMPLETIONS, ApiCheck
from labsupport.checks.hosting import serve
from labsupport.checks.judging import Wrong
from labsupport.checks.plain import Plain
from labsupport.checks.visit import Visit

METRICS = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "prompt_tokens_total": "counter",
    "generation_tokens_total": "counter",
    "request_success_total": "counter",
}
BEFORE, AFTER = "before the first request", "after three requests"
ONE = "while a request runs"
THREE = "while the engine has three requests and computes two at a time"
OTHERS = 41  # each count of the other app's engine: what no other engine of this check has
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*,?)?)\}})?[ \t]+(\S+)(?:[ \t]+-?[\d.]+)?")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped|unknown|info)")


class CheckMetrics(ApiCheck):
    name = "check_metrics"
    points = 2
    max_num_seqs = 2
    holds = "/metrics is Prometheus's text, and counts requests and tokens as they are served"

    def host(self, answer: Answer, channel: Channel) -> None:
        def create(engine: Any) -> Any:
            app = answer[APP](engine)
            answer[APP](_OtherEngine())
            return app

        serve(create, channel)

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        answers = draw_answers(draw, draw.randint(10, 15), draw.randint(20, 40), draw.randint(20, 40))
        bodies = [{"prompt": prompt, "max_tokens": 16} for prompt in answers]
        return {"answers": answers, "bodies": bodies}

    def meet(self, visit: Visit, inputs: Inputs, outcome: dict[str, Any]) -> None:
        outcome |= {"scrapes": {}, "got": []}
        engine, (first, *others) = visit.engine, inputs["bodies"]

        def scrape(when: str) -> None:
            got = visit.get("/metrics")
            visit.finish(got)
            outcome["scrapes"][when] = got.plain()

        scrape(BEFORE)
        engine.hold()
        got = [visit.post(COMPLETIONS, first)]
        visit.wait(lambda: engine.held or got[0].ended)
        if engine.held and not engine.on_loop:  # else check_concurrent reports it
            scrape(ONE)
            got += [visit.post(COMPLETIONS, body) for body in others]
            visit.wait(lambda: len(engine.seen) == len(got), 2)
            for _ in range(8):  # a lock lets them in between two steps
                if len(engine.seen) < len(got):
                    engine.allow()
                visit.wait(lambda: engine.held)
            if len(engine.requests) == len(got) and engine.held:
                scrape(THREE)
        engine.open()
        got += [visit.post(COMPLETIONS, body) for body in inputs["bodies"][len(got) :]]
        visit.finish(*got)
        outcome["got"] = [each.plain() for each in got]
        scrape(AFTER)

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_serving(values)
        scrapes = {when: _scrape(got, when) for when, got in values["scrapes"].items()}
        for body, got in zip(inputs["bodies"], values["got"], strict=False):
            text_of(got, f"POST {COMPLETIONS} with {short(body)}")
        before, after = scrapes[BEFORE], scrapes[AFTER]
        for when, running, waiting in ((BEFORE, 0, 0), (ONE, 1, 0), (THREE, 2, 1), (AFTER, 0, 0)):
            for name, value in (("num_requests_running", running), ("num_requests_waiting", waiting)):
                found = scrapes.get(when, {}).get(name, value)
                if found == OTHERS:
                    raise Wrong(
                        f"GET /metrics {when}: {name} must be {value}; got {OTHERS}, that of another app's engine: "
                        "each app keeps its own, not on a class or in a global"
                    )
                if found != value:
                    raise Wrong(f"GET /metrics {when}: {name} must be {value}; got {found:g}")
        highest: dict[str, float] = {}
        for when, series in scrapes.items():
            for name, held in series.items():
                if METRICS.get(_family(name)) == "counter":
                    if held < highest.setdefault(name, 0.0):
                        raise Wrong(f"GET /metrics {when}: {name} fell to {held:g}; a counter only grows")
                    highest[name] = held
        done = [expected_answer(inputs["answers"][body["prompt"]], body["max_tokens"]) for body in inputs["bodies"]]
        wanted = {
            "prompt_tokens_total": sum(len(body["prompt"].encode()) for body in inputs["bodies"]),
            "generation_tokens_total": sum(tokens for _, _, tokens in done),
        }
        for reason in ("stop", "length"):
            count = sum(each == reason for _, each, _ in done)
            wanted[f'request_success_total{{finished_reason="{reason}"}}'] = count
        for name, value in wanted.items():
            grown = after.get(name, 0.0) - before.get(name, 0.0)
            if name not in after and value:
                raise Wrong(f"GET /metrics {AFTER}: {name} is missing")
            if grown != value:
                raise Wrong(f"GET /metrics: {name} must have grown by {value} with three requests, not {grown:g}")


class _OtherEngine:
    """An engine that nobody asks for anything but its counts."""

    has_unfinished = False

    def stats(self) -> SimpleNamespace:
        names = ("num_requests_running", "num_requests_waiting", "prompt_tokens", "generation_tokens")
        return SimpleNamespace(**dict.fromkeys(names, OTHERS), finished={"stop": OTHERS})


def _scrape(got: Mapping[str, Any], when: str) -> dict[str, float]:
    """Prometheus text as {series: value}, such as 'request_success_total{finished_reason="stop"}'; or `Wrong`."""
    what = f"GET /metrics {when}"
    text = text_of(got, what)
    kind = got["headers"].get("content-type", "none")
    if not kind.startswith(("text/plain", "application/openmetrics-text")):
        raise Wrong(
            f"{what}: the content type must be that of Prometheus's text, text/plain; version=0.0.4; got {kind}, "
            "which Prometheus does not accept"
        )
    series: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in text.split("\n"):
        if line.startswith("# TYPE"):
            match = _TYPE.fullmatch(line.strip())
            if not match:
                raise Wrong(f'{what}: a type is declared as "# TYPE name counter"; got {line[:80]!r}')
            if match[1] in types or any(_family(name) in (match[1], f"{match[1]}_total") for name in series):
                raise Wrong(f"{what}: the type of {match[1]} must be declared once, before its first sample")
            types[match[1]] = match[2]
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.strip())
        try:
            value = float(match[3])  # type: ignore[index]
        except (TypeError, ValueError):
            raise Wrong(
                f'{what}: a line is a name, optionally {{label="value"}}, a space and a number; got {line[:80]!r}'
            ) from None
        labels = ",".join(sorted(re.findall(_LABEL, match[2] or "")))  # type: ignore[index]
        name = f"{match[1]}{{{labels}}}" if labels else match[1]  # type: ignore[index]
        if math.isnan(value):
            raise Wrong(f"{what}: {name} is {match[3]}")  # type: ignore[index]
        if name in series:
            raise Wrong(f"{what}: {name} is there twice")
        series[name] = value
    if text and not text.endswith("\n"):
        raise Wrong(f"{what}: the last line must end in a newline")
    for name, kind in METRICS.items():
        if name != "request_success_total" and name not in series:  # a label value that never occurred has no series
            raise Wrong(f"{what}: {name} is missing; found {', '.join(series)[:100] or 'no samples'}")
        declared = types.get(name, types.get(name.removesuffix("_total")))
        if declared != kind:
            raise Wrong(f'{what}: there must be a line "# TYPE {name} {kind}"; its type is {declared}')
    return series


def _family(name: str) -> str:
    return name.partition("{")[0]


check_metrics = CheckMetrics()
