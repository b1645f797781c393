"""Chapter 2, distillation: a small model learns from a large one. Names below are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.distillation.classifier import (
        accuracy,
        compress_digits,
        confidence_interval,
        digits_gain,
        train_digits,
    )
    from labsupport.distillation.digits import Digits, cnn, load_digits, mlp, shift_images
    from labsupport.distillation.distiller import Distiller
    from labsupport.distillation.losses import (
        FeatureLoss,
        distillation_loss,
        distribution_divergence,
        next_token_pairs,
        sequence_targets,
    )
    from labsupport.distillation.measuring import CompressionTable, memory_bytes, stored_bytes
    from labsupport.distillation.pipeline import QUICK, compress_lm, small_student

_SUBMODULES = {
    "classifier": ("accuracy", "compress_digits", "confidence_interval", "digits_gain", "train_digits"),
    "digits": ("Digits", "cnn", "load_digits", "mlp", "shift_images"),
    "distiller": ("Distiller",),
    "losses": (
        "FeatureLoss",
        "distillation_loss",
        "distribution_divergence",
        "next_token_pairs",
        "sequence_targets",
    ),
    "measuring": ("CompressionTable", "memory_bytes", "stored_bytes"),
    "pipeline": ("QUICK", "compress_lm", "small_student"),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "QUICK",
    "CompressionTable",
    "Digits",
    "Distiller",
    "FeatureLoss",
    "accuracy",
    "cnn",
    "compress_digits",
    "compress_lm",
    "confidence_interval",
    "digits_gain",
    "distillation_loss",
    "distribution_divergence",
    "load_digits",
    "memory_bytes",
    "mlp",
    "next_token_pairs",
    "sequence_targets",
    "shift_images",
    "small_student",
    "stored_bytes",
    "train_digits",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
