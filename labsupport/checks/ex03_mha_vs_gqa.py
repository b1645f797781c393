"""Exercise 3: what grouped queries save, in parameters and in cache.

Both answers are whole numbers with one right value. With head_dim = hidden_size / num_heads, q_proj and o_proj are
[hidden, hidden], k_proj and v_proj [num_kv_heads * head_dim, hidden]. Heads are drawn as powers of two where a formula
is checked; published models with 71 heads, and sizes beyond 2**53, come last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from labsupport.checks import Check, Exercise
from labsupport.checks.counting import integer, judge_counts, spelled
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]

PARAMETERS = "attention_parameters"
NAMES = ("hidden_size", "num_heads", "num_kv_heads")
PER_TOKEN = "kv_bytes_per_token"
TOKEN_NAMES = ("num_layers", *NAMES, "bytes_per_element")


def _heads(draw: random.Random, grouped: bool) -> list[int]:
    """[hidden_size, num_heads, num_kv_heads]; head_dim is no number of heads, and no power of two."""
    heads = draw.choice([8, 16, 32, 64])
    kv_heads = heads // draw.choice([size for size in (2, 4) if grouped] or [1])
    return [heads * draw.choice([24, 48, 80, 96]), heads, kv_heads]


class CheckMultiHead(Check):
    name = "check_multi_head"
    needs = (PARAMETERS,)
    points = 2
    holds = "with as many key-value heads as heads, four projections of hidden_size x hidden_size"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        cases = [_heads(draw, grouped=False) for _ in range(3)] + [[4096, 32, 32], [64, 1, 1]]
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PARAMETERS], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        text = "one of the four projections is missing: q_proj, k_proj, v_proj, o_proj"  # here all are alike
        mistakes = {text: lambda h, heads, kv: 3 * h * h, **PARAMETER_MISTAKES}
        judge_counts(PARAMETERS, inputs, values, _parameters, mistakes)


class CheckGrouped(Check):
    name = "check_grouped"
    needs = (PARAMETERS,)
    points = 3
    holds = "with fewer key-value heads k_proj and v_proj shrink, q_proj and o_proj stay"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        cases = [_heads(draw, grouped=True) for _ in range(3)]
        hidden, heads, _ = _heads(draw, grouped=True)
        cases += [[8192, 64, 8], [hidden, heads, 1]]  # Llama 2 70B, and multi-query
        return {spelled(NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PARAMETERS], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(PARAMETERS, inputs, values, _parameters, PARAMETER_MISTAKES)


class CheckCache(Check):
    name = "check_cache"
    needs = (PER_TOKEN,)
    points = 3
    holds = "a token keeps a key and a value of head_dim elements for each key-value head of each layer"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        cases = [[draw.choice([11, 13, 23]), *_heads(draw, grouped=True), width] for width in (2, 4, 1)]
        cases.append([draw.choice([31, 37]), *_heads(draw, grouped=True)])  # 2 bytes an element by default
        hidden, heads, _ = _heads(draw, grouped=True)
        cases += [[7, hidden, heads, 1, 2], [32, 4096, 32, 32, 2]]
        return {spelled(TOKEN_NAMES, case): case for case in cases}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer[PER_TOKEN], *arguments)[0] for case, arguments in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        judge_counts(PER_TOKEN, inputs, values, _per_token, CACHE_MISTAKES)


class CheckModels(Check):
    name = "check_models"
    needs = (PARAMETERS, PER_TOKEN)
    points = 2
    holds = "right for published models, 71 heads among them, and exact for sizes far beyond them"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        group, kv_heads, head_dim = draw.choice([3, 5, 7]), draw.choice([3, 5, 11]), draw.choice([2, 3]) * 10**9 + 1
        return {
            "Llama 2 7B": [32, 4096, 32, 32],
            "Llama 2 70B": [80, 8192, 64, 8],
            "Mistral 7B": [32, 4096, 32, 8],
            "Falcon 7B": [32, 4544, 71, 1],
            "Falcon 40B": [60, 8192, 128, 8],
            "Qwen2.5 7B": [28, 3584, 28, 4],
            "SmolLM2 135M": [30, 576, 9, 3],
            "a model wider than any": [10**9 + 7, group * kv_heads * head_dim, group * kv_heads, kv_heads],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            name: {
                PARAMETERS: call(answer[PARAMETERS], **dict(zip(NAMES, sizes[1:], strict=True)))[0],
                PER_TOKEN: call(answer[PER_TOKEN], **dict(zip(TOKEN_NAMES, sizes, strict=False)))[0],
            }
            for name, sizes in inputs.items()
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for name, sizes in inputs.items():
            case = f"{name} ({spelled(TOKEN_NAMES, sizes)})"
            for function, right in ((PARAMETERS, _parameters(*sizes[1:])), (PER_TOKEN, _per_token(*sizes))):
                value = integer(returned(values[name][function], case), function, case)
                if value != right:
                    near = abs(value - right) * 10**6 <= right
                    hint = "floats lose digits; divide whole numbers, with //, and only where nothing is left over"
                    raise Wrong(f"for {case}, {function} returned {value}, not {right}{f': {hint}' if near else ''}")


# Oracles, and what goes wrong -----------------------------------------------------------------------------------------


def _parameters(h: int, heads: int, kv_heads: int) -> int:
    return 2 * h * h + 2 * h * kv_heads * (h // heads)


def _per_token(layers: int, h: int, heads: int, kv_heads: int, width: int = 2) -> int:
    return 2 * layers * kv_heads * (h // heads) * width


def _with_bias(h: int, heads: int, kv_heads: int) -> int:
    return _parameters(h, heads, kv_heads) + 2 * h + 2 * kv_heads * (h // heads)


def _qkv_bias(h: int, heads: int, kv_heads: int) -> int:
    return _parameters(h, heads, kv_heads) + h + 2 * kv_heads * (h // heads)


PARAMETER_MISTAKES: dict[str, Callable[..., int]] = {
    "a projection of hidden_size x hidden_size is missing; there are q_proj and o_proj": (
        lambda h, heads, kv: h * h + 2 * h * kv * (h // heads)
    ),
    "biases are counted; these projections have none": _with_bias,
    "biases of q, k and v are counted; these projections have none": _qkv_bias,
    "k_proj and v_proj are counted as large as q_proj; they have num_kv_heads heads of hidden_size // num_heads": (
        lambda h, heads, kv: 4 * h * h
    ),
    "head_dim is hidden_size // num_heads, not hidden_size // num_kv_heads; sharing keys makes no head wider": (
        lambda h, heads, kv: 2 * h * heads * (h // kv) + 2 * h * h
    ),
    "only one of k_proj and v_proj is counted": lambda h, heads, kv: 2 * h * h + h * kv * (h // heads),
    "o_proj is counted as small as k_proj; it reads all query heads: hidden_size x hidden_size": (
        lambda h, heads, kv: h * h + 3 * h * kv * (h // heads)
    ),
    "q_proj and o_proj are counted as small as k_proj; only keys and values are shared": (
        lambda h, heads, kv: 4 * h * kv * (h // heads)
    ),
    "k_proj has num_kv_heads * head_dim outputs, not num_kv_heads": lambda h, heads, kv: 2 * h * h + 2 * h * kv,
    "k_proj has num_kv_heads heads, not one": lambda h, heads, kv: 2 * h * h + 2 * h * (h // heads),
    "that gives each head hidden_size x hidden_size; all heads share one such matrix, head_dim rows for each": (
        lambda h, heads, kv: h * h * (2 * heads + 2 * kv)
    ),
    "that is the share of one head; count all of them": lambda h, heads, kv: 4 * h * (h // heads),
    "that takes hidden_size for the width of a key; it is hidden_size // num_heads": (
        lambda h, heads, kv: 2 * h * h + 2 * h * h * kv
    ),
}

CACHE_MISTAKES: dict[str, Callable[..., int]] = {
    "a factor of 2 is missing, since keys and values are both kept": lambda n, h, q, kv, w=2: n * kv * (h // q) * w,
    "that is one layer; each of num_layers has keys and values of its own": lambda n, h, q, kv, w=2: (
        2 * kv * (h // q) * w
    ),
    "that is what all num_heads heads would keep; there are num_kv_heads, each hidden_size // num_heads wide": (
        lambda n, h, q, kv, w=2: 2 * n * h * w
    ),
    "that takes hidden_size for the width of a head; it is hidden_size // num_heads": (
        lambda n, h, q, kv, w=2: 2 * n * h * kv * w
    ),
    "that is one head; each of num_kv_heads has keys and values of its own": lambda n, h, q, kv, w=2: (
        2 * n * (h // q) * w
    ),
    "head_dim is missing: a key is a vector of hidden_size // num_heads elements": lambda n, h, q, kv, w=2: (
        2 * n * kv * w
    ),
    "those are elements, not bytes; multiply by bytes_per_element": lambda n, h, q, kv, w=2: 2 * n * kv * (h // q),
    "that takes 2 bytes for every element; use bytes_per_element": lambda n, h, q, kv, w=2: 4 * n * kv * (h // q),
    "that takes 4 bytes for every element; use bytes_per_element": lambda n, h, q, kv, w=2: 8 * n * kv * (h // q),
    "without bytes_per_element an element takes 2 bytes (float16); your default is 4": (
        lambda n, h, q, kv, w=4: 2 * n * kv * (h // q) * w
    ),
    "those are bits; there are 8 in a byte": lambda n, h, q, kv, w=2: 16 * n * kv * (h // q) * w,
    "queries are not kept, only keys and values": lambda n, h, q, kv, w=2: n * (h + 2 * kv * (h // q)) * w,
    "that gives a head hidden_size // num_kv_heads elements for each query head": (
        lambda n, h, q, kv, w=2: 2 * n * q * (h // kv) * w
    ),
}

check_multi_head, check_grouped = CheckMultiHead(), CheckGrouped()
check_cache, check_models = CheckCache(), CheckModels()

EXERCISE = Exercise(
    name="ex03_mha_vs_gqa",
    checks=(check_multi_head, check_grouped, check_cache, check_models),
)
