"""Chapter 2, pruning: one algorithm a file. Names below are imported when first used, so this import is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.pruning.iterative import (
        Pruner,
        cubic_schedule,
        fit,
        geometric_schedule,
        iterative_prune,
    )
    from labsupport.pruning.llama import neuron_scores, prune_llama
    from labsupport.pruning.magnitude import achieved_sparsity, global_magnitude_masks, magnitude_mask
    from labsupport.pruning.model import prune_model
    from labsupport.pruning.semi_structured import (
        CompressedNM,
        compressed_nbytes,
        has_sparse_kernels,
        is_nm_sparse,
        nm_mask,
        to_semi_structured,
    )
    from labsupport.pruning.sparsegpt import sparsegpt_prune, sparsegpt_prune_together
    from labsupport.pruning.structured import prune_channels, resize
    from labsupport.pruning.wanda import InputNorm, wanda_mask, wanda_scores

_SUBMODULES = {
    "iterative": ("Pruner", "cubic_schedule", "fit", "geometric_schedule", "iterative_prune"),
    "llama": ("neuron_scores", "prune_llama"),
    "magnitude": ("achieved_sparsity", "global_magnitude_masks", "magnitude_mask"),
    "model": ("prune_model",),
    "semi_structured": (
        "CompressedNM",
        "compressed_nbytes",
        "has_sparse_kernels",
        "is_nm_sparse",
        "nm_mask",
        "to_semi_structured",
    ),
    "sparsegpt": ("sparsegpt_prune", "sparsegpt_prune_together"),
    "structured": ("prune_channels", "resize"),
    "wanda": ("InputNorm", "wanda_mask", "wanda_scores"),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "CompressedNM",
    "InputNorm",
    "Pruner",
    "achieved_sparsity",
    "compressed_nbytes",
    "cubic_schedule",
    "fit",
    "geometric_schedule",
    "global_magnitude_masks",
    "has_sparse_kernels",
    "is_nm_sparse",
    "iterative_prune",
    "magnitude_mask",
    "neuron_scores",
    "nm_mask",
    "prune_channels",
    "prune_llama",
    "prune_model",
    "resize",
    "sparsegpt_prune",
    "sparsegpt_prune_together",
    "to_semi_structured",
    "wanda_mask",
    "wanda_scores",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
