from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from labsupport.distillation import recover as module
from labsupport.distillation.distiller import Distiller
from labsupport.distillation.recover import Recipe, prune_for, recover, stored_recovery
from labsupport.lm import LanguageModel, corpus, load_lm, perplexity, save_lm

RECIPE = Recipe(0.3, steps=6, batch_size=4, learning_rate=1e-3, windows=2, warmup=1)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def test_the_pruned_model_comes_closer_to_the_untouched_one(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    pruned = prune_for(lm, RECIPE)
    assert pruned.config.intermediate_size == 384  # 0.7 of 512, to a multiple of 64
    text = torch.tensor(lm.tokenizer.encode(corpus("evaluation")))[:1024]
    lost = perplexity(pruned, text)
    seen = []
    recover(lm, pruned, RECIPE, after_step=lambda distiller: seen.append(len(distiller.history)))
    assert perplexity(lm.model, text) < perplexity(pruned, text) < lost
    assert seen == list(range(RECIPE.steps)) and RECIPE.tokens == 6 * 4 * 128
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


def test_an_interrupted_recovery_ends_with_the_same_weights(lm: LanguageModel, tmp_path: Path) -> None:
    whole = recover(lm, prune_for(lm, RECIPE), RECIPE)

    def interrupt(distiller: Distiller) -> None:
        if len(distiller.history) == 4:
            raise TimeoutError

    path = tmp_path / "training.checkpoint.pt"
    with pytest.raises(TimeoutError):
        recover(lm, prune_for(lm, RECIPE), RECIPE, path, checkpoint_every=2, after_step=interrupt)
    assert path.is_file()
    resumed = recover(lm, prune_for(lm, RECIPE), RECIPE, path, checkpoint_every=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not path.exists()


def test_what_the_script_left_is_found_when_it_is_complete(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
    (tmp_path / module.STORED).mkdir()
    assert stored_recovery() is None
    pruned = prune_for(lm, RECIPE)
    save_lm(dataclasses.replace(lm, name=module.STORED, model=pruned), tmp_path / module.STORED)
    found = stored_recovery()
    assert found is not None and found.model.config.intermediate_size == 384
