"""Chapter 2, distillation: a small model learns from a large one. Names below are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labsupport.distillation.digits import Digits, cnn, load_digits, mlp, shift_images
    from labsupport.distillation.distiller import Distiller
    from labsupport.distillation.losses import (
        FeatureLoss,
        distillation_loss,
        distribution_divergence,
        next_token_pairs,
        sequence_targets,
    )
    from labsupport.distillation.pipeline import (
        CompressionTable,
        compress_digits,
        compress_lm,
        digits_gain,
        small_student,
        stored_bytes,
    )

_SUBMODULES = {
    "digits": ("Digits", "cnn", "load_digits", "mlp", "shift_images"),
    "distiller": ("Distiller",),
    "losses": (
        "FeatureLoss",
        "distillation_loss",
        "distribution_divergence",
        "next_token_pairs",
        "sequence_targets",
    ),
    "pipeline": ("CompressionTable", "compress_digits", "compress_lm", "digits_gain", "small_student", "stored_bytes"),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "CompressionTable",
    "Digits",
    "Distiller",
    "FeatureLoss",
    "cnn",
    "compress_digits",
    "compress_lm",
    "digits_gain",
    "distillation_loss",
    "distribution_divergence",
    "load_digits",
    "mlp",
    "next_token_pairs",
    "sequence_targets",
    "shift_images",
    "small_student",
    "stored_bytes",
]


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_SUBMODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
