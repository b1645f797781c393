"""A pruned model saved to a file and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ConvNet, Residual, images, parameters, settled
from safetensors.torch import load_file, save_file
from torch import nn

from labsupport.pruning.resize import resize
from labsupport.pruning.structured import prune_channels as typed_prune_channels

prune_channels: Any = typed_prune_channels  # Any: the report is an attribute of the model


@pytest.mark.parametrize("build", [ConvNet, Residual])
def test_state_dict_loads_and_the_file_shrinks_as_computed(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = settled(build()), images()
    pruned = prune_channels(model, x, 0.5)
    sizes = {}
    for name, each in (("dense", model), ("pruned", pruned)):
        save_file(each.state_dict(), tmp_path / name)
        header = int.from_bytes((tmp_path / name).read_bytes()[:8], "little") + 8
        sizes[name] = (tmp_path / name).stat().st_size - header
    report = pruned.pruning_report
    assert sizes == {"dense": report.bytes_before, "pruned": report.nbytes}
    assert report.nbytes < 0.5 * report.bytes_before
    pruned.load_state_dict(load_file(tmp_path / "pruned"))  # its own
    again = resize(build(), load_file(tmp_path / "pruned")).eval()
    assert torch.equal(again(x), pruned(x))
    if build is ConvNet:
        assert str(again) == str(pruned)  # sizes in the modules, not in the weights alone
    twice = prune_channels(pruned, x, 0.5)
    assert parameters(twice) < parameters(pruned)


def test_resize_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"got \[3, 4\] for weight \[5, 4\] of a Embedding"):
        resize(nn.Embedding(5, 4), {"weight": torch.ones(3, 4)})
    with pytest.raises(RuntimeError, match="Missing key"):
        resize(nn.Linear(3, 2), {"weight": torch.ones(1, 3)})
