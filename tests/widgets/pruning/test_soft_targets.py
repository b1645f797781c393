"""Temperature: the numbers in the text are those of softmax and gradient."""

from __future__ import annotations

import pytest
import torch
from pictures import (
    assert_every_control_changes_picture_and_text_and_back,
)

from labsupport.distillation import distillation_loss
from labsupport.widgets import Live
from labsupport.widgets import pruning as widgets


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS, STUDENT, LABELS = floats(6, 10, seed=4) * 4, floats(6, 10, seed=5), torch.arange(6)


@pytest.fixture(scope="module")
def live() -> Live:
    return widgets.temperature(floats(6, 64).sigmoid(), LOGITS, STUDENT, LABELS)


def test_every_control_changes_picture_and_text_and_back(live):
    assert_every_control_changes_picture_and_text_and_back(live)


def test_temperature_states_softmax_and_gradient(live):
    live.set(image=3, t=8.0)
    p = (LOGITS[3] / 8).softmax(0)
    assert f"A 3 at T = 8: the teacher says {int(p.argmax())} with " in live.text
    student = STUDENT.clone().requires_grad_()
    distillation_loss(student, LOGITS, LABELS, 8.0, 1.0).backward()
    size = 6 * float(student.grad.norm(dim=1).mean())
    assert f"{size:.3g} with T², {size / 64:.2g} without" in live.text
