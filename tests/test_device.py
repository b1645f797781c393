from __future__ import annotations

import pytest
import torch

from labsupport import device


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_mps_works", lambda: False)
    assert device.choose_device() == device.choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(device, "_mps_works", lambda: True)
    assert device.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device() == torch.device("cuda")
    assert device.choose_device("cpu") == torch.device("cpu")  # what is asked for goes first


@pytest.mark.parametrize("name", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used: "):
        device.choose_device(name)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_the_precision_follows_the_gpu(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.choose_dtype("cuda") == device.choose_dtype("cuda", "auto") == dtype
    assert device.choose_dtype("cuda", "float32") == torch.float32
    assert device.choose_dtype("cpu") == device.choose_dtype("mps") == torch.float32
    with pytest.raises(ValueError, match="dtype must be auto, float32, float16 or bfloat16; got 'int8'"):
        device.choose_dtype("cpu", "int8")


def test_the_device_is_described() -> None:
    assert device.describe("cpu").startswith("cpu: ") and "thread" in device.describe("cpu")
    device.synchronize()  # nothing to wait for
