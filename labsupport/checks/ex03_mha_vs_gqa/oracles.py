"""The right answers, and what usual mistakes come to."""

from __future__ import annotations

from collections.abc import Callable


def num_parameters(h: int, heads: int, kv_heads: int) -> int:
    return 2 * h * h + 2 * h * kv_heads * (h // heads)


def bytes_per_token(layers: int, h: int, heads: int, kv_heads: int, width: int = 2) -> int:
    return 2 * layers * kv_heads * (h // heads) * width


def _with_bias(h: int, heads: int, kv_heads: int) -> int:
    return num_parameters(h, heads, kv_heads) + 2 * h + 2 * kv_heads * (h // heads)


def _qkv_bias(h: int, heads: int, kv_heads: int) -> int:
    return num_parameters(h, heads, kv_heads) + h + 2 * kv_heads * (h // heads)


def _projections(squares: int, small: int) -> Callable[..., int]:
    """So many projections of the size of q_proj, and so many of the size of k_proj."""
    return lambda h, heads, kv: squares * h * h + small * h * kv * (h // heads)


PARAMETER_MISTAKES: dict[str, Callable[..., int]] = {
    "a projection of hidden_size x hidden_size is missing; there are q_proj and o_proj": (
        lambda h, heads, kv: h * h + 2 * h * kv * (h // heads)
    ),
    "biases are counted; these projections have none": _with_bias,
    "biases of q, k and v are counted; these projections have none": _qkv_bias,
    "k_proj and v_proj are counted as large as q_proj; they have num_kv_heads heads of hidden_size // num_heads": (
        lambda h, heads, kv: 4 * h * h
    ),
    "head_dim is hidden_size // num_heads, not hidden_size // num_kv_heads; sharing keys does not make a head wider": (
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
    "that uses hidden_size as the width of a key; it is hidden_size // num_heads": (
        lambda h, heads, kv: 2 * h * h + 2 * h * h * kv
    ),
    "that is what one of q_proj and o_proj alone costs; add the other three": _projections(1, 0),
    "that is what k_proj alone costs; q_proj, v_proj and o_proj are missing": _projections(0, 1),
    "that is what k_proj and v_proj cost; q_proj and o_proj are missing": _projections(0, 2),
    "that is what q_proj and o_proj cost; k_proj and v_proj are missing": _projections(2, 0),
    "that is what q_proj and k_proj cost; v_proj and o_proj are missing": _projections(1, 1),
    "those are bytes of 16-bit weights; count the weights": lambda h, heads, kv: 2 * num_parameters(h, heads, kv),
    "those are bytes of float32 weights; count the weights": lambda h, heads, kv: 4 * num_parameters(h, heads, kv),
    "that counts outputs; each has a row of hidden_size weights": lambda h, heads, kv: 2 * h + 2 * kv * (h // heads),
    "k_proj has num_kv_heads heads, not num_heads // num_kv_heads": (
        lambda h, heads, kv: 2 * h * h + 2 * h * (heads // kv) * (h // heads)
    ),
}
