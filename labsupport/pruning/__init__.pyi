from .budgets import equal_budgets, train_with_mask
from .iterative import cubic_schedule, fit, geometric_schedule, iterative_prune
from .llama import neuron_scores, prune_llama
from .magnitude import achieved_sparsity, global_magnitude_masks, magnitude_mask
from .model import prune_model
from .pruner import Pruner
from .resize import resize
from .semi_structured import (
    CompressedNM,
    has_sparse_kernels,
    is_nm_sparse,
    nm_mask,
    to_semi_structured,
)
from .sparsegpt import sparsegpt_prune, sparsegpt_prune_together
from .structured import prune_channels
from .wanda import InputNorm, wanda_mask, wanda_scores

__all__ = [
    "CompressedNM",
    "InputNorm",
    "Pruner",
    "achieved_sparsity",
    "cubic_schedule",
    "equal_budgets",
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
    "train_with_mask",
    "wanda_mask",
    "wanda_scores",
]
