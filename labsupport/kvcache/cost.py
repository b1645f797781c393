"""What decoding costs, with and without a cache: FLOPs, bytes, and the least time that both allow.

A FLOP is one operation: a multiply-add counts 2. Every matrix product of the model is counted (q, k, v and o
projections, scores and weighted values, MLP, output head); norms, softmax, rotary embedding and biases are not: they
are linear in the width. For the t-th token, one layer of a Llama with multi-head attention costs
8 h² + 6 h · intermediate + 4 h t FLOPs. Counts are exact integers throughout. Sizes alone are in sizes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch

from labsupport.kvcache.sizes import count_at_least, exact_bytes, kv_bytes_per_token, parameters
from labsupport.lm.config import LlamaConfig
from labsupport.timing import by_wall_clock


@dataclass(frozen=True)
class Cost:
    """FLOPs by where they are spent, and bytes by what is moved. Costs can be added with `+`."""

    projections: int = 0  # q, k, v, o
    attention: int = 0  # scores, and the weighted sum of values
    mlp: int = 0
    head: int = 0
    weight_bytes: int = 0  # read
    kv_bytes: int = 0  # read and written

    @property
    def flops(self) -> int:
        return self.projections + self.attention + self.mlp + self.head

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved."""
        return self.flops / self.bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


