"""Prompts and their continuations."""

from __future__ import annotations

import random

WORDS = ("cache", "block", "token", "prompt", "batch", "step", "engine", "layer", "café", "naïve", "señor", "张量")


def draw_answers(draw: random.Random, *sizes: int) -> dict[str, str]:
    """Different prompts, each with a continuation of one of the ``sizes`` in tokens (at least 10).

    No two continuations begin with the same word.
    """
    prompts = draw.sample(["def add(a, b):", "The with statement", "import ", "量化 is", "class Engine:", "Once upon"],
                          len(sizes))  # fmt: skip
    firsts = draw.sample(["量化", "推理", "🙂", "Größe"], len(sizes))  # characters of several bytes
    found = {}
    for prompt, first, size in zip(prompts, firsts, sizes, strict=True):
        text = f" {first}"
        while len(text.encode()) < size:
            text += f" {draw.choice(WORDS)}"
        text = text.encode()[:size].decode(errors="ignore")
        found[f"{prompt} {draw.randint(10, 99)}"] = text + "e" * (size - len(text.encode()))
    return found
