"""What only a real GPU can show: `make gpu`. The same works as on the pretended one (on_a_pretended_gpu.py)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from on_a_pretended_gpu import LONG, WORKS, assert_same, here  # noqa: F401

from labsupport.device import choose_device, choose_dtype, describe
from labsupport.lm import LanguageModel
from labsupport.timing import median_milliseconds

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU: `make gpu`", allow_module_level=True)


@pytest.fixture(scope="module")
def on_gpu(here: LanguageModel) -> LanguageModel:  # noqa: F811
    return replace(here, model=copy.deepcopy(here.model).to("cuda"))


@pytest.mark.parametrize("name", [name for name in WORKS if name not in LONG])
def test_a_gpu_gives_the_numbers_of_a_cpu(name: str, here: LanguageModel, on_gpu: LanguageModel) -> None:  # noqa: F811
    _, work = WORKS[name]
    assert_same(work(on_gpu), work(here))


def test_a_decode_step_waits_at_most_twice(on_gpu: LanguageModel, recwarn: pytest.WarningsRecorder) -> None:
    """By PyTorch's own count."""
    from labsupport.inference import LLMEngine, SamplingParams

    engine = LLMEngine(on_gpu, num_blocks=64)
    engine.add_request("import ", SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True))
    engine.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        recwarn.clear()
        engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in recwarn if "synchronizing" in str(each.message)]) <= 2


def test_the_device_and_its_precision() -> None:
    device = choose_device()
    assert device.type == "cuda" and "GiB" in describe(device)
    bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_dtype(device) == (torch.bfloat16 if bfloat16 else torch.float16)


def test_events_time_the_gpu() -> None:
    x = torch.randn(2048, 2048, device="cuda")
    ms = median_milliseconds({"one": lambda: x @ x, "eight": lambda: [x @ x for _ in range(8)]}, 5, "cuda")
    assert 4 * ms["one"] < ms["eight"] < 16 * ms["one"]
