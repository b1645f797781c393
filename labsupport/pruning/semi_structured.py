"""N:M sparsity: of every m neighbours in a row of a weight exactly n stay, so that hardware can skip the others.

Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378): sparse tensor cores (NVIDIA, Ampere
and later) take 2:4, stored as the two kept values of each group and a 2-bit index for each. Any score may choose
the weights to keep: magnitude here, Wanda's and SparseGPT's in their files.

PyTorch multiplies such weights on CUDA only (`torch.sparse.to_sparse_semi_structured`). On a CPU, 2:4 saves bytes on
disk and nothing else: the masked weight is multiplied like any dense one, in the same time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from labsupport.numerics.checks import check_finite
from labsupport.numerics.packing import pack, unpack
from labsupport.pruning.magnitude import keep_largest


@torch.no_grad()
def nm_mask(scores: Float[Tensor, "*rows in"], n: int = 2, m: int = 4) -> Bool[Tensor, "*rows in"]:
    """Keep (True) the n highest scores of every m neighbours of the last dimension; of equal ones the later stays.

    scores: importance of each weight; ``weight.abs()`` gives magnitude pruning.

    Raises:
        ValueError: not 1 <= n <= m; a last dimension that is not a multiple of m; scores not finite.
    """
    check_nm(n, m, scores.shape)
    check_finite(scores, "scores")
    groups = scores.detach().unflatten(-1, (-1, m))
    return keep_largest(groups.to(torch.promote_types(groups.dtype, torch.float32)), m - n).flatten(-2)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """ "2:4" -> (2, 4): n kept of m. ValueError unless it is two numbers with 1 <= n <= m."""
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if match is None:
        raise ValueError(f'pattern must look like "2:4" (2 kept of every 4), got {pattern!r}')
    n, m = int(match[1]), int(match[2])
    check_nm(n, m)
    return n, m


def is_nm_sparse(weight: Float[Tensor, "*rows in"], n: int = 2, m: int = 4) -> bool:
    """Whether no group of m neighbours holds more than n non-zeros (fewer are fine: hardware stores a zero)."""
    check_nm(n, m, weight.shape)
    return bool(((weight != 0).unflatten(-1, (-1, m)).sum(-1) <= n).all())


@dataclass(frozen=True)
class CompressedNM:
    """An N:M weight as stored: the kept values in order, and their packed positions within their groups.

    A position takes ceil(log2 m) bits. 2:4 in 16 bits: 8 + 1 bits per weight instead of 16, a factor of 1.78 and not 2;
    a 2:4 weight of 4-bit values would take 2 + 1 bits instead of 4.
    """

    values: Float[Tensor, "out kept"]
    indices: UInt8[Tensor, "out bytes"]
    n: int
    m: int

    @classmethod
    @torch.no_grad()
    def from_dense(cls, weight: Float[Tensor, "out in"], n: int = 2, m: int = 4) -> CompressedNM:
        """Lossless. ValueError if a group has more than n non-zeros, or m is not 3 to 256."""
        if not 3 <= m <= 256:
            raise ValueError(f"m must be 3 to 256 for packed indices, got {m}")
        if not is_nm_sparse(weight, n, m):
            raise ValueError(f"weight must have at most {n} non-zeros in every {m} neighbours (nm_mask chooses them)")
        kept = nm_mask((weight != 0).float(), n, m)  # a group with fewer non-zeros stores a zero
        rows, columns = weight.shape
        places = torch.arange(m, dtype=torch.uint8, device=weight.device).repeat(rows, columns // m)
        return cls(weight.detach()[kept].view(rows, -1), pack(places[kept].view(rows, -1), _index_bits(m)), n, m)

    def to_dense(self) -> Float[Tensor, "out in"]:
        rows, kept = self.values.shape
        places = unpack(self.indices, _index_bits(self.m), kept).long().view(rows, -1, self.n)
        dense = self.values.new_zeros(rows, places.shape[1], self.m)
        return dense.scatter_(-1, places, self.values.view(rows, -1, self.n)).flatten(1)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.indices.nbytes


def has_sparse_kernels(device: torch.device | str) -> bool:
    """Whether this device multiplies 2:4 weights faster than dense ones: CUDA of compute capability 8.0 or later."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def to_semi_structured(weight: Float[Tensor, "out in"]) -> Tensor:
    """The 2:4 weight in the layout that sparse tensor cores multiply: assign it (as a parameter) to an nn.Linear.

    Raises:
        RuntimeError: the weight is not on a CUDA device that has the kernels.
        ValueError: the weight is not 2:4 sparse.
    """
    if not has_sparse_kernels(weight.device):
        raise RuntimeError(
            f"2:4 kernels exist on CUDA only (compute capability 8.0 or later); the weight is on {weight.device}. "
            f"Keep it dense there: the zeros are correct, they just save no time"
        )
    if not is_nm_sparse(weight, 2, 4):
        raise ValueError("weight must have at most 2 non-zeros in every 4 neighbours (nm_mask chooses them)")
    return torch.sparse.to_sparse_semi_structured(weight)


def check_nm(n: int, m: int, shape: Sequence[int] | None = None) -> None:
    """ValueError unless 1 <= n <= m, and the last dimension of ``shape`` (if given) is a multiple of m."""
    if any(isinstance(x, bool) or not isinstance(x, int) for x in (n, m)) or not 1 <= n <= m:
        raise ValueError(f"n of m must be integers with 1 <= n <= m, got n={n!r}, m={m!r}")
    if shape is not None and (len(shape) == 0 or shape[-1] % m):
        raise ValueError(f"the last dimension must be a multiple of m = {m}, got shape {list(shape)}")


def _index_bits(m: int) -> int:
    return max(1, math.ceil(math.log2(m)))
