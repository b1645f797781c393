"""What the server costs and withstands: ``python benchmarks/serving.py``; for options see ``--help``.

The server is a separate process (`labsupport serve`); this process is the clients. Two cores, one torch thread each.

1. Overhead: the same requests through the bare engine and through HTTP, plain and streamed, in turns. Besides tokens
   per second, the CPU time of the server's process per token, which is the steadier figure on a busy machine; and that
   of the event loop's thread alone, which is what HTTP costs.
2. `/health` every 20 ms from a third process, with twice as many requests as can run: percentiles from when each probe
   was due.
3. Soak: Poisson arrivals at 80 % of the capacity found in part 1; one client in five leaves at a random moment. Answers
   by status, blocks still in use at the end, and the server's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import torch

from labsupport.inference import LLMEngine, SamplingParams
from labsupport.lm import load_lm
from labsupport.serving.load.report import Report
from labsupport.serving.load.tester import Result, run_load
from labsupport.serving.load.workload import Planned, plan_requests
from labsupport.serving.monitor import percentiles

RUNNING = 16
PROMPT, OUTPUT = "uniform:32:128", "uniform:16:64"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the soak")
    parser.add_argument("--quick", action="store_true", help="fewer requests, and a soak of half a minute")
    parser.add_argument(
        "--only", action="append", choices=["overhead", "health", "soak"], help="part to run; repeatable"
    )
    parser.add_argument("--model", default="tiny", help="tiny (default) or smollm2-135m")
    parser.add_argument("--rate", type=float, help="of the soak, requests per second; default: 80 %% of capacity")
    parser.add_argument("--probe", nargs=2, metavar=("URL", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe[0], float(arguments.probe[1]))))
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parts = arguments.only or ["overhead", "health", "soak"]
    count, turns = (48, 1) if arguments.quick else (160 if arguments.model == "tiny" else 48, 3)
    minutes = 0.5 if arguments.quick else arguments.minutes
    with server(arguments.model) as (url, process):
        capacity = arguments.rate and arguments.rate / 0.8
        if "overhead" in parts or (capacity is None and "soak" in parts):
            capacity = overhead(url, process, arguments.model, count, turns)
        if "health" in parts:
            health(url, count)
        if "soak" in parts and capacity is not None:
            asyncio.run(soak(url, process, 0.8 * capacity, 60 * minutes))


@contextmanager
def server(model: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-u", "-m", "labsupport.cli", "serve", "--model", model, "--port", "0", "--threads", "1"]
    command += ["--max-num-seqs", str(RUNNING), "--max-waiting", "256"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="")
            if found := re.search(r"at (http://\S+)/v1", line):
                yield found[1], psutil.Process(process.pid)
                break
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        print(f"the server ended with status {process.wait()}")


# ------------------------------------------------------------------------------------------------ 1. overhead


def overhead(url: str, process: psutil.Process, model: str, count: int, turns: int) -> float:
    """Print the comparison. Returns how many requests per second the server can stream."""
    plan = plan_requests(count, None, PROMPT, OUTPUT, seed=1)
    engine = LLMEngine(load_lm(model, verbose=False), max_num_seqs=RUNNING)
    tokens = sum(each.max_tokens for each in plan)
    rows: dict[str, list[tuple[float, float, float]]] = {"bare engine": [], "API, plain": [], "API, streamed": []}
    for _ in range(turns + 1):  # the first turn warms up
        for name, values in rows.items():
            before = cpu_seconds(process) if name != "bare engine" else time.process_time()
            loop, start = loop_seconds(process), time.perf_counter()
            if name == "bare engine":
                bare(engine, plan)
                cpu = time.process_time() - before
            else:
                asyncio.run(through_http(url, plan, stream=name == "API, streamed"))
                cpu = cpu_seconds(process) - before
            speed, loop = tokens / (time.perf_counter() - start), loop_seconds(process) - loop
            values.append((speed, 1e6 * cpu / tokens, 1e6 * loop / tokens))
    best = {
        name: (max(v[0] for v in values[1:]), *(min(v[k] for v in values[1:]) for k in (1, 2)))
        for name, values in rows.items()
    }
    print(f"\n1. Overhead: {count} requests, {tokens:,} tokens, best of {turns}")
    for name, (speed, cpu, loop) in best.items():
        slower, dearer = 1 - speed / best["bare engine"][0], cpu / best["bare engine"][1] - 1
        print(
            f"   {name:14} {speed:8,.0f} tokens/s ({-slower:+.1%})   {cpu:7.0f} us of CPU per token ({dearer:+.1%})"
            f"   {loop:5.0f} of them in the event loop"
        )
    return best["API, streamed"][0] / tokens * count


def bare(engine: LLMEngine, plan: list[Planned]) -> None:
    params = [SamplingParams(max_tokens=each.max_tokens, temperature=1.0, ignore_eos=True) for each in plan]
    engine.generate([each.prompt for each in plan], params)


async def through_http(url: str, plan: list[Planned], stream: bool) -> None:
    if stream:
        results = await run_load(url, plan, concurrency=2 * RUNNING, ignore_eos=True)
        assert Report.of(results).succeeded == len(plan), Report.of(results).failures
        return
    places = asyncio.Semaphore(2 * RUNNING)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one(each: Planned) -> None:
            async with places:
                body = {"prompt": each.prompt, "max_tokens": each.max_tokens, "ignore_eos": True}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text

        await asyncio.gather(*map(one, plan))


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def loop_seconds(process: psutil.Process) -> float:
    return next(each.user_time + each.system_time for each in process.threads() if each.id == process.pid)


# ------------------------------------------------------------------------------------------------ 2. health


def health(url: str, count: int) -> None:
    seconds = 5.0 if count < 100 else 20.0
    command = [sys.executable, __file__, "--probe", url, str(seconds)]
    probing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def load() -> list[Result]:
        results: list[Result] = []
        while probing.poll() is None:
            plan = plan_requests(count, None, PROMPT, OUTPUT, seed=len(results))
            results += await run_load(url, plan, concurrency=2 * RUNNING, ignore_eos=True)
        return results

    asyncio.run(load())
    waits = percentiles(json.loads(probing.communicate()[0]))
    assert waits is not None
    print(f"\n2. /health under full load ({RUNNING} run, {RUNNING} wait), {waits.count} times, milliseconds")
    told = (("p50", waits.p50), ("p95", waits.p95), ("p99", waits.p99), ("max", waits.maximum))
    print("   " + "   ".join(f"{name} {1000 * value:.1f}" for name, value in told) + "   (target: p99 below 50)")


def probe(url: str, seconds: float) -> list[float]:
    """Latencies of `/health`, every 20 ms, each counted from when it was due."""
    waits = []
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/health")
        start = time.monotonic()
        for number in range(int(seconds / 0.02)):
            due = start + 0.02 * number
            time.sleep(max(0.0, due - time.monotonic()))
            assert client.get("/health").status_code == 200
            waits.append(time.monotonic() - due)
    return waits


# ------------------------------------------------------------------------------------------------ 3. soak


async def soak(url: str, process: psutil.Process, rate: float, seconds: float) -> None:
    draw = random.Random(0)
    outcomes: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        async with asyncio.TaskGroup() as group:
            due = 0.0
            plan = plan_requests(int(rate * seconds) + 1, rate, PROMPT, OUTPUT, seed=2)
            for each in plan:
                due = each.at or 0.0
                if due > seconds:
                    break
                await asyncio.sleep(start + due - loop.time())
                leaves = draw.randrange(each.max_tokens) if draw.random() < 0.2 else None
                group.create_task(visit(client, each, leaves, outcomes))
                if not memory or due - memory[-1][0] > seconds / 60:
                    memory.append((due, process.memory_info().rss / 2**20))
        await asyncio.sleep(1)
        gauges = {
            name: float(re.search(rf"^labsupport_{name}{{.*}} (\S+)$", (await client.get("/metrics")).text, re.M)[1])  # type: ignore[index]
            for name in ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
        }
    print(f"\n3. Soak: {due:.0f} s at {rate:.1f} requests/s (80 % of capacity), one in five leaves")
    print(f"   {dict(sorted(outcomes.items()))}")
    server_errors = sum(count for status, count in outcomes.items() if status.startswith("5"))
    print(f"   5xx: {server_errors}   at the end: {gauges}")
    thirds = [
        statistics.median(mib for _, mib in memory[len(memory) * i // 3 : len(memory) * (i + 1) // 3 or 1])
        for i in range(3)
    ]
    print(f"   the server's memory, median of each third: {', '.join(f'{mib:.1f}' for mib in thirds)} MiB")


async def visit(client: httpx.AsyncClient, each: Planned, leaves: int | None, outcomes: Counter[str]) -> None:
    """One client, which closes the connection after ``leaves`` events; None: it stays."""
    body = {"prompt": each.prompt, "max_tokens": each.max_tokens, "ignore_eos": True, "stream": True}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            done, events = answer.status_code != 200, 0
            async for line in answer.aiter_lines():
                done = done or line == "data: [DONE]"
                events += line.startswith("data: ")
                if leaves is not None and events > leaves:
                    outcomes["left"] += 1
                    return
        outcomes[str(answer.status_code) if done else "cut off"] += 1
    except httpx.HTTPError as error:
        outcomes[type(error).__name__] += 1


if __name__ == "__main__":
    main()
