"""What distillation gains, the tables of both pipelines, and pruning nine weights of ten: a few minutes of one core.

python benchmarks/distillation.py              # all
python benchmarks/distillation.py digits lm    # some of: digits, iterative, pipeline, lm
python benchmarks/distillation.py --quick lm   # the short training that chapter 2 runs
"""

from __future__ import annotations

import argparse
import time

import pandas as pd
import torch

from labsupport.distillation import (
    QUICK,
    compress_digits,
    compress_lm,
    confidence_interval,
    digits_gain,
    digits_pruning,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="short training of the language model")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts must be some of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    pd.set_option("display.width", 200, "display.max_columns", 20)
    for part in arguments.parts or PARTS:
        started = time.process_time()
        PARTS[part](arguments)
        print(f"({time.process_time() - started:.0f} s of CPU time)\n", flush=True)


def digits(arguments: argparse.Namespace) -> None:
    frame = digits_gain(range(arguments.seeds))
    print("Handwritten digits, test accuracy in %. Student: 16 hidden neurons, 100 images; the same start, images,")
    print("labels and steps alone and distilled. Teacher: 256 hidden neurons, all 1,078 training images")
    print((100 * frame).round(2).to_string())
    _print_means(frame)


def iterative(arguments: argparse.Namespace) -> None:
    """Every way of pruning has as many epochs as the dense network trains on, so that none has seen more."""
    print(
        "Pruning to 90 % with 40 epochs in all: zeros and test accuracy in %, and epochs since the weights were reset"
    )
    frame = digits_pruning(range(arguments.seeds))
    shares = [name for name in frame if name != "epochs since reset"]
    print(frame.assign(**{name: 100 * frame[name] for name in shares}).round(2).to_string())
    seeds = frame.filter(like="seed ")
    _print_means((seeds.loc[["one cut", "rounds, cubic"]].diff().iloc[1:].T).set_axis(["rounds - cut"], axis=1))
    _print_means(
        (seeds.loc[["its mask, new start", "its mask, its start"]].diff().iloc[1:].T).set_axis(["own - new"], axis=1)
    )


def pipeline(_: argparse.Namespace) -> None:
    print("Pipeline, handwritten digits, one seed")
    print(compress_digits().to_frame().round(3).to_string())


def lm(arguments: argparse.Namespace) -> None:
    print(f"Pipeline, tiny, one seed, {'very ' if arguments.quick else ''}short training")
    print(compress_lm(**(QUICK if arguments.quick else {})).to_frame().round(3).to_string())


def _print_means(frame: pd.DataFrame) -> None:
    for name in frame:
        low, high = confidence_interval(frame[name])
        mean = frame[name].mean()
        print(f"{name:>10}: mean {100 * mean:6.2f}, 95 % interval {100 * low:6.2f} to {100 * high:6.2f}")


PARTS = {"digits": digits, "iterative": iterative, "pipeline": pipeline, "lm": lm}

if __name__ == "__main__":
    main()
