from .classifier import accuracy, compress_digits, confidence_interval, digits_gain, digits_pruning, train_digits
from .digits import Digits, load_digits, mlp
from .distiller import Distiller
from .losses import FeatureLoss, distillation_loss, distribution_divergence
from .measuring import CompressionTable, memory_bytes, stored_bytes
from .pipeline import QUICK, compress_lm, small_student
from .targets import next_token_pairs, sequence_targets

__all__ = [
    "QUICK",
    "CompressionTable",
    "Digits",
    "Distiller",
    "FeatureLoss",
    "accuracy",
    "compress_digits",
    "compress_lm",
    "confidence_interval",
    "digits_gain",
    "digits_pruning",
    "distillation_loss",
    "distribution_divergence",
    "load_digits",
    "memory_bytes",
    "mlp",
    "next_token_pairs",
    "sequence_targets",
    "small_student",
    "stored_bytes",
    "train_digits",
]
