"""The language model of the course: a readable Llama, its text, and how it is loaded, measured and sampled."""

from .activations import layer_inputs
from .cache import Cache, ConcatCache
from .evaluate import perplexity, token_loss
from .generate import generate
from .load import LanguageModel, ModelNotAvailable, is_cached, load_lm, save_lm
from .model import Llama, LlamaConfig
from .text import corpus

__all__ = [
    "Cache",
    "ConcatCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "ModelNotAvailable",
    "corpus",
    "generate",
    "is_cached",
    "layer_inputs",
    "load_lm",
    "perplexity",
    "save_lm",
    "token_loss",
]
