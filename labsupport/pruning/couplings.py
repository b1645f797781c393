"""Which channels of a network belong together: what a dependency trace (dependencies.py) finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """A traced tensor's labels: ``units[i]`` is the unit of index i along dimension ``dim``."""

    dim: int
    units: Int64[Tensor, " size"]


@dataclass
class Couplings:
    """What `trace` found. Units that are one have the same class.

    slices: for each parameter and buffer, by its name in the state dict: dimension -> unit of each index.
    producers, consumers: for each linear or convolutional layer: units of its outputs; of its inputs.
    fixed: units that must stay, for the model's input or output is made of them, or a norm looks across them.
    """

    slices: dict[str, dict[int, Int64[Tensor, " size"]]] = field(default_factory=dict)
    producers: dict[str, Int64[Tensor, " out"]] = field(default_factory=dict)
    consumers: dict[str, Int64[Tensor, " in"]] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    _parent: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> Int64[Tensor, " count"]:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = unit = self._parent[self._parent[unit]]
        return unit

    def unite(self, first: Tensor, second: Tensor) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parent[self.find(b)] = self.find(a)

    def fix(self, units: Tensor) -> None:
        self.fixed.update(units.tolist())

    @property
    def classes(self) -> Int64[Tensor, " units"]:
        """For each unit, the one that stands for all that are one with it."""
        return torch.tensor([self.find(unit) for unit in range(len(self._parent))], dtype=torch.int64)

    def groups(self, skip: tuple[str, ...] = ()) -> dict[tuple[str, ...], Int64[Tensor, " channels"]]:
        """Names of the layers that make the same channels together -> those channels' classes, where they may go."""
        classes = self.classes
        kept = {self.find(unit) for unit in self.fixed}
        makers: dict[int, list[str]] = {}
        for name, units in self.producers.items():
            for each in dict.fromkeys(classes[units].tolist()):
                makers.setdefault(each, []).append(name)
        groups: dict[tuple[str, ...], list[int]] = {}
        for each, names in makers.items():
            if each not in kept and not set(names) & set(skip):
                groups.setdefault(tuple(names), []).append(each)
        return {names: torch.tensor(members) for names, members in groups.items()}
