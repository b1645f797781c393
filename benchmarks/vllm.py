"""`serve --engine vllm` beside our own engine, by the same API: ``python benchmarks/vllm.py``; see ``--help``.

Each server is started in turn, on the same cores, with the same model in float32 and 16 requests at a time. It gets the
workload of benchmarks/engine.py (64 requests, prompts of 16 to 256 tokens, answers of 8 to 128, all at once), as token
lists, greedy, after a first round that warms it up. Printed: tokens per second, how many answers are the same in both,
and at which token the others part. CPU seconds are of the server and all its processes: the steadier figure where the
machine has other work. ``--vllm-python`` is the Python of an environment with vLLM (`make test-vllm` makes
.venv-vllm).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from engine import workload

from labsupport.lm import load_lm

SMOLLM2 = Path.home() / ".cache" / "labsupport" / "smollm2-135m"
ON_A_CPU = ("dtype=float32", "gpu_memory_utilization=0.2", "kv_cache_memory_bytes=1073741824")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", default=".venv-vllm/bin/python")
    parser.add_argument("--model", default=str(SMOLLM2), help="a folder")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2, help="the best counts")
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    options = parser.parse_args()
    prompts, counts = workload(load_lm(options.model, verbose=False).tokenizer, options.requests)
    vllm = [part for option in ON_A_CPU for part in ("--vllm-option", option)]
    vllm += ["--vllm-option", "enforce_eager=true"] if options.eager else []
    answers: dict[str, list[list[str]]] = {}
    print("| server | tokens/s, prompts and answers | answers only | seconds | CPU seconds | ready after |")
    print("|---|---|---|---|---|---|")
    for name, python, more in (
        ("serve", sys.executable, []),
        ("serve --engine vllm", options.vllm_python, ["--engine", "vllm", *vllm]),
    ):
        begin = time.perf_counter()
        with server(python, options.model, more) as (url, process):
            ready = time.perf_counter() - begin
            times = []
            for _ in range(options.turns + 1):
                begin, before = time.perf_counter(), cpu_seconds(process)
                answers[name] = asyncio.run(ask(url, prompts, counts))
                times.append((time.perf_counter() - begin, cpu_seconds(process) - before))
        best, cpu = (min(each[k] for each in times[1:]) for k in (0, 1))
        read, written = sum(map(len, prompts)), sum(counts)
        print(
            f"| {name} | {(read + written) / best:.0f} | {written / best:.1f} | {best:.1f} | {cpu:.1f} "
            f"| {ready:.0f} s |",
            flush=True,
        )
    ours, theirs = answers.values()
    apart = [first_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    print(f"{apart.count(None)} of {len(apart)} answers have the same tokens", end="")
    print("; the others part at token " + ", ".join(str(each) for each in apart if each is not None))


def cpu_seconds(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def first_difference(one: list[str], other: list[str]) -> int | None:
    if one == other:
        return None
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


async def ask(url: str, prompts: list[list[int]], counts: list[int]) -> list[list[str]]:
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=httpx.Limits(max_connections=None)) as client:

        async def one(prompt: list[int], count: int) -> list[str]:
            body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 0}
            answer = await client.post("/v1/completions", json=body)
            answer.raise_for_status()
            tokens = answer.json()["choices"][0]["logprobs"]["tokens"]
            assert len(tokens) == count
            return tokens

        return await asyncio.gather(*map(one, prompts, counts))


@contextmanager
def server(python: str, model: str, more: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    command = [python, "-u", "-m", "labsupport.cli", "serve", "--model", model, "--port", "0", "--max-num-seqs", "16"]
    command += ["--max-waiting", "1000", "--max-model-len", "1024", *more]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"at (http://\S+)/v1", line):
                yield found[1], psutil.Process(process.pid)
                return
        raise SystemExit("the server did not start: " + " ".join(command))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


if __name__ == "__main__":
    main()
