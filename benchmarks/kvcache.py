"""What the KV cache gives and costs: ``python benchmarks/kvcache.py [--quick] [--no-smollm2] [--only PART]``.

Most of the time goes to SmolLM2 without a cache, many minutes of it: ``--no-smollm2`` leaves it out.

1. Cached against uncached generation: seconds for one greedy sequence from a prompt of 16 tokens up to 128, 256 and 512
   tokens, beside the least that the measured bandwidth and arithmetic allow, and whether the tokens are the same.
2. Memory: slots that hold a token over slots reserved, summed over every step of 64 requests (prompts of 16 to 256
   tokens, outputs of 8 to 128), 16 at a time.
3. Decoding 16 sequences of different lengths: a whole step of SmolLM2's shape, paged and contiguous by turns.
4. Perplexity with int8 and int4 caches against float.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch

from labsupport.kvcache import KVCache, PagedBatch, PagedKVCache, QuantizedKVCache, WithFreshCache, generate
from labsupport.kvcache.cost import generation_seconds, measure_machine
from labsupport.kvcache.sizes import weight_bytes
from labsupport.lm import LanguageModel, Llama, LlamaConfig, corpus, is_cached, load_lm, perplexity
from labsupport.lm import generate as generate_uncached
from labsupport.timing import median_milliseconds

SMOLLM2 = LlamaConfig(49152, 576, 1536, num_layers=30, num_heads=9, num_kv_heads=3)
PROMPT_TOKENS, LENGTHS = 16, (128, 256, 512)
REQUESTS, PROMPT, OUTPUT, MAX_RUNNING = 64, (16, 256), (8, 128), 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny alone, shorter lengths, fewer repeats")
    parser.add_argument("--no-smollm2", action="store_true", help="tiny alone, also where SmolLM2 is cached")
    parser.add_argument(
        "--only", action="append", choices=["generation", "memory", "decode", "quality"], help="may be repeated"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = [load_lm("tiny")]
    if not (arguments.quick or arguments.no_smollm2) and is_cached("smollm2-135m"):
        models.append(load_lm("smollm2-135m"))
    print(f"torch {torch.__version__}, {arguments.threads} thread")

    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    repeats = 3 if arguments.quick else 15
    shape = LlamaConfig(1024, 576, 1536, 4, 9, 3) if arguments.quick else SMOLLM2
    window = 512 if arguments.quick else 1024
    parts: dict[str, tuple[str, Callable[[], list[dict[str, object]]]]] = {
        "generation": ("1. Generation", lambda: [row for lm in models for row in generation(lm, lengths)]),
        "memory": (f"2. Memory: {REQUESTS} requests, {MAX_RUNNING} at a time", memory),
        "decode": (
            f"3. A decode step at batch {MAX_RUNNING}",
            lambda: [decode(shape, longest, repeats) for longest in (256, 512)],
        ),
        "quality": (
            f"4. Perplexity, {window} tokens a window",
            lambda: [row for lm in models for row in quality(lm, window)],
        ),
    }
    for name, (title, measure) in parts.items():
        if not arguments.only or name in arguments.only:
            print(f"\n{title}\n{pd.DataFrame(measure()).to_string(index=False)}", flush=True)


@torch.no_grad()
def generation(lm: LanguageModel, lengths: tuple[int, ...]) -> list[dict[str, object]]:
    prompt = torch.tensor([lm.tokenizer.encode(corpus("evaluation")[:1000])[:PROMPT_TOKENS]])
    config = lm.model.config
    machine = measure_machine(weight_bytes(config, 4))  # what fits the processor's cache is read faster
    rows = []
    for length in lengths:
        seconds, outputs = {}, {}
        for kind in ("uncached", "contiguous", "paged"):
            start = time.perf_counter()
            if kind == "uncached":
                outputs[kind] = generate_uncached(lm.model, prompt, length - PROMPT_TOKENS).tolist()
            else:
                outputs[kind] = generate(lm.model, prompt, length - PROMPT_TOKENS, kind)
            seconds[kind] = time.perf_counter() - start
        rows.append(
            {"model": lm.name, "tokens": length}
            | {f"{kind} s": f"{taken:.2f}" for kind, taken in seconds.items()}
            | {"uncached / cached": f"{seconds['uncached'] / seconds['contiguous']:.1f}"}
            | {
                f"roofline {kind} s": f"{estimate.seconds:.2f}"
                for kind, cached in (("uncached", False), ("cached", True))
                for estimate in [
                    generation_seconds(
                        config,
                        machine,
                        length - PROMPT_TOKENS,
                        PROMPT_TOKENS,
                        cached=cached,
                        all_logits=not cached,
                        bytes_per_weight=4,
                        bytes_per_kv=4,
                    )
                ]
            }
            | {"same tokens": outputs["uncached"] == outputs["contiguous"] == outputs["paged"]}
        )
    return rows


def memory() -> list[dict[str, object]]:
    """Paged: what `PagedKVCache.usage` says. Contiguous: the longest request for each running one, or for each row of
    a batch that stays until its last request is done, or the 2048 positions of the model for each running one."""
    generator = random.Random(0)
    requests = [(generator.randint(*PROMPT), generator.randint(*OUTPUT)) for _ in range(REQUESTS)]
    longest = PROMPT[1] + OUTPUT[1]
    rows: list[dict[str, object]] = []
    useful = 0
    for block_size in (8, 16, 32):
        useful, reserved, running_steps = paged_slots(requests, block_size)
        rows.append(memory_row(f"paged, blocks of {block_size}", useful, reserved))
    rows.append(memory_row(f"contiguous, {longest} a running sequence", useful, longest * running_steps))
    rows.append(memory_row("contiguous, 2048 a running sequence", useful, 2048 * running_steps))
    batches = [requests[i : i + MAX_RUNNING] for i in range(0, REQUESTS, MAX_RUNNING)]
    reserved = sum(longest * len(batch) * max(output for _, output in batch) for batch in batches)
    rows.append(memory_row(f"contiguous, {longest} a row of a static batch", useful, reserved))
    return rows


def memory_row(kind: str, useful: int, reserved: int) -> dict[str, object]:
    return {"cache": kind, "useful slots": useful, "reserved slots": reserved, "share": f"{useful / reserved:.3f}"}


def paged_slots(requests: list[tuple[int, int]], block_size: int) -> tuple[int, int, int]:
    """Useful and reserved slots, and running sequences, each summed over all steps."""
    cache = PagedKVCache(1, MAX_RUNNING * (-(-(PROMPT[1] + OUTPUT[1]) // block_size)), block_size, 1, 2)
    waiting = list(enumerate(requests))
    left: dict[int, int] = {}
    useful = reserved = running_steps = 0
    while waiting or left:
        new = {seq_id: 1 for seq_id in left}
        while waiting and len(left) < MAX_RUNNING:
            seq_id, (prompt, output) = waiting.pop(0)
            cache.add_sequence(seq_id)
            left[seq_id], new[seq_id] = output, prompt
        for seq_id, count in new.items():
            cache.append(seq_id, torch.zeros(1, 1, count, 2), torch.zeros(1, 1, count, 2))
        usage = cache.usage()
        useful, reserved = useful + usage["used_slots"], reserved + usage["reserved_slots"]
        running_steps += len(left)
        for seq_id in list(left):
            left[seq_id] -= 1
            if not left[seq_id]:
                del left[seq_id]
                cache.free(seq_id)
    cache.check_integrity()
    return useful, reserved, running_steps


@torch.no_grad()
def decode(config: LlamaConfig, longest: int, repeats: int) -> dict[str, object]:
    torch.manual_seed(0)
    model = Llama(config).eval()
    lengths = [random.Random(row).randint(longest // 4, longest) for row in range(MAX_RUNNING)]
    room = longest + repeats + 1
    contiguous = KVCache.for_model(model, MAX_RUNNING, room)
    paged = PagedKVCache.for_model(model, MAX_RUNNING * (room // 16 + 1))
    batch = scattered(paged, lengths)
    contiguous.keys.normal_()
    contiguous.values.normal_()
    contiguous.lengths = list(lengths)
    tokens = torch.zeros(MAX_RUNNING, 1, dtype=torch.int64)
    steps = {"contiguous": lambda: model(tokens, contiguous), "paged": lambda: model(tokens, batch)}
    medians = median_milliseconds(steps, repeats)
    return {"layers": config.num_layers, "lengths": f"{min(lengths)} to {max(lengths)}"} | {
        "contiguous ms": f"{medians['contiguous']:.1f}",
        "paged ms": f"{medians['paged']:.1f}",
        "paged / contiguous": f"{medians['paged'] / medians['contiguous']:.3f}",
    }


def scattered(cache: PagedKVCache, lengths: list[int]) -> PagedBatch:
    """Sequences of random contents that grew by turns, so that their blocks lie all over the pool."""
    for row in range(len(lengths)):
        cache.add_sequence(row)
    order = [row for row, length in enumerate(lengths) for _ in range(length // 8 + 1)]
    random.Random(0).shuffle(order)
    for row in order:
        count = min(8, lengths[row] - cache.length(row))
        if count:
            new = torch.zeros(cache.num_layers, cache.num_kv_heads, count, cache.head_dim)
            cache.append(row, new, new)
    cache.blocks.normal_()
    assert [cache.length(row) for row in range(len(lengths))] == lengths
    return PagedBatch(cache, range(len(lengths)))


def quality(lm: LanguageModel, window: int, windows: int = 4) -> list[dict[str, object]]:
    tokens = torch.tensor(lm.tokenizer.encode(corpus("evaluation")[: 12 * window * windows])[: window * windows])
    plain = perplexity(lm.model, tokens, window)
    float_bytes = KVCache.for_model(lm.model, 1, 1).nbytes
    rows: list[dict[str, object]] = [
        {"model": lm.name, "cache": "float32", "bytes a token": float_bytes, "perplexity": f"{plain:.4f}"}
    ]
    for bits in (8, 4):
        made = WithFreshCache(lm.model, partial(QuantizedKVCache.for_model, lm.model, bits=bits))
        result = perplexity(made, tokens, window)
        size = QuantizedKVCache.for_model(lm.model, 1, 1, bits=bits).nbytes
        row = {"model": lm.name, "cache": f"int{bits}", "bytes a token": size, "perplexity": f"{result:.4f}"}
        rows.append(row | {"to float": f"{result / plain - 1:+.3%}"})
    return rows


if __name__ == "__main__":
    main()
