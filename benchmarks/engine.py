"""The engine beside its peers: ``python benchmarks/engine.py [--requests 64] [--turns 1] [--threads 1] [--model ...]``.

Every engine runs in a process of its own, one after the other, on the same model and the same workload: 64 requests,
prompts of 16 to 256 tokens cut from real text, outputs of 8 to 128 tokens, all there at the start, 16 at a time. What
is not installed says so. CPU seconds of the process for one thread, wall seconds for more; loading is not counted.

1. Throughput, and the ratio to each peer.
2. Greedy tokens: ours against transformers', and the gap between the two best logits wherever they first differ.
3. Decoding at batch 1 after a 64-token prompt, and reading a prompt of 512 tokens, with the fraction of what memory
   bandwidth (weights read once a token) and matrix throughput, both measured here, allow.
4. Perplexity of the quantized models on six held-out windows of 512 tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pandas as pd

BATCH, DECODE_PROMPT, DECODE_NEW, PREFILL = 16, 64, 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--turns", type=int, default=1, help="rounds over all engines; the best of each counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", action="append", choices=list(ENGINES), help="may be repeated")
    parser.add_argument("--worker", choices=list(ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments)))
        return
    names = arguments.only or list(ENGINES)
    best: dict[str, dict[str, Any]] = {}
    for turn in range(arguments.turns):
        for name in names:
            result = in_process(name, arguments)
            if "missing" in result:
                print(f"{name}: {result['missing']}")
                names = [each for each in names if each != name]
                continue
            print(f"turn {turn + 1}: {name} {result['seconds']:.1f} s", flush=True)
            if name not in best or result["seconds"] < best[name]["seconds"]:
                best[name] = result
    report(best, arguments.threads)


def in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = [f"--{key}={getattr(arguments, key)}" for key in ("requests", "threads", "model")]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    outcome = subprocess.run(
        [sys.executable, __file__, "--worker", name, *options], capture_output=True, text=True, env=environment
    )
    if outcome.returncode:
        return {"missing": f"failed: {outcome.stderr.strip().splitlines()[-1:]}"}
    return json.loads(outcome.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------- in the process


def ours(lm: Any, threads: int) -> Any:
    from labsupport.inference.adapters import OurEngine

    return OurEngine(lm, BATCH, threads, enable_prefix_caching=False)


def ours_w8a8(lm: Any, threads: int) -> Any:
    return ours(quantized(lm, "int8_dynamic", smooth=True, head_bits=8), threads)


def ours_int4(lm: Any, threads: int) -> Any:
    return ours(quantized(lm, "awq", bits=4, group_size=64, head_bits=8), threads)


def peer(name: str) -> Callable[[Any, int], Any]:
    def make(lm: Any, threads: int) -> Any:
        from labsupport.inference import adapters

        kind = getattr(adapters, name)
        reason = kind.missing()
        return reason if reason else kind(lm, BATCH, threads)

    return make


ENGINES: dict[str, Callable[[Any, int], Any]] = {
    "labsupport float32": ours,
    "labsupport W8A8": ours_w8a8,
    "labsupport int4": ours_int4,
    "transformers static": peer("TransformersStatic"),
    "llama.cpp Q4_0": peer("LlamaCpp"),
    "llama.cpp F32": peer("LlamaCppFloat"),
    "vLLM": peer("Vllm"),
}


def quantized(lm: Any, method: str, **options: Any) -> Any:
    import torch

    from labsupport.lm import corpus
    from labsupport.quantization import quantize_model

    tokens = torch.tensor(lm.tokenizer.encode(corpus("calibration"))[: 16 * 512])
    model = quantize_model(lm.model, list(tokens.split(512)), method, progress=False, **options)
    return dataclasses.replace(lm, model=model)


def work(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from labsupport.lm import load_lm

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    lm = load_lm(arguments.model, verbose=False)
    adapter = ENGINES[name](lm, arguments.threads)
    if isinstance(adapter, str):
        return {"missing": adapter}
    prompts, counts = workload(lm.tokenizer, arguments.requests)

    def seconds(some: list[list[int]], new: list[int]) -> tuple[float, list[Any]]:
        started = clock()
        completions = adapter.generate(some, new)
        took = clock() - started
        made = [each.num_tokens for each in completions]
        assert made == new, f"{name} made {made} tokens where {new} were wanted"
        return took, completions

    seconds(prompts[:2], [2, 2])
    took, completions = seconds(prompts, counts)
    text = lm.tokenizer.encode(corpus_text())
    one = [min(seconds([text[i : i + DECODE_PROMPT]], [n])[0] for i in (0, 700, 1400)) for n in (1, DECODE_NEW + 1)]
    prefill = min(seconds([text[i : i + PREFILL]], [1])[0] for i in (3000, 4000, 5000))
    result: dict[str, Any] = {
        "seconds": took, "output_tokens": sum(counts), "decode": DECODE_NEW / (one[1] - one[0]),
        "prefill": PREFILL / prefill, "tokens": [each.token_ids for each in completions],
    }  # fmt: skip
    if name.startswith("labsupport"):
        result |= about_ours(lm, adapter.engine.model)
    return result


def about_ours(lm: Any, model: Any) -> dict[str, Any]:
    """Perplexity, and what a roofline is made of."""
    import torch

    from labsupport.kvcache.cost import measure_machine
    from labsupport.lm import corpus, perplexity

    tokens = torch.tensor(lm.tokenizer.encode(corpus("evaluation"))[: 6 * 512])
    parts = (model.layers, model.lm_head)
    read = {id(each): each for part in parts for each in (*part.parameters(), *part.buffers())}
    machine = measure_machine()
    flops = 2 * sum(each.numel() for each in lm.model.layers.parameters())
    return {
        "perplexity": perplexity(model, tokens), "weight_bytes": sum(each.nbytes for each in read.values()),
        "bandwidth": machine.bytes_per_second, "flops": machine.flops_per_second, "flops_a_token": flops,
    }  # fmt: skip


def corpus_text() -> str:
    import pydoc_data.topics as topics

    return "\n\n".join(topics.topics[key] for key in sorted(topics.topics))[:200_000]


def workload(tokenizer: Any, requests: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and numbers of new tokens, the same for every engine. All sizes are drawn before all places."""
    ids, draw = tokenizer.encode(corpus_text()), random.Random(0)
    sizes = [(draw.randint(16, 256), draw.randint(8, 128)) for _ in range(64)]
    prompts = []
    for length, _ in sizes:
        start = draw.randrange(len(ids) - length)
        prompts.append(ids[start : start + length])
    return prompts[:requests], [new for _, new in sizes[:requests]]


