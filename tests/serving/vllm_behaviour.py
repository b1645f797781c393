"""What `AsyncLLM` does, in words that hold for any model: vLLM's own and the stand-in of the quick tests are asked the
same, and both must answer as vllm_behaviour.json records.

    python tests/serving/vllm_behaviour.py MODEL [NAME=VALUE ...]    # prints what vLLM does, in vLLM's environment

It imports nothing of the tests: vLLM looks through all modules that are loaded, and stumbles over pytest's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from labsupport.serving.vllm_translation import translated

PROMPT = list(range(65, 75))


async def behaviour(engine: Any, params: Callable[..., Any], kinds: Any) -> dict[str, Any]:
    """``params`` makes vLLM's `SamplingParams`, greedy and past the end of text; ``kinds`` is `RequestOutputKind`."""
    names = iter(range(1000))

    async def outputs(prompt: list[int] = PROMPT, **options: Any) -> list[Any]:
        asked = params(**{"max_tokens": 6, "output_kind": kinds.CUMULATIVE, **options})
        made = engine.generate({"prompt_token_ids": prompt}, asked, f"r{next(names)}")
        return [output async for output in made]

    async def refusal(prompt: list[int] = PROMPT, **options: Any) -> str:
        try:
            await outputs(prompt, **options)
        except Exception as error:
            return type(translated(error)).__name__
        return "none"

    plain = await outputs()
    first, last = plain[0].outputs[0], plain[-1].outputs[0]
    whole = await outputs(output_kind=kinds.FINAL_ONLY)
    scored = (await outputs(logprobs=2, prompt_logprobs=2))[-1]
    chosen = scored.outputs[0]
    third = last.token_ids[2]
    stopped = (await outputs(stop_token_ids=[third]))[-1].outputs[0]

    endless = engine.generate(
        {"prompt_token_ids": PROMPT}, params(max_tokens=400, output_kind=kinds.CUMULATIVE), "to abort"
    )
    seen = [await anext(endless)]
    await engine.abort(["to abort"])
    seen += [output async for output in endless]
    left = engine.generate({"prompt_token_ids": PROMPT}, params(max_tokens=400, output_kind=kinds.CUMULATIVE), "left")
    await anext(left)
    await left.aclose()
    after_leaving = await asyncio.wait_for(outputs(), 60)

    return {
        "its first output has tokens": len(first.token_ids) > 0,
        "outputs are cumulative": all(
            list(b.outputs[0].token_ids)[: len(a.outputs[0].token_ids)] == list(a.outputs[0].token_ids)
            for a, b in pairwise(plain)
        ),
        "only the last is finished": [each.finished for each in plain] == [False] * (len(plain) - 1) + [True],
        "finish reasons before the last": sorted({str(each.outputs[0].finish_reason) for each in plain[:-1]}),
        "finish reason at max_tokens": last.finish_reason,
        "outputs if only the final one is asked for": len(whole),
        "that one's tokens are the same": list(whole[0].outputs[0].token_ids) == list(last.token_ids),
        "kind of num_cached_tokens": type(scored.num_cached_tokens).__name__,
        "log-probabilities are": type(chosen.logprobs[0]).__name__,
        "of the chosen token, too": all(
            token in values for token, values in zip(chosen.token_ids, chosen.logprobs, strict=True)
        ),
        "they have": hasattr(next(iter(chosen.logprobs[0].values())), "logprob"),
        "of the prompt's first token": scored.prompt_logprobs[0],
        "number for the prompt": len(scored.prompt_logprobs),
        "unless they were not asked for": plain[-1].prompt_logprobs,
        "finish reason at a stop token": stopped.finish_reason,
        "the stop token is among the tokens": list(stopped.token_ids)[-1] == third,
        "finish reason after abort": seen[-1].outputs[0].finish_reason if seen[-1].finished else "not finished",
        "it goes on after a client left": after_leaving[-1].finished,
        "max_tokens of 0": await refusal(max_tokens=0),
        "a prompt that is too long": await refusal([65] * 5000),
        "no prompt": await refusal([]),
    }


async def of_vllm(model: str, options: list[str]) -> dict[str, Any]:
    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    from labsupport.serving.options import vllm_options
    from labsupport.serving.vllm_backend import VLLMBackend

    def greedy(**more: Any) -> Any:
        return SamplingParams(temperature=0.0, ignore_eos=True, **more)

    backend = VLLMBackend.of_model(model, 4, max_model_len=512, **vllm_options(options))
    found = await behaviour(backend.engine, greedy, RequestOutputKind)
    await backend.shutdown(1)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(of_vllm(sys.argv[1], sys.argv[2:]))))
