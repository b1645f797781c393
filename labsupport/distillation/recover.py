"""Prune neurons, then learn from the untouched model: the recovery of the last chapter's capstone, as one recipe.

The untouched model is the only teacher (alpha = 1, temperature 1): the student learns to answer as it does, not to fit
the text. With the text's own tokens as labels it would also adapt to this kind of text, which the untouched model was
never given a chance to do. Training reads the calibration text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from labsupport.distillation.distiller import Distiller
from labsupport.distillation.pipeline import training_pairs
from labsupport.lm import LanguageModel, Llama, calibration_windows, corpus, load_lm
from labsupport.lm.download import cache_root
from labsupport.pruning import prune_llama

STORED = "smollm2-135m-recovered"  # the folder below the cache that benchmarks/recover_smollm2.py writes


@dataclass(frozen=True)
class Recipe:
    """What is pruned, and how it is recovered.

    Attributes:
        mlp_sparsity: share of the neurons that each MLP loses; what is left is a multiple of 64.
        steps, batch_size, seq_len: of training; ``batch_size`` windows of ``seq_len`` tokens a step.
        windows: of 512 tokens, on which the neurons' importance is measured.
    """

    mlp_sparsity: float
    steps: int
    batch_size: int
    learning_rate: float
    seq_len: int = 128
    warmup: int = 2
    windows: int = 8
    seed: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens the training reads."""
        return self.steps * self.batch_size * self.seq_len


TINY = Recipe(0.3, steps=20, batch_size=8, learning_rate=1e-3)  # seconds
SMOLLM2 = Recipe(1 / 6, steps=132, batch_size=4, learning_rate=1e-4, warmup=8)  # its calibration text, read once


def prune_for(lm: LanguageModel, recipe: Recipe) -> Llama:
    """The pruned model before its recovery; ``lm`` is not changed."""
    windows = calibration_windows(lm, recipe.windows)
    return prune_llama(lm.model, windows, mlp_sparsity=recipe.mlp_sparsity, multiple_of=64, progress=False)


def recover(
    lm: LanguageModel,
    pruned: Llama,
    recipe: Recipe,
    checkpoint: Path | None = None,
    checkpoint_every: int = 10,
    after_step: Callable[[Distiller], object] | None = None,
) -> Llama:
    """Train ``pruned`` in place on the outputs of ``lm``, and return it.

    checkpoint: a file for the state of the training; an interrupted run goes on from there, and ends with the same
        weights as one that was not interrupted.
    after_step: called with the distiller after each step.
    """
    distiller = Distiller(
        pruned, lm.model, temperature=1.0, alpha=1.0, batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate, warmup=recipe.warmup, seed=recipe.seed,
    )  # fmt: skip

    def stepped(_: nn.Module) -> None:
        if after_step is not None:
            after_step(distiller)

    pairs = training_pairs(torch.tensor(lm.tokenizer.encode(corpus("calibration"))), recipe.seq_len)
    distiller.train(
        pairs, recipe.steps, checkpoint=checkpoint, checkpoint_every=checkpoint_every, after_step=stepped,
        progress=False,
    )  # fmt: skip
    return pruned


def stored_recovery() -> LanguageModel | None:
    """SmolLM2 as benchmarks/recover_smollm2.py left it in the cache; None if it has not been run to its end here."""
    folder = cache_root() / STORED
    return load_lm(folder, verbose=False) if (folder / "config.json").is_file() else None