# ------------------------------------------------------------------------------------------------------ the report


def report(best: dict[str, dict[str, Any]], threads: int) -> None:
    pd.set_option("display.width", 160, "display.max_columns", 20)
    kind = "CPU s" if threads == 1 else "wall s"
    peers = [name for name in best if not name.startswith("labsupport")]
    rows = []
    for name, each in best.items():
        row = {"engine": name, kind: round(each["seconds"], 1),
               "tokens/s": round(each["output_tokens"] / each["seconds"], 1)}  # fmt: skip
        row |= {f"x {other}": round(best[other]["seconds"] / each["seconds"], 2) for other in peers}
        row |= {"batch 1, tokens/s": round(each["decode"], 1), "prompt tokens/s": round(each["prefill"], 0)}
        rows.append(row)
    print("\n1. Throughput; x: how many times as fast as that peer\n")
    print(pd.DataFrame(rows).to_string(index=False))
    if {"labsupport float32", "transformers static"} <= best.keys():
        print(f"\n2. {agreement(best['labsupport float32'], best['transformers static'])}")
    print("\n3. Fraction of the roofline; 4. perplexity")
    for name, each in best.items():
        if "bandwidth" in each:
            decode = each["decode"] * each["weight_bytes"] / each["bandwidth"]
            prefill = each["prefill"] * each["flops_a_token"] / each["flops"]
            print(
                f"   {name}: decode {decode:.2f} of {each['bandwidth'] / 1e9:.1f} GB/s, prefill {prefill:.2f} of "
                f"{each['flops'] / 1e9:.0f} GFLOP/s (float32); {each['weight_bytes'] / 1e6:.0f} MB read a token; "
                f"perplexity {each['perplexity']:.2f}"
            )


def agreement(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How many requests got the same tokens; where not, how near the two best logits were at the first difference."""
    import torch

    from labsupport.lm import load_lm

    differing = [i for i, (a, b) in enumerate(zip(mine["tokens"], theirs["tokens"], strict=True)) if a != b]
    total = len(mine["tokens"])
    text = f"Greedy tokens equal to transformers': {total - len(differing)} of {total} requests"
    if not differing:
        return text
    lm = load_lm("smollm2-135m", verbose=False)
    prompts, _ = workload(lm.tokenizer, total)
    gaps = []
    for i in differing:
        a, b = mine["tokens"][i], theirs["tokens"][i]
        first = next(k for k in range(len(a)) if a[k] != b[k])
        with torch.no_grad():
            logits = lm.model(torch.tensor([prompts[i] + a[:first]]))[0, -1]
        gaps.append(float(abs(logits[a[first]] - logits[b[first]])))
    return f"{text}; the others part where two logits are {', '.join(f'{gap:.1e}' for gap in gaps)} apart"


if __name__ == "__main__":
    main()
