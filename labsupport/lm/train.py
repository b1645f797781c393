"""Trains the `tiny` checkpoint on two cores: ``python -m labsupport.lm.train``.

A byte-level Llama of 1.6 million parameters, on text that comes with every Python. It can be interrupted at any time:
the next run resumes from the last checkpoint, and ends with the same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.files import replacing
from labsupport.lm.config import LlamaConfig
from labsupport.lm.evaluate import bigram_loss, token_loss
from labsupport.lm.folder import write_folder
from labsupport.lm.generate import generate
from labsupport.lm.load import TINY_FOLDER, load_lm
from labsupport.lm.model import Llama
from labsupport.lm.schedule import rate_share, set_rates
from labsupport.lm.text import corpus, training_documents
from labsupport.lm.tokenizer import ByteTokenizer
from labsupport.progress import progress_bar

WARMUP = 60  # steps
TINY = LlamaConfig(
    vocab_size=256,
    hidden_size=192,
    intermediate_size=512,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    max_positions=2048,
)


def train(
    out: Path = TINY_FOLDER,
    steps: int = 1000,
    batch_size: int = 16,
    seq_len: int = 256,
    seed: int = 0,
    config: LlamaConfig = TINY,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> dict[str, float]:
    """Train, write a folder that `load_lm` reads (weights in float16), and report.

    Returns:
        Losses in nats per byte on the evaluation text (``evaluation_loss``, ``bigram_loss``), ``parameters``,
        ``steps`` and ``seconds`` (of this run).
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "tiny.checkpoint.pt"
    data = training_tokens()

    torch.manual_seed(seed)
    model = initialize(Llama(config))
    optimizers = make_optimizers(model)
    start = _resume(checkpoint, model, optimizers)
    bar = progress_bar(range(start, steps), "training tiny", "step", progress, total=steps, done=start)
    for step in bar:
        share = rate_share(step, steps, WARMUP)
        loss = training_step(model, optimizers, sample_batch(data, batch_size, seq_len, seed, step), share)
        bar.set_postfix(loss=f"{loss:.3f}")
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            _save_checkpoint(checkpoint, model, optimizers, step + 1)

    model.half().float()  # float16 is what is shipped, so that is what is measured
    report = evaluate(model, data)
    report |= {"steps": steps, "seconds": round(time.perf_counter() - started, 1)}
    record = {"name": "tiny", "source": "labsupport's own weights", "precision": "float16", "tokenizer": "bytes"}
    weights = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    write_folder(out, config, weights, record | {"training": report}, ByteTokenizer.eos_token_id)
    checkpoint.unlink(missing_ok=True)
    return report


def training_tokens() -> Int64[Tensor, " n"]:
    tokenizer = ByteTokenizer()
    tokens: list[int] = []
    for index, document in enumerate(training_documents()):
        # the first is the language reference, whose other part the model is measured on: show it more often
        tokens += [*tokenizer.encode(document), tokenizer.eos_token_id] * (3 if index == 0 else 1)
    return torch.tensor(tokens)


def sample_batch(data: Tensor, batch_size: int, seq_len: int, seed: int, step: int) -> Int64[Tensor, "batch time"]:
    """Determined by (seed, step) alone, so that a resumed run sees the batches of an uninterrupted one."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(data) - seq_len - 1, (batch_size,), generator=generator)
    return data[starts[:, None] + torch.arange(seq_len + 1)]


def initialize(model: Llama) -> Llama:
    """Normal weights of deviation 0.02, or 0.02 / sqrt(2 · layers) where they write to the residual stream."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        nn.init.normal_(parameter, std=0.02 / (2 * model.config.num_layers) ** 0.5 if residual else 0.02)
    return model


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalized update (Jordan 2024), so that all directions of a matrix learn at the same pace.

    torch.optim.Muon is the same, but multiplies in bfloat16, which takes 13 seconds a step on a CPU without AVX-512.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalize(matrix.grad.lerp(average, group["momentum"]))  # Nesterov
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Float[Tensor, "rows columns"], iterations: int = 5) -> Float[Tensor, "rows columns"]:
    """Newton-Schulz: the nearest matrix with all singular values about 1 (the quintic of Jordan 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0)]


def training_step(model: Llama, optimizers: list[torch.optim.Optimizer], batch: Tensor, share: float) -> float:
    logits = model(batch[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    set_rates(optimizers, share)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def evaluate(model: Llama, training: Tensor) -> dict[str, float]:
    held_out = torch.tensor(ByteTokenizer().encode(corpus("evaluation")))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "evaluation_loss": round(token_loss(model, held_out), 4),
        "bigram_loss": round(bigram_loss(training, held_out, model.config.vocab_size), 4),
    }


def _save_checkpoint(path: Path, model: Llama, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model: Llama, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TINY_FOLDER, help="folder to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    report = train(arguments.out, arguments.steps, seed=arguments.seed)
    print(json.dumps(report, indent=2))

    lm = load_lm(arguments.out)
    prompt = torch.tensor([lm.tokenizer.encode("The statement ")])
    print(lm.tokenizer.decode(generate(lm.model, prompt, max_tokens=300, temperature=0.7, seed=0)[0].tolist()))


if __name__ == "__main__":
    main()
