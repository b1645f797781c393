"""What `prune_model` says about its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class LayerReport:
    """num_zeros: counted in the result.
    seconds: wall time of pruning this layer, including its inputs and their statistics, divided equally among layers
        that share them; the forward pass to the next layer counts in the total only.
    error: ‖x (Ŵ - W)ᵀ‖² / ‖x Wᵀ‖² on calibration inputs of this layer, as the method saw them.
    """

    name: str
    shape: tuple[int, ...]
    num_zeros: int
    seconds: float
    error: float

    @property
    def num_weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        return self.num_zeros / self.num_weights


@dataclass
class PruningReport:
    """What pruning did. ``target``: the requested share of zeros; ``sparsity``: the actual one, overall."""

    method: str
    target: float
    pattern: str | None
    scope: str
    seconds: float = 0.0
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        return sum(layer.num_zeros for layer in self.layers) / sum(layer.num_weights for layer in self.layers)

    @property
    def layer_sparsity(self) -> dict[str, float]:
        return {layer.name: layer.sparsity for layer in self.layers}

    @property
    def error(self) -> dict[str, float]:
        """Relative output error of each pruned layer."""
        return {layer.name: layer.error for layer in self.layers}

    def to_frame(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        columns = ("shape", "sparsity", "num_zeros", "error", "seconds")
        rows = [[getattr(layer, column) for column in columns] for layer in self.layers]
        names = pd.Index([layer.name for layer in self.layers], name="layer")
        return pd.DataFrame(rows, columns=list(columns), index=names)

    def __str__(self) -> str:
        how = self.pattern or f"{self.target:.0%} {'of each layer' if self.scope == 'layer' else 'overall'}"
        return f"{self.method}, {how}: {self.sparsity:.4%} zeros in {len(self.layers)} layers, in {self.seconds:.1f} s"
