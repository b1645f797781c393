"""SmolLM2 without a sixth of its MLPs' neurons, recovered on the outputs of the untouched model: the capstone's row.

python benchmarks/recover_smollm2.py                 # about half an hour of one CPU core; may be interrupted
python benchmarks/recover_smollm2.py --minutes 50    # stops after so many, and goes on from there when run again

The weights go into the cache, where chapter 4 finds them; the log (benchmarks/recover_smollm2.jsonl, one event a line)
is committed. An interrupted run ends with the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

from labsupport.distillation.distiller import Distiller
from labsupport.distillation.recover import SMOLLM2, STORED, prune_for, recover
from labsupport.lm import evaluation_tokens, load_lm, perplexity, save_lm
from labsupport.lm.download import cache_root

LOG = Path(__file__).with_suffix(".jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many (default: at the end)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = cache_root() / STORED
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "training.checkpoint.pt"
    lm = load_lm("smollm2-135m")
    held_out = evaluation_tokens(lm)
    pruned = prune_for(lm, SMOLLM2)
    if not checkpoint.exists():
        LOG.unlink(missing_ok=True)
        note("begin", **dataclasses.asdict(SMOLLM2), model=str(lm), threads=arguments.threads)
        note("perplexity", untouched=perplexity(lm.model, held_out), pruned=perplexity(pruned, held_out))
    else:
        note("resume")
    stop = time.monotonic() + 60 * arguments.minutes

    def told(distiller: Distiller) -> None:
        done = len(distiller.history)  # this step's own record follows
        if done and done % 5 == 0:
            loss = sum(record["loss"] for record in distiller.history[-5:]) / 5
            note("step", step=done, loss_of_five=loss, cpu_seconds=time.process_time())
        if done and done % 10 == 0 and time.monotonic() > stop:
            raise TimeoutError(f"stopped after {done} steps; run the script again to go on")

    try:
        recover(lm, pruned, SMOLLM2, checkpoint, after_step=told)
    except TimeoutError as stopped:
        note("stop", reason=str(stopped), cpu_seconds=time.process_time())
        return
    note("perplexity", untouched=perplexity(lm.model, held_out), recovered=perplexity(pruned, held_out))
    note("end", tokens=SMOLLM2.tokens, cpu_seconds=time.process_time())
    save_lm(dataclasses.replace(lm, name=STORED, model=pruned), folder, torch.float16)


def note(event: str, **values: object) -> None:
    """Append a line to the log, and print it. ``cpu_seconds`` counts from the start of the process."""
    values = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    line = json.dumps({"event": event} | values)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
