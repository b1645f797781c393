"""A Llama, readable from top to bottom: the language model that every chapter compresses and serves.

The parts are those of Touvron et al. 2023 (arXiv 2302.13971): RMSNorm before each block, rotary position embedding,
a SwiGLU feed-forward network, and (from Llama 2 on, arXiv 2307.09288) grouped-query attention. Models of other names
differ by little: each difference is a field of `LlamaConfig` (config.py), off by default, and a line or two below.
Module names are Hugging Face's without the leading ``model.``, so published checkpoints load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.cache import Cache, visible
from labsupport.lm.config import LlamaConfig
from labsupport.lm.rope import RopeScaling, rotary_frequencies

Rotary = tuple[Tensor, Tensor]  # cosine and sine, each [batch or 1, 1, time, head_dim]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        mean_square = x.float().square().mean(-1, keepdim=True)  # in float32: half precision overflows
        return (x * torch.rsqrt(mean_square + self.eps)).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: LlamaConfig, layer_index: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.layer_index, self.window = layer_index, config.window(layer_index)
        self.turned, self.query_scale = layer_index not in config.unturned_layers, config.query_scale
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Float[Tensor, "batch time hidden"], rotary: Rotary, cache: Cache | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        query = self.q_proj(x).view(heads).transpose(1, 2)  # [batch, num_heads, time, head_dim]
        key = self.k_proj(x).view(heads).transpose(1, 2)  # [batch, num_kv_heads, time, head_dim]
        value = self.v_proj(x).view(heads).transpose(1, 2)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.turned:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if self.query_scale != 1:
            query = query * self.query_scale
        if cache is not None:
            context = cache.attend(self.layer_index, query, key, value, self.window)
        elif self.window is None or self.window >= time:
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            mask = visible(torch.arange(time, device=x.device), time, self.window)
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return self.o_proj(context.transpose(1, 2).reshape(batch, time, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.residual_multiplier = config.residual_multiplier

    def forward(
        self, x: Float[Tensor, "batch time hidden"], rotary: Rotary, cache: Cache | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache) * self.residual_multiplier
        return x + self.mlp(self.post_attention_layernorm(x)) * self.residual_multiplier


class Llama(nn.Module):
    """``model(tokens)`` gives logits; ``model(tokens, cache)`` continues from what the cache holds."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, tokens: Int64[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position.

        Raises:
            ValueError: ``tokens`` is not an int64 [batch, time], lies on another device, or holds an id outside the
                vocabulary.
        """
        return self.lm_head(self.hidden_states(tokens, cache)).float()

    def hidden_states(
        self, tokens: Int64[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        """The inputs of ``lm_head``. To get the logits of one position only, select it here, before the costly head."""
        x, rotary = self.embed(tokens, cache)
        for layer in self.layers:
            x = layer(x, rotary, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x) / self.config.logits_scaling

    def embed(
        self, tokens: Int64[Tensor, "batch time"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "batch time hidden"], Rotary]:
        """The input of the first layer, and the rotation of each position. Layer-by-layer algorithms start here."""
        check_tokens(tokens, self.config.vocab_size, self.embed_tokens.weight.device)
        batch, time = tokens.shape
        x = self.embed_tokens(tokens) * self.config.embedding_multiplier
        positions = torch.arange(time, device=x.device)[None] if cache is None else cache.positions(batch, time)
        return x, self.rotary(positions.to(x.device, non_blocking=True), x.dtype)

    def rotary(self, positions: Int64[Tensor, "batch time"], dtype: torch.dtype = torch.float32) -> Rotary:
        """Cosine and sine for each position; see `rotary_embedding`."""
        config = self.config
        assert config.head_dim is not None
        return rotary_embedding(positions, config.head_dim, config.rope_theta, dtype, config.rope_scaling)


def rotary_embedding(
    positions: Int64[Tensor, "batch time"],
    head_dim: int,
    theta: float,
    dtype: torch.dtype = torch.float32,
    scaling: RopeScaling | None = None,
) -> Rotary:
    """Cosine and sine of m · theta_i at each position m, where theta_i = theta^(-2i / head_dim), 0 <= i < head_dim/2.

    These are the angles of RoFormer (Su et al. 2021, arXiv 2104.09864, section 3.2.2), in float32. Both halves of a
    head have the same. ``scaling`` changes theta_i for long contexts (`labsupport.lm.rope`).
    """
    dynamic = scaling is not None and scaling.kind == "dynamic" and positions.numel() > 0
    length = int(positions.max()) + 1 if dynamic else 0
    frequencies = rotary_frequencies(head_dim, theta, scaling, length, positions.device)
    angles = positions[..., None].float() * frequencies  # [batch, time, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)[:, None]  # [batch, 1, time, head_dim]: one for all heads
    sharpened = 1.0 if scaling is None else scaling.attention_factor
    return (angles.cos() * sharpened).to(dtype), (angles.sin() * sharpened).to(dtype)


def rotate(x: Float[Tensor, "batch heads time head_dim"], rotary: Rotary) -> Float[Tensor, "batch heads time head_dim"]:
    """R x = x cos + rotate_half(x) sin (RoFormer, eq. 34): each pair of channels is turned by its angle.

    The paper pairs the channels 2i and 2i + 1; Llama checkpoints of Hugging Face pair i and i + head_dim/2.
    """
    cos, sin = rotary
    return (x * cos).addcmul_(rotate_half(x), sin)


def rotate_half(x: Float[Tensor, "... head_dim"]) -> Float[Tensor, "... head_dim"]:
    """(a, b) -> (-b, a), where a and b are the two halves of a head: a quarter turn of each pair."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def check_tokens(tokens: Tensor, vocab_size: int, device: torch.device) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            f"tokens must be int64 with shape [batch, time]; got {tokens.dtype} with shape {tuple(tokens.shape)}"
        )
    if tokens.device != device:
        raise ValueError(f"tokens must be where the model is, on {device}; got them on {tokens.device}: tokens.to(...)")
    if tokens.device.type != "cpu" or tokens.numel() == 0:  # looking at values would make a GPU wait
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens must lie in 0..{vocab_size - 1}; got values from {low} to {high}")
