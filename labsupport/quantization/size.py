"""How large is a model? Parameters from the architecture, bytes from parameters, and what else takes memory.

Units are never mixed: a GiB is 2**30 bytes (what nvidia-smi and free count in), a GB is 10**9 (what disks and model
cards count in); they differ by 7 %. Every printed size names both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from labsupport.lm.config import LlamaConfig

GIB, GB = 2**30, 10**9


# The values of each model's config.json, and the parameter count of its safetensors files on the model card:
# https://huggingface.co/<name>
PUBLISHED_CONFIGS = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(32000, 4096, 11008, 32, 32, 32, tie_embeddings=False),  # 6,738,415,616
    "meta-llama/Llama-2-13b-hf": LlamaConfig(32000, 5120, 13824, 40, 40, 40, tie_embeddings=False),  # 13,015,864,320
    "meta-llama/Llama-2-70b-hf": LlamaConfig(32000, 8192, 28672, 80, 64, 8, tie_embeddings=False),  # 68,976,648,192
    "meta-llama/Meta-Llama-3-8B": LlamaConfig(128256, 4096, 14336, 32, 32, 8, tie_embeddings=False),  # 8,030,261,248
    "HuggingFaceTB/SmolLM2-135M": LlamaConfig(49152, 576, 1536, 30, 9, 3),  # 134,515,008
}


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes, by what they hold. `str()` gives a table with both units."""

    weights: int = 0
    gradients: int = 0
    master_weights: int = 0
    adam_m: int = 0
    adam_v: int = 0
    activations: int = 0
    kv_cache: int = 0

    @property
    def total(self) -> int:
        return sum(self.breakdown().values())

    def breakdown(self) -> dict[str, int]:
        """The parts that are not empty."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: size for name, size in parts.items() if size}

    def __str__(self) -> str:
        rows = {**self.breakdown(), "total": self.total}
        return "\n".join(f"{name.replace('_', ' '):<15} {format_bytes(size)}" for name, size in rows.items())


def count_parameters(config: LlamaConfig) -> int:
    """All parameters; a tied output head counts once."""
    return sum(parameter_breakdown(config).values())


def parameter_breakdown(config: LlamaConfig) -> dict[str, int]:
    """Parameters of the embedding, attention, MLP, norms and output head, over all layers."""
    h, (q_size, kv_size) = config.hidden_size, _attention_sizes(config)
    return {
        "embedding": config.vocab_size * h,
        "attention": config.num_layers * (2 * h * q_size + 2 * h * kv_size),
        "mlp": config.num_layers * 3 * h * config.intermediate_size,
        "norms": (2 * config.num_layers + 1) * h,
        "lm_head": 0 if config.tie_embeddings else config.vocab_size * h,
    }


def training_bytes_per_parameter(precision: str = "mixed") -> dict[str, int]:
    """Adam. "mixed": 16-bit weights and gradients, float32 masters and moments (Rajbhandari et al. 2020, ZeRO,
    https://arxiv.org/abs/1910.02054, section 3.1): 16 bytes. "float32": 16 as well, with no separate masters.

    This holds whatever precision the model is *served* in: integer weights cannot take gradient steps, so "4 times the
    INT4 model" measures nothing.
    """
    if precision == "mixed":
        return {"weights": 2, "gradients": 2, "master_weights": 4, "adam_m": 4, "adam_v": 4}
    if precision == "float32":
        return {"weights": 4, "gradients": 4, "adam_m": 4, "adam_v": 4}
    raise ValueError(f"precision must be 'mixed' or 'float32' (integer weights cannot be trained), got {precision!r}")


def training_memory(
    config: LlamaConfig, batch_size: int = 1, seq_len: int = 2048, precision: str = "mixed", recompute: bool = False
) -> MemoryBudget:
    """Bytes to train every parameter with Adam on batch_size sequences at a time, on one device.

    Activations are what backward needs, with an attention kernel that never stores the scores: for each token and layer
    6 vectors of hidden size (inputs, normalized values and outputs of two norms; fused norms save 2 of the 6), 2 of q's
    size, 2 of kv's and 4 of the intermediate size; then the last norm, and the logits in float32. recompute: only each
    layer's input is kept (gradient checkpointing), and the activations of one layer at a time.
    """
    tokens, width = batch_size * seq_len, 4 if precision == "float32" else 2
    count = count_parameters(config)
    sizes = {name: count * size for name, size in training_bytes_per_parameter(precision).items()}
    q_size, kv_size = _attention_sizes(config)
    layer = tokens * width * (6 * config.hidden_size + 2 * q_size + 2 * kv_size + 4 * config.intermediate_size)
    layers = config.num_layers * tokens * width * config.hidden_size + layer if recompute else config.num_layers * layer
    head = tokens * (3 * width * config.hidden_size + 4 * config.vocab_size)
    return MemoryBudget(**sizes, activations=layers + head)


def inference_memory(
    config: LlamaConfig,
    batch_size: int = 1,
    seq_len: int = 2048,
    bits_per_weight: float = 16,
    kv_bits: float = 16,
    other_bits: float = 16,
    tokens_per_step: int = 512,
) -> MemoryBudget:
    """Bytes to serve batch_size sequences of seq_len tokens: weights, KV cache, and activations of one layer.

    bits_per_weight: of the linear layers in the blocks, metadata included (`quantized_bits_per_weight`).
    other_bits: of embedding, norms and head, which weight quantization usually leaves as they are.
    tokens_per_step: maximum number of tokens in one forward pass (a chunk of prefill); 16-bit activations at the
        layer's widest point, and float32 logits of one position per sequence.
    """
    parts = parameter_breakdown(config)
    linear = parts["attention"] + parts["mlp"]
    tokens = max(batch_size, min(tokens_per_step, batch_size * seq_len))
    _, kv_size = _attention_sizes(config)
    return MemoryBudget(
        weights=math.ceil((linear * bits_per_weight + (sum(parts.values()) - linear) * other_bits) / 8),
        activations=tokens * 2 * (2 * config.hidden_size + 2 * config.intermediate_size)
        + batch_size * config.vocab_size * 4,
        kv_cache=math.ceil(2 * config.num_layers * kv_size * batch_size * seq_len * kv_bits / 8),
    )


def quantized_bits_per_weight(
    bits: int,
    group_size: int | None,
    in_features: int | None = None,
    scale_bits: int = 16,
    zero_point_bits: int | None = None,
) -> float:
    """Bits per weight, with its share of the group's scale and zero point: 4 bits in groups of 128 are 4.156.

    in_features: the length of a row; needed if the group is the whole row (group_size None), and makes the result exact
        if the last group is smaller.
    zero_point_bits: by default as many as the code has; 0 for a scheme that stores none.
    """
    if group_size is None and in_features is None:
        raise ValueError("group_size None means one group per row: in_features must give the length of a row, got None")
    row = in_features or group_size
    assert row is not None
    groups = math.ceil(row / (group_size or row))
    return bits + groups * (scale_bits + (bits if zero_point_bits is None else zero_point_bits)) / row


def format_bytes(num_bytes: float) -> str:
    """'256.96 GiB (275.91 GB)', or MiB, KiB and bytes for smaller sizes."""
    for power, binary, decimal in ((3, "GiB", "GB"), (2, "MiB", "MB"), (1, "KiB", "kB")):
        if num_bytes >= 1024**power:
            return f"{num_bytes / 1024**power:.2f} {binary} ({num_bytes / 1000**power:.2f} {decimal})"
    return f"{num_bytes:.0f} bytes"


def _attention_sizes(config: LlamaConfig) -> tuple[int, int]:
    """Width of all query heads, and of all key heads (the same as of all value heads)."""
    assert config.head_dim is not None
    return config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
