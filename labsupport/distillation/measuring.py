"""The table of a chain of compressions: bytes on disk and in memory, milliseconds, and quality, one row for each model.

Bytes are those of a real safetensors file, and those of the tensors in memory. Factors state the precision of their
baseline: 4-bit weights are 8 times smaller than float32 and 4 times smaller than float16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.timing import median_milliseconds

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class CompressionTable:
    """One row for each model. ``models`` holds them by name, for a closer look."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, model: nn.Module, precision: str, quality: dict[str, float]) -> None:
        self.models[name] = model
        self.rows.append(
            {
                "model": name,
                "weights": precision,
                "parameters": count_weights(model),
                "zeros": count_weights(model, zeros=True) / count_weights(model),
                "bytes_on_disk": stored_bytes(model),
                "bytes_in_memory": memory_bytes(model),
                **quality,
            }
        )

    def time(self, works: dict[str, Callable[[nn.Module], Callable[[], object]]], repeats: int) -> None:
        """Median milliseconds of each task, with the models taking turns."""
        for column, prepare in works.items():
            measured = median_milliseconds({name: prepare(model) for name, model in self.models.items()}, repeats)
            for row in self.rows:
                row[column] = measured[row["model"]]

    def to_frame(self) -> pd.DataFrame:
        """Times smaller than float32 and float16: the first row's weights at that precision, over each row's file."""
        import pandas as pd

        frame = pd.DataFrame(self.rows).set_index("model")
        teacher = 4 * frame["parameters"].iloc[0]  # bytes of the bare float32 weights, without the file's header
        frame.insert(5, "times_smaller_than_float32", teacher / frame["bytes_on_disk"])
        frame.insert(6, "times_smaller_than_float16", teacher / 2 / frame["bytes_on_disk"])
        return frame


def stored_bytes(model: nn.Module) -> int:
    """Size of a safetensors file of all that the model stores, tied weights once; the file is written, and removed."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in _distinct(model.state_dict()).items()}, path)
        return path.stat().st_size


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = _distinct(dict([*model.named_parameters(), *model.named_buffers()]))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count_weights(model: nn.Module, zeros: bool = False) -> int:
    """Weights and biases, in whatever form they are stored; or how many of them are zero."""
    total = 0
    for module in model.modules():
        own: dict[str, Tensor | None] = dict(module._parameters)
        if isinstance(module, IntegerLinear):
            own = {"weight": module.dequantize(), "bias": module.bias}
        if isinstance(module, nn.Linear) and any(module.weight is other for other in _embeddings(model)):
            del own["weight"]  # a tied head
        total += sum(int((t == 0).sum()) if zeros else t.numel() for t in own.values() if t is not None)
    return total


def _embeddings(model: nn.Module) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]


def _distinct(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without second names of the same tensor."""
    found: dict[Any, str] = {}
    for name, tensor in tensors.items():
        found.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() and not tensor.is_meta else name, name)
    return {name: tensors[name] for name in found.values()}
