"""What `quantize_model` says about its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class LayerReport:
    """error: ‖x (Ŵ - W)ᵀ‖² / ‖x Wᵀ‖² on calibration inputs of this layer, as the method saw them."""

    name: str
    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    error: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / (self.shape[0] * self.shape[1])


@dataclass
class QuantizationReport:
    """What quantization did. Bytes are those of the whole model, embedding and head included (tied weights once)."""

    method: str
    bits: int
    bytes_before: int
    bytes_after: int = 0
    seconds: float = 0.0
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Over all quantized layers: codes, scales, zero points, indices."""
        weights = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return 8 * sum(layer.bytes_after for layer in self.layers) / weights

    @property
    def error(self) -> dict[str, float]:
        """Relative output error of each quantized layer."""
        return {layer.name: layer.error for layer in self.layers}

    def to_frame(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        columns = ["shape", "bits_per_weight", "bytes_before", "bytes_after", "error"]
        rows = [[getattr(layer, column) for column in columns] for layer in self.layers]
        names = pd.Index([layer.name for layer in self.layers], name="layer")
        return pd.DataFrame(rows, columns=columns, index=names)

    def __str__(self) -> str:
        return (
            f"{self.method}: {self.bits_per_weight:.3f} bits a weight in {len(self.layers)} layers; model "
            f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB in {self.seconds:.1f} s"
        )
