"""The sizes of a Llama, and how models of other names differ from it."""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.lm.rope import RopeScaling


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama. They are checked here, so that an error does not surface in a matmul."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int | None = None  # None: hidden_size / num_heads
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True
    # How models of other names differ from a plain Llama
    rope_scaling: RopeScaling | None = None  # Llama 3.1 and later, long contexts
    qkv_bias: bool = False  # Qwen 2
    output_bias: bool = False  # of attention, where attention_bias is true
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen 3: an RMSNorm over each head of queries and keys, before they are turned
    unturned_layers: tuple[int, ...] = ()  # SmolLM3: layers without rotary positions
    sliding_window: int | None = None  # Mistral: a token sees this many, itself included; None: all before it
    windowed_layers: tuple[int, ...] | None = None  # those that the window holds for; None: all
    embedding_multiplier: float = 1.0  # Granite: four factors that other models do not have
    attention_multiplier: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0  # logits are divided by it

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads; got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size must be a multiple of num_heads if head_dim is not given; "
                    f"got {self.hidden_size} and {self.num_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.head_dim is None or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding turns pairs); got {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, or None; got {self.sliding_window}")

    def window(self, layer_index: int) -> int | None:
        """How many tokens a token sees in this layer, itself included; None: all before it."""
        windowed = self.windowed_layers is None or layer_index in self.windowed_layers
        return self.sliding_window if windowed else None

    @property
    def longest_text(self) -> int:
        """Tokens that positions are known for: "dynamic" scaling stretches them as a text grows, by its factor."""
        if self.rope_scaling is not None and self.rope_scaling.kind == "dynamic":
            return int(self.max_positions * self.rope_scaling.factor)
        return self.max_positions

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by, so that scores / sqrt(head_dim) are those of ``attention_multiplier``."""
        assert self.head_dim is not None
        return 1.0 if self.attention_multiplier is None else self.attention_multiplier * self.head_dim**0.5
