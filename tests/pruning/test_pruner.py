"""Masks: zeros that are still there after every optimizer's steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labsupport.pruning.pruner import Pruner

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd, momentum, weight decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adam, weight decay": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-1, amsgrad=True),
    "adam, one by one": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=False),
    "rmsprop, momentum, centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


class Nested(nn.Module):
    """Modules in modules, one of them used twice, a convolution, and a layer norm that must not be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.body = nn.ModuleDict(
            {"first": nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32)), "second": nn.Linear(32, 32)}
        )
        self.body["again"] = self.body["second"]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["first"](self.stem(x.view(-1, 1, 4, 4)))
        return self.head(F.relu(self.body["again"](F.relu(self.body["second"](F.relu(x))))))


def zeros_of(model: Any) -> tuple[int, int]:
    weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}.values()
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def step(model: nn.Module, optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 16, generator=generator), torch.randint(10, (16,), generator=generator)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_are_still_there_after_the_steps(name: str) -> None:
    """The document masks the gradient before the step: momentum, moments and weight decay bring the weights back, and
    91 % of its promised 90 % are gone. Here after steps before the first pruning, so that the optimizer remembers."""
    torch.manual_seed(0)
    model: Any = Nested()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = Pruner(model, optimizer)
    for seed in range(3):
        step(model, optimizer, seed)
    for target in (0.5, 0.9):
        pruner.prune(target)
        masked = {n: ~m.weight_mask for n, m in pruner.modules.items()}
        before = pruner.modules["head"].weight.detach().clone()
        for seed in range(4):
            step(model, optimizer, seed)
            zeros, total = zeros_of(model)
            assert zeros == round(target * total)
            assert all(not pruner.modules[n].weight[mask].any() for n, mask in masked.items())
            for n, mask in masked.items():  # nothing left in the optimizer's state
                for value in optimizer.state[pruner.modules[n].weight].values():
                    if isinstance(value, Tensor) and value.shape == mask.shape:
                        assert not value[mask].any()
        assert not torch.equal(pruner.modules["head"].weight, before)  # the others learn


def test_masking_gradients_alone_would_lose_the_zeros() -> None:
    """The bug itself, to show that the test above detects it."""
    torch.manual_seed(0)
    model: Any = Nested()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, optimizer, 0)
    weight = model.head.weight
    mask = torch.rand(weight.shape) > 0.9
    weight.data.mul_(mask)
    weight.register_hook(lambda gradient: gradient * mask)
    step(model, optimizer, 1)
    assert int((weight == 0).sum()) < 0.3 * int((~mask).sum())  # still 0 only where the input was always 0


def test_nested_modules_get_masks_of_their_own() -> None:
    """The document registers "body.first.0_mask" on the root: a KeyError for any nested model."""
    model: Any = Nested()
    pruner = Pruner(model)
    assert list(pruner.modules) == ["stem.0", "body.first.0", "body.second", "head"]
    pruner.prune(0.5)
    state = model.state_dict()
    assert {"stem.0.weight_mask", "body.first.0.weight_mask", "head.weight_mask"} <= set(state)
    again = Nested()
    second = Pruner(again)
    again.load_state_dict(state)
    second.apply()
    assert zeros_of(again) == zeros_of(model)
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        second.prune(0.4)  # the masks were copied too


@pytest.mark.parametrize("scope", ["global", "layer"])
@given(sparsities=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_counts_are_exact_and_masks_only_grow(scope: str, sparsities: list[float]) -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Sequential(nn.Linear(5, 3)))
    pruner = Pruner(model)
    before = {name: module.weight_mask.clone() for name, module in pruner.modules.items()}
    for sparsity in sorted(sparsities):
        pruner.prune(sparsity, scope)
        counts = {name: int((module.weight == 0).sum()) for name, module in pruner.modules.items()}
        if scope == "global":
            assert sum(counts.values()) == round(sparsity * 50)
        else:
            assert counts == {"0": round(sparsity * 35), "1.0": round(sparsity * 15)}
        assert pruner.sparsity == sum(counts.values()) / 50
        for name, module in pruner.modules.items():
            assert not (module.weight_mask & ~before[name]).any()
            before[name] = module.weight_mask.clone()


def test_a_living_weight_of_zero_does_not_replace_a_masked_one() -> None:
    model: Any = nn.Linear(10, 1)
    pruner = Pruner(model, modules=[""])
    with torch.no_grad():
        model.weight.copy_(torch.arange(10, 0, -1.0))
    pruner.prune(0.3)
    with torch.no_grad():
        model.weight[0, 0] = 0
    pruner.prune(0.4)
    assert (~model.weight_mask).nonzero()[:, 1].tolist() == [0, 7, 8, 9]


def test_chosen_modules_only() -> None:
    model: Any = Nested()
    Pruner(model, modules=["head"]).prune(1.0)
    assert not model.head.weight.any() and model.stem[0].weight.all()
    for bad in (["body.first.1"], ["nowhere"], []):
        with pytest.raises(ValueError, match="modules must name linear or convolutional layers"):
            Pruner(model, modules=bad)
    with pytest.raises(ValueError, match='scope must be "global" or "layer"'):
        Pruner(model).prune(0.5, "row")


def test_remove_leaves_zeros_and_nothing_else() -> None:
    model, plain = Nested(), Nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer)
    pruner.prune(0.6)
    pruner.remove()
    zeros, total = zeros_of(model)
    assert zeros == round(0.6 * total) and model.state_dict().keys() == plain.state_dict().keys()
    step(model, optimizer, 0)
    assert zeros_of(model)[0] < zeros  # nothing keeps them at zero any more


def test_rewinding_takes_survivors_back_to_their_first_values() -> None:
    """The document records the initial weights "for the lottery ticket" and never reads them."""
    torch.manual_seed(0)
    model: Any = Nested()
    initial = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = Pruner(model, optimizer)
    for seed in range(5):
        step(model, optimizer, seed)
    trained = model.head.weight.detach().abs().clone()
    pruner.prune(0.5, "layer")
    mask = model.head.weight_mask.clone()
    pruner.rewind(initial)
    assert torch.equal(model.head.weight, initial["head.weight"] * mask)
    assert torch.equal(model.head.bias, initial["head.bias"])
    assert not optimizer.state
    # the mask is that of the trained weights, not of the initial ones
    assert trained[mask].min() >= trained[~mask].max()
    assert not torch.equal(mask, initial["head.weight"].abs() > initial["head.weight"].abs().median())
    step(model, optimizer, 9)
    assert pruner.sparsity == 0.5
    with pytest.raises(ValueError, match=r"it lacks \['head.bias'\]"):
        pruner.rewind({name: value for name, value in initial.items() if name != "head.bias"})
