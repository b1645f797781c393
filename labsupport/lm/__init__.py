"""The language model of the course: a readable Llama, its text, and how it is loaded, measured and sampled."""

from labsupport.lm.activations import layer_inputs
from labsupport.lm.cache import Cache, ConcatCache
from labsupport.lm.config import LlamaConfig
from labsupport.lm.download import ModelNotAvailable, is_cached
from labsupport.lm.evaluate import perplexity, token_loss
from labsupport.lm.folder import LanguageModel, save_lm
from labsupport.lm.generate import generate
from labsupport.lm.load import load_lm
from labsupport.lm.model import Llama
from labsupport.lm.optional import measured_or_recorded, optional_smollm2
from labsupport.lm.protocol import calibration_windows, evaluation_tokens
from labsupport.lm.text import corpus

__all__ = [
    "Cache",
    "ConcatCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "ModelNotAvailable",
    "calibration_windows",
    "corpus",
    "evaluation_tokens",
    "generate",
    "is_cached",
    "layer_inputs",
    "load_lm",
    "measured_or_recorded",
    "optional_smollm2",
    "perplexity",
    "save_lm",
    "token_loss",
]
