"""Training a toy: it learns, and an interrupted run ends with the same weights as an uninterrupted one."""

from __future__ import annotations

import pytest
import torch

from labsupport.lm import LlamaConfig, load_lm
from labsupport.lm import train as train_module
from labsupport.lm.train import orthogonalize, sample_batch, train

TOY = LlamaConfig(256, 32, 48, num_layers=1, num_heads=2, num_kv_heads=1)


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    text = "the quick brown fox jumps over the lazy dog. " * 200
    monkeypatch.setattr(train_module, "training_documents", lambda: [text])
    monkeypatch.setattr(train_module, "corpus", lambda part: text[:2000])


def run(folder, steps=30, **options):
    return train(folder, steps, 4, 32, config=TOY, checkpoint_every=10, progress=False, **options)


def test_it_learns_and_what_it_writes_loads(tmp_path):
    report = run(tmp_path, steps=60)
    assert report["evaluation_loss"] < 2.5 < torch.tensor(256.0).log()
    lm = load_lm(tmp_path, verbose=False)
    assert lm.precision == "float16"
    assert not (tmp_path / "tiny.checkpoint.pt").exists()


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    original, count = train_module.training_step, iter(range(100))

    def interrupted(*arguments):
        if next(count) == 17:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train_module, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    assert (tmp_path / "parts" / "tiny.checkpoint.pt").exists()
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    run(tmp_path / "parts")
    whole, parts = (load_lm(tmp_path / name, verbose=False).model.state_dict() for name in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_batches_depend_on_seed_and_step_alone():
    data = torch.arange(10_000)
    assert torch.equal(sample_batch(data, 4, 8, 0, 5), sample_batch(data, 4, 8, 0, 5))
    assert not torch.equal(sample_batch(data, 4, 8, 0, 5), sample_batch(data, 4, 8, 0, 6))
    assert sample_batch(data, 4, 8, 0, 5).shape == (4, 9)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5 and values.max() < 1.3
