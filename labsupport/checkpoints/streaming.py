"""A model compressed layer by layer: in memory are one layer, the embedding, the head and the calibration's hidden
states, never the whole model. What is done is kept on disk, so that an interrupted run goes on where it was.

Layout of the work folder, which the caller removes once the result is written:

    run.json                   what is being made: checksums of the model and the calibration, method, options
    layer-00000.safetensors    each finished layer, its tensors as format ``labsupport`` has them; reports as metadata
    hidden-00001.safetensors   what the next layer reads, as it was when the layer before was finished
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import labsupport
from labsupport.checkpoints import exact
from labsupport.files import replacing
from labsupport.lm import LanguageModel
from labsupport.lm.by_layer import LayersOnDisk, assembled
from labsupport.lm.calibrate import NUM_STAGES, HiddenStates
from labsupport.lm.folder import sha256, write_json
from labsupport.lm.model import DecoderLayer, Llama
from labsupport.lm.weights_file import weight_files
from labsupport.progress import progress_bar
from labsupport.pruning.model import PruningRun
from labsupport.pruning.report import LayerReport as PrunedLayer
from labsupport.pruning.report import PruningReport
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.methods import MethodOptions
from labsupport.quantization.model import QuantizationRun
from labsupport.quantization.report import LayerReport as QuantizedLayer
from labsupport.quantization.report import QuantizationReport

Run = QuantizationRun | PruningRun


def quantize_by_layer(
    lm: LanguageModel, windows: Sequence[Tensor], method: str, options: dict[str, Any], work: Path,
    progress: bool = True,
) -> Llama:  # fmt: skip
    """What `quantize_model` returns, bit for bit; its layers lie in ``work`` and are read when they are asked for.

    lm: of `labsupport.lm.by_layer.open_folder`. work: a new folder, or that of an interrupted run, which goes on.

    Raises:
        ValueError: as `quantize_model`; ``work`` holds a run of another model, calibration or other options, or is in
            use.
    """
    given = {"symmetric": False, "act_order": False, "static_groups": None, "damping": 0.01, "clip": True} | options
    smooth = given.pop("smooth", False)
    run = QuantizationRun.of(lm.model, list(windows), method, MethodOptions(**given), smooth)
    folder = _WorkFolder(work, lm)
    reports = folder.work_through(
        run, method, _made(lm, windows, {"method": method, "smooth": smooth} | given), progress
    )
    result: Any = folder.model()
    layers = [QuantizedLayer(**each) for each in reports]
    before = sum(each.numel() * each.element_size() for each in lm.model.parameters())
    saved = sum(each.bytes_before - each.bytes_after for each in layers)
    result.quantization_report = QuantizationReport(method, run.bits, before, before - saved, folder.seconds, layers)
    return result


def prune_by_layer(
    lm: LanguageModel, windows: Sequence[Tensor], method: str, sparsity: float, pattern: str | None, work: Path,
    progress: bool = True,
) -> Llama:  # fmt: skip
    """What `prune_model` returns, bit for bit; for the rest see `quantize_by_layer`."""
    run = PruningRun.of(lm.model, list(windows), method, sparsity, pattern)
    folder = _WorkFolder(work, lm)
    made = _made(lm, windows, {"method": method, "sparsity": sparsity, "pattern": pattern})
    layers = [PrunedLayer(**each) for each in folder.work_through(run, method, made, progress)]
    result: Any = folder.model()
    result.pruning_report = PruningReport(method, sparsity, pattern, "layer", folder.seconds, layers)
    return result


@dataclass
class _WorkFolder:
    path: Path
    lm: LanguageModel
    seconds: float = 0.0

    def work_through(self, run: Run, name: str, made: dict[str, Any], progress: bool) -> list[dict[str, Any]]:
        """Finish all layers that are not; the reports of all. ``name``: of the progress bar."""
        begun = time.perf_counter()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._begin(made)
                start, count = self._restore(run.states), self.lm.model.config.num_layers
                total, done = NUM_STAGES * count, NUM_STAGES * start
                with progress_bar(None, name, "stage", progress, total=total, done=done) as bar:
                    for index in range(start, count):
                        layer = self.lm.model.layers[index]
                        reports = run.layer(index, layer, bar.update)
                        self._keep(index, layer, reports, run.states)
                    self.seconds = time.perf_counter() - begun
        except Timeout:
            raise ValueError(f"{self.path} is in use by another run of the same command") from None
        kept = [each for index in range(count) for each in self._about(index)["reports"]]
        return [each | {"shape": tuple(each["shape"])} for each in kept]

    def model(self) -> Llama:
        return assembled(self.lm.model, LayersOnDisk(self.lm.model.config, self._read))

    def _begin(self, made: dict[str, Any]) -> None:
        about = self.path / "run.json"
        before = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else made
        wrong = [name for name in made | before if made.get(name) != before.get(name)]
        if wrong:
            raise ValueError(
                f"{self.path} holds an unfinished run with {_said(before, wrong)}; this one has {_said(made, wrong)}: "
                f"finish that one with its own options, or delete the folder"
            )
        write_json(about, made)

    def _restore(self, states: list[HiddenStates]) -> int:
        """Bring ``states`` to where an earlier run was interrupted; the layer that comes next."""
        count = self.lm.model.config.num_layers
        done = next((index for index in range(count) if not self._layer(index).is_file()), count)
        if done == count:
            return count
        # interrupted between a layer and what the next one reads: that layer is made again
        start = next((index for index in (done, done - 1) if self._hidden(index).is_file()), 0)
        if start > 0:
            with safe_open(self._hidden(start), "pt") as file:
                for name, batch in _named(states).items():
                    batch.copy_(file.get_tensor(name))
        return start

    def _keep(self, index: int, layer: nn.Module, reports: Sequence[Any], states: list[HiddenStates]) -> None:
        """The layer first: a file of hidden states says that all layers before it are there."""
        integers = {name: each for name, each in layer.named_modules() if isinstance(each, IntegerLinear)}
        about = {
            "layers": {name: exact.about_layer(name, each) for name, each in integers.items()},
            "reports": [asdict(each) for each in reports],
        }
        tensors = {name: value.contiguous().clone() for name, value in layer.state_dict().items()}
        with replacing(self._layer(index)) as temporary:
            save_file(tensors, temporary, metadata={"about": json.dumps(about)})
        if index + 1 < self.lm.model.config.num_layers:
            with replacing(self._hidden(index + 1)) as temporary:
                save_file(_named(states), temporary)
        self._hidden(index).unlink(missing_ok=True)

    def _read(self, index: int) -> DecoderLayer:
        like = self.lm.model.embed_tokens.weight
        with torch.device("meta"):
            layer = DecoderLayer(self.lm.model.config, index)
        weights = load_file(self._layer(index))
        integers = exact.read_layers(None, weights, {"layers": self._about(index)["layers"]})
        layer.load_state_dict(weights, strict=False, assign=True)
        for name, module in integers.items():
            parent, _, child = name.rpartition(".")
            setattr(layer.get_submodule(parent), child, module)
        return layer.to(like.device).eval()

    def _about(self, index: int) -> dict[str, Any]:
        with safe_open(self._layer(index), "pt") as file:
            return json.loads(file.metadata()["about"])

    def _layer(self, index: int) -> Path:
        return self.path / f"layer-{index:05}.safetensors"

    def _hidden(self, index: int) -> Path:
        return self.path / f"hidden-{index:05}.safetensors"


def _named(states: list[HiddenStates]) -> dict[str, Tensor]:
    return {f"{i}.{j}": batch for i, each in enumerate(states) for j, batch in enumerate(each.batches)}


def _made(lm: LanguageModel, windows: Sequence[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    assert lm.folder is not None
    tokens = hashlib.sha256(b"".join(window.cpu().numpy().tobytes() for window in windows)).hexdigest()
    model = {path.name: sha256(path) for path in (lm.folder / "config.json", *weight_files(lm.folder))}
    return {"labsupport": labsupport.__version__, "model": model, "calibration": tokens} | options


def _said(run: dict[str, Any], names: list[str]) -> str:
    told = {"model": "another model", "calibration": "other calibration tokens"}
    return ", ".join(told.get(name) or f"{name} {run.get(name)}" for name in names)
