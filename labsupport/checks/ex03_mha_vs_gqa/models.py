"""Published models, and sizes far beyond them."""

from __future__ import annotations

import random
from typing import Any

from labsupport.checks.check import Answer, Check, Inputs
from labsupport.checks.counting import integer, lost_digits, spelled
from labsupport.checks.ex03_mha_vs_gqa.oracles import bytes_per_token, num_parameters
from labsupport.checks.ex03_mha_vs_gqa.sizes import NAMES, PARAMETERS, PER_TOKEN, TOKEN_NAMES
from labsupport.checks.judging import Wrong, returned
from labsupport.checks.plain import Plain, call


class CheckModels(Check):
    name = "check_models"
    needs = (PARAMETERS, PER_TOKEN)
    points = 2
    holds = "right for published models, 71 heads among them, and exact for sizes far beyond them"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        group, kv_heads, head_dim = draw.choice([3, 5, 7]), draw.choice([3, 5, 11]), draw.choice([2, 3]) * 10**15 + 1
        return {
            "Llama 2 7B": [32, 4096, 32, 32],
            "Llama 2 70B": [80, 8192, 64, 8],
            "Mistral 7B": [32, 4096, 32, 8],
            "Falcon 7B": [32, 4544, 71, 1],
            "Falcon 40B": [60, 8192, 128, 8],
            "Qwen2.5 7B": [28, 3584, 28, 4],
            "SmolLM2 135M": [30, 576, 9, 3],
            "a model wider than any": [97, group * kv_heads * head_dim, group * kv_heads, kv_heads],
        }

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            name: {
                PARAMETERS: call(answer[PARAMETERS], **dict(zip(NAMES, sizes[1:], strict=True)))[0],
                PER_TOKEN: call(answer[PER_TOKEN], **dict(zip(TOKEN_NAMES, sizes, strict=False)))[0],
            }
            for name, sizes in inputs.items()
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for name, sizes in inputs.items():
            case = f"{name} ({spelled(TOKEN_NAMES, sizes)})"
            for function, right in ((PARAMETERS, num_parameters(*sizes[1:])), (PER_TOKEN, bytes_per_token(*sizes))):
                value = integer(returned(values[name][function], case), function, case)
                if value != right:
                    why = lost_digits(value, right)
                    if why.startswith("floats"):
                        why = "floats lose digits; divide whole numbers with //, and only where there is no remainder"
                    raise Wrong(
                        f"for {case}, {function} returned {value}, not {right}: "
                        f"{why or 'if a check above fails, let it pass first'}"
                    )


check_models = CheckModels()
