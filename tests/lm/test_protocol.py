from __future__ import annotations

import pytest
import torch

from labsupport.lm import calibration_windows, corpus, evaluation_tokens, load_lm
from labsupport.lm.folder import LanguageModel


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_lm("tiny", verbose=False)


def test_evaluation_tokens_are_the_first_eight_windows_of_the_evaluation_text(tiny: LanguageModel) -> None:
    tokens = evaluation_tokens(tiny)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (8 * 512,)
    assert tiny.tokenizer.decode(tokens.tolist())[:4000] == corpus("evaluation")[:4000]


def test_calibration_windows_are_the_first_sixteen_of_the_calibration_text(tiny: LanguageModel) -> None:
    windows = calibration_windows(tiny)
    assert [len(window) for window in windows] == [512] * 16
    assert tiny.tokenizer.decode(torch.cat(windows).tolist())[:8000] == corpus("calibration")[:8000]


def test_another_number_of_windows_begins_with_the_same_tokens(tiny: LanguageModel) -> None:
    assert torch.equal(evaluation_tokens(tiny, 2, 100), evaluation_tokens(tiny)[:200])
    assert torch.equal(calibration_windows(tiny, 1, 64)[0], calibration_windows(tiny)[0][:64])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "windows must be at least 1; got 0"), ((1, 0), "seq_len must be at least 1; got 0"),
     ((10**6,), r"windows \* seq_len must be at most \d+, the evaluation text; got 512000000")],
)  # fmt: skip
def test_bad_input_is_named(tiny: LanguageModel, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation_tokens(tiny, *arguments)
