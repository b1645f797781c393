"""How many bytes the cache and the weights take, and the sizes of published models.

Results are exact integers, in bytes: 2**30 of them are a GiB, 10**9 a GB (`labsupport.quantization.size.format_bytes`).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from fractions import Fraction

from labsupport.lm.config import LlamaConfig
from labsupport.quantization.size import PUBLISHED_CONFIGS, parameter_breakdown


def kv_cache_bytes(
    batch_size: int,
    seq_len: int,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    bytes_per_element: float = 2,
) -> int:
    """Bytes of the keys and values of batch_size sequences of seq_len tokens, in all layers.

    The factor 2 is for K and V. Key-value heads count, not query heads.
    bytes_per_element: 4 float32, 2 float16 and bfloat16, 1 int8, 0.5 int4 (without scales).

    Raises:
        ValueError: a size is not an integer, or is below 1 (batch_size and seq_len: below 0).
    """
    tokens = count_at_least("batch_size", batch_size, 0) * count_at_least("seq_len", seq_len, 0)
    heads = count_at_least("num_layers", num_layers) * count_at_least("num_kv_heads", num_kv_heads)
    elements = 2 * tokens * heads * count_at_least("head_dim", head_dim)
    return exact_bytes(elements, "bytes_per_element", bytes_per_element)


def kv_bytes_per_token(config: LlamaConfig, bytes_per_element: float = 2) -> int:
    """Bytes that each token of a sequence takes in the cache, over all layers."""
    assert config.head_dim is not None
    return kv_cache_bytes(1, 1, config.num_layers, config.num_kv_heads, config.head_dim, bytes_per_element)


def weight_bytes(config: LlamaConfig, bytes_per_weight: float = 2) -> int:
    """Bytes of all parameters; a tied output head counts once."""
    return exact_bytes(sum(parameters(config).values()), "bytes_per_weight", bytes_per_weight)


# Models ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderConfig(LlamaConfig):
    """Sizes of a decoder that is not quite a Llama. For counting only: `Llama` implements none of these differences."""

    mlp_matrices: int = 3  # 2: up and down, no gate
    norms_per_layer: int = 2
    norm_bias: bool = False  # LayerNorm has one, RMSNorm has none
    qkv_bias: bool = False


def parameters(config: LlamaConfig) -> dict[str, int]:
    """Parameters of the embedding, attention (without biases), MLP, norms, biases and output head (0 if tied)."""
    parts = {**parameter_breakdown(config), "biases": 0}
    if isinstance(config, DecoderConfig):
        assert config.head_dim is not None
        heads = config.num_heads + 2 * config.num_kv_heads
        norms = config.num_layers * config.norms_per_layer + 1
        parts["mlp"] = parts["mlp"] // 3 * config.mlp_matrices
        parts["norms"] = norms * config.hidden_size * (2 if config.norm_bias else 1)
        parts["biases"] = config.num_layers * heads * config.head_dim if config.qkv_bias else 0
    return parts


@dataclass(frozen=True)
class Preset:
    """A published model: its sizes, where they are documented, and its published number of parameters."""

    hub_name: str
    config: LlamaConfig
    published_parameters: int

    @property
    def source(self) -> str:
        """The model card; config.json beside it holds the sizes, the safetensors files the number of parameters."""
        return f"https://huggingface.co/{self.hub_name}"


def _listed(hub_name: str, published_parameters: int) -> Preset:
    return Preset(hub_name, PUBLISHED_CONFIGS[hub_name], published_parameters)


# Of Llama 2 only the 34B and 70B models have grouped queries (Touvron et al. 2023, arXiv 2307.09288, appendix A.2.1).
# Mistral 7B is version 0.3: version 0.1 attends to the last 4096 tokens only, so its cache stops growing there.
# Falcon (Almazrouei et al. 2023, arXiv 2311.16867): multi-query in the 7B, but 8 key-value heads in the 40B; its output
# head is tied to the embedding, and counts once.
PRESETS = {
    "Llama 2 7B": _listed("meta-llama/Llama-2-7b-hf", 6_738_415_616),
    "Llama 2 13B": _listed("meta-llama/Llama-2-13b-hf", 13_015_864_320),
    "Llama 2 70B": _listed("meta-llama/Llama-2-70b-hf", 68_976_648_192),
    "Llama 3 8B": _listed("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
    "Mistral 7B": Preset(
        "mistralai/Mistral-7B-v0.3",
        LlamaConfig(32768, 4096, 14336, 32, 32, 8, max_positions=32768, tie_embeddings=False),
        7_248_023_552,
    ),
    "Falcon 7B": Preset(
        "tiiuae/falcon-7b",
        DecoderConfig(65024, 4544, 18176, 32, 71, 1, mlp_matrices=2, norms_per_layer=1, norm_bias=True),
        6_921_720_704,
    ),
    "Falcon 40B": Preset(
        "tiiuae/falcon-40b",
        DecoderConfig(65024, 8192, 32768, 60, 128, 8, mlp_matrices=2, norm_bias=True),
        41_303_293_952,
    ),
    "SmolLM2 135M": _listed("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    "Qwen2.5 7B": Preset(
        "Qwen/Qwen2.5-7B",
        DecoderConfig(152064, 3584, 18944, 28, 28, 4, max_positions=131072, tie_embeddings=False, qkv_bias=True),
        7_615_616_512,
    ),
}


def count_at_least(name: str, value: int, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer; got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}")
    return number


def exact_bytes(elements: int, name: str, bytes_each: float) -> int:
    """Rounded up, and exact: a float has 53 bits, and the bytes of a data center's caches need more."""
    if not 0 < bytes_each < math.inf:
        raise ValueError(f"{name} must be a positive number such as 4, 2, 1 or 0.5; got {bytes_each!r}")
    return math.ceil(elements * Fraction(bytes_each))
