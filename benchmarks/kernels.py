"""What integers gain over float32 on this machine: ``python benchmarks/kernels.py [--threads N]``, about two minutes.

Two tables of ratios (above 1: faster than float32), both sides measured in turns within this run:

- the linear layers alone, with the shapes of SmolLM2-135M. All 30 layers' weights are walked through, more than a
  cache holds, as in a real decode step;
- a whole decode step of that model after a 64-token prompt: attention, norms and the output head included. The head is
  stored as int8 weights beside 4-bit layers. The weights are random: the time does not depend on their values.

CPU time of the process for one thread, wall time for more; the best of several turns.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labsupport.lm.config import LlamaConfig
from labsupport.lm.model import Llama
from labsupport.quantization.fast.available import available_kernels
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.rtn import rtn_quantize

SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3
)
PROMPT = 64


def int4_linear(linear: nn.Linear) -> nn.Module:
    return Int4WeightLinear(rtn_quantize(linear.weight, bits=4, group_size=64), linear.bias)


def w8a8_two_passes(linear: nn.Linear) -> nn.Module:
    return DynamicQuantizedLinear.from_float(linear, saturation_free=False)


# name: layers of the blocks, output head
VARIANTS: dict[str, tuple[Callable[[nn.Linear], nn.Module], Callable[[nn.Linear], nn.Module]]] = {
    "int8 weights": (Int8WeightLinear.from_float, Int8WeightLinear.from_float),
    "int4 weights, group 64": (int4_linear, Int8WeightLinear.from_float),
    "W8A8 per token": (DynamicQuantizedLinear.from_float, DynamicQuantizedLinear.from_float),
    "W8A8, weights to ±127": (w8a8_two_passes, w8a8_two_passes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {capability}, {arguments.threads} thread(s), kernels {available_kernels()}")

    float_model = Llama(SMOLLM2).eval()
    models = {"float32": float_model} | {name: quantized(float_model, *make) for name, make in VARIANTS.items()}
    for title, work in (("linear layers", linear_layers), ("whole decode step", decode_step)):
        for batch in (1, 4, 16):
            best = measure({name: work(model, batch) for name, model in models.items()}, clock, arguments.turns)
            base = best["float32"]
            print(f"\n{title}, batch {batch}: float32 {1e3 * base:.1f} ms")
            for name, seconds in best.items():
                if name != "float32":
                    print(f"    {name:<24} {1e3 * seconds:7.1f} ms   {base / seconds:5.2f} x")


def quantized(
    model: Llama, make: Callable[[nn.Linear], nn.Module], make_head: Callable[[nn.Linear], nn.Module]
) -> Llama:
    model = copy.deepcopy(model)
    for block in model.layers:
        for parent in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, linear in list(parent.named_children()):
                setattr(parent, name, make(linear))  # type: ignore[arg-type]
    model.lm_head = make_head(model.lm_head)  # type: ignore[assignment]
    return model


def linear_layers(model: Llama, batch: int) -> Callable[[], None]:
    linears: list[Any] = [layer for name, layer in model.named_modules() if name.endswith("_proj")]
    inputs = {size: torch.randn(batch, size) for size in (SMOLLM2.hidden_size, SMOLLM2.intermediate_size)}

    def walk() -> None:
        for linear in linears:
            linear(inputs[linear.in_features])

    return walk


def decode_step(model: Llama, batch: int) -> Callable[[], None]:
    cache = Slots(batch)
    model(torch.randint(SMOLLM2.vocab_size, (batch, PROMPT)), cache)
    token = torch.randint(SMOLLM2.vocab_size, (batch, 1))

    def step() -> None:
        model(token, cache)
        cache.length = PROMPT  # take the token back, so that every turn does the same work

    return step


class Slots:
    """The leanest cache there is, to weigh little in the measurement: written in place, read without a mask."""

    def __init__(self, batch: int) -> None:
        head_dim = SMOLLM2.hidden_size // SMOLLM2.num_heads
        shape = (SMOLLM2.num_layers, batch, SMOLLM2.num_kv_heads, PROMPT + 1, head_dim)
        self.layers = list(zip(torch.zeros(shape).unbind(), torch.zeros(shape).unbind(), strict=True))
        self.length = 0

    def positions(self, batch: int, time: int) -> Tensor:
        return torch.arange(self.length, self.length + time)[None]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        end = self.length + query.shape[2]
        keys, values = (kept.narrow(2, 0, end) for kept in self.layers[layer_index])
        keys.narrow(2, self.length, query.shape[2]).copy_(key)
        values.narrow(2, self.length, query.shape[2]).copy_(value)
        if self.length == 0:
            return F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
        # one token: the query heads that share a KV head are so many positions of it
        grouped = query.unflatten(1, (SMOLLM2.num_kv_heads, -1)).squeeze(3)
        return F.scaled_dot_product_attention(grouped, keys, values).flatten(1, 2).unsqueeze(2)

    def advance(self, time: int) -> None:
        self.length += time


def measure(works: dict[str, Callable[[], None]], clock: Callable[[], float], turns: int) -> dict[str, float]:
    """Seconds of each: the best of some turns, taken alternately. The first turn, which packs and compiles, is free."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(turns + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


if __name__ == "__main__":
    with torch.inference_mode():
        main()