def forward_cost(
    config: LlamaConfig,
    new_tokens: int,
    past_tokens: int = 0,
    batch_size: int = 1,
    *,
    cached: bool = True,
    bytes_per_weight: float = 2,
    bytes_per_kv: float = 2,
    all_logits: bool = False,
    causal: bool = True,
) -> Cost:
    """One forward pass over new_tokens of each sequence, which attend to past_tokens in the cache and to each other.

    Each weight is read once a pass, whatever the batch size (of the embedding, only the rows of the tokens). The keys
    and values of the past are read, those of the new tokens written. Activations are left out: they are small beside
    both.

    cached: False keeps no keys and values; then there is no past.
    all_logits: run the output head on every new position, not only on the last one.
    causal: a token attends to itself and to those before it. False counts the full square, which is what kernels
        compute that mask afterwards.

    Raises:
        ValueError: new_tokens or batch_size is below 1, past_tokens is below 0 or given without a cache.
    """
    new, past = count_at_least("new_tokens", new_tokens), count_at_least("past_tokens", past_tokens, 0)
    batch = count_at_least("batch_size", batch_size)
    if past and not cached:
        raise ValueError(f"past_tokens must be 0 where cached is False (nothing holds the past); got {past}")
    assert config.head_dim is not None
    parts, table = parameters(config), config.vocab_size * config.hidden_size
    pairs = new * past + (new * (new + 1) // 2 if causal else new * new)  # (query, key) in one sequence
    rows = min(batch * new, config.vocab_size) * config.hidden_size
    read = sum(parts.values()) - parts["embedding"] - parts["lm_head"] + table + rows
    return Cost(
        projections=2 * batch * new * parts["attention"],
        attention=4 * batch * pairs * config.num_layers * config.num_heads * config.head_dim,
        mlp=2 * batch * new * parts["mlp"],
        head=2 * batch * (new if all_logits else 1) * table,
        weight_bytes=exact_bytes(read, "bytes_per_weight", bytes_per_weight),
        kv_bytes=batch * (past + new) * kv_bytes_per_token(config, bytes_per_kv) if cached else 0,
    )


def next_token_cost(config: LlamaConfig, seq_len: int, batch_size: int = 1, *, cached: bool = True, **options) -> Cost:
    """One step of decoding; seq_len includes the token that goes in. `options` are those of `forward_cost`.

    With a cache, only that token passes through the model; without one, the whole sequence does.
    """
    seq_len = count_at_least("seq_len", seq_len)
    new = 1 if cached else seq_len
    return forward_cost(config, new, seq_len - new if cached else 0, batch_size, cached=cached, **options)


def generation_cost(
    config: LlamaConfig, new_tokens: int, prompt_tokens: int = 1, batch_size: int = 1, *, cached: bool = True, **options
) -> Cost:
    """All passes that generate new_tokens after prompt_tokens. The pass over the prompt gives the first of them.

    `options` are those of `forward_cost`.
    """
    steps = _generation_steps(config, new_tokens, prompt_tokens, batch_size, cached, options)
    return sum(steps, start=Cost())


def _generation_steps(
    config: LlamaConfig, new_tokens: int, prompt_tokens: int, batch_size: int, cached: bool, options: dict
) -> Iterator[Cost]:
    new, prompt = count_at_least("new_tokens", new_tokens), count_at_least("prompt_tokens", prompt_tokens)
    yield forward_cost(config, prompt, 0, batch_size, cached=cached, **options)
    for seq_len in range(prompt + 1, prompt + new):
        yield next_token_cost(config, seq_len, batch_size, cached=cached, **options)


# The least time: the roofline of Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785 -----


@dataclass(frozen=True)
class Machine:
    """What a machine can do per second, measured (`measure_machine`) or taken from its data sheet."""

    bytes_per_second: float
    flops_per_second: float

    def __post_init__(self) -> None:
        for name in ("bytes_per_second", "flops_per_second"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")

    @property
    def ridge(self) -> float:
        """FLOPs per byte at which memory and arithmetic take equally long. Decoding alone, in 16 bits, has about 1."""
        return self.flops_per_second / self.bytes_per_second


@dataclass(frozen=True)
class Estimate:
    """The least time that memory and arithmetic allow. Launching, scheduling and Python come on top."""

    seconds: float  # each pass takes the longer of the two
    memory_seconds: float
    compute_seconds: float

    @property
    def bound(self) -> str:
        """Which of the two takes longer: "memory" or "compute"."""
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def roofline(cost: Cost, machine: Machine) -> Estimate:
    """The time of one pass with this cost, if it reads and computes at the same time."""
    memory, compute = cost.bytes / machine.bytes_per_second, cost.flops / machine.flops_per_second
    return Estimate(max(memory, compute), memory, compute)


def decode_seconds(
    config: LlamaConfig, machine: Machine, seq_len: int, batch_size: int = 1, *, cached: bool = True, **options
) -> Estimate:
    """One step of decoding (`next_token_cost`): max(memory, compute), and which of them binds."""
    return roofline(next_token_cost(config, seq_len, batch_size, cached=cached, **options), machine)


def generation_seconds(
    config: LlamaConfig,
    machine: Machine,
    new_tokens: int,
    prompt_tokens: int = 1,
    batch_size: int = 1,
    *,
    cached: bool = True,
    **options,
) -> Estimate:
    """All passes of a generation (`generation_cost`), each under its own roofline."""
    steps = _generation_steps(config, new_tokens, prompt_tokens, batch_size, cached, options)
    return sum((roofline(step, machine) for step in steps), start=Estimate(0.0, 0.0, 0.0))


def measure_machine(
    working_set_bytes: int = 2**28,
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
    device: torch.device | str = "cpu",
) -> Machine:
    """Bytes per second of matrix times vector, FLOPs per second of a large matrix product: torch on ``device``, of a
    CPU all threads.

    The best of the runs that fit into `seconds`: other work on the machine can only slow a run down.
    working_set_bytes: size of that matrix. For a small model, pass its `weight_bytes`: whatever fits a processor's
    cache is read several times as fast as main memory.
    """
    rows = max(1, count_at_least("working_set_bytes", working_set_bytes) // (1024 * dtype.itemsize))
    size = 1024 if torch.device(device).type == "cpu" else 4096  # a GPU has done with 1024 before it is really at work
    matrix, vector = (torch.ones(*shape, dtype=dtype, device=device) for shape in ((rows, 1024), (1024,)))
    square = torch.ones(size, size, dtype=dtype, device=device)
    with torch.no_grad():
        reading = _fastest(lambda: torch.mv(matrix, vector), seconds / 2)
        multiplying = _fastest(lambda: torch.mm(square, square), seconds / 2)
    return Machine(matrix.nbytes / reading, 2 * size**3 / multiplying)


def _fastest(function: Callable[[], object], seconds: float) -> float:
    """The shortest of at least two runs, after a warm-up."""
    function()
    runs: list[float] = []
    while len(runs) < 2 or sum(runs) < seconds:
        runs.append(by_wall_clock(function) / 1e3)
    return min(runs)
