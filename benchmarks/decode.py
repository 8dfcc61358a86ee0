"""How fast text is written: `jaxft`'s greedy decoding of SmolLM2 against `transformers`' on CPU.

`python -m benchmarks.decode` lets the two take turns in one process, both in float32 and each
with its own key-value cache, on one prompt and the same number of new tokens, which have to be
the same tokens. What is timed is the whole of `generate`, the prompt's own pass included, after
all is compiled. PyTorch runs with as many threads as it likes and with one, which is quicker
where the machine is busy with other things; a turn of jaxft is held against the quicker of the two.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import transformers

import jaxft
from benchmarks.measure import median, record
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.demo.smollm2 import smollm2
from jaxft.device.process import prepare_process
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings

PROMPT = "<|im_start|>user\nTell me of the sea.<|im_end|>\n<|im_start|>assistant\n"
WANTED = 1.0  # of transformers' tokens a second


def ours(folder: str, prompt: list[int], new: int) -> Callable[[], list[int]]:
    """A function that writes `new` tokens with jaxft."""
    generator = Generator(jaxft.load(folder))
    settings = Settings(max_new_tokens=new)
    return lambda: generator.generate([prompt], settings)[0]


def theirs(folder: str, prompt: list[int], new: int) -> dict[str, Callable[[], list[int]]]:
    """Functions that write `new` tokens with transformers, by what is told apart."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    write = partial(model.generate, ids, attention_mask=torch.ones_like(ids), do_sample=False)

    def written(threads: int) -> list[int]:
        torch.set_num_threads(threads)
        return write(max_new_tokens=new, pad_token_id=0)[0, len(prompt) :].tolist()

    many = torch.get_num_threads()
    return {f"transformers, {count} threads": partial(written, count) for count in (many, 1)}


def main() -> int:
    """Let the two take turns, record the ratio of their speeds, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="turns each takes")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a turn")
    given = parser.parse_args()
    prepare_process()
    folder = str(smollm2())
    prompt = load_tokenizer(folder).encode([PROMPT], spelled=True).ids[0].tolist()
    turns = {"jaxft": ours(folder, prompt, given.tokens)} | theirs(folder, prompt, given.tokens)
    first = {name: turn() for name, turn in turns.items()}  # compiles
    if any(tokens != first["jaxft"] for tokens in first.values()):
        print("the two wrote different tokens", file=sys.stderr)
        return 1
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(given.pairs):
        for name in list(turns)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            turns[name]()
            speeds[name].append(given.tokens / (time.perf_counter() - started))
        said = "; ".join(f"{name} {taken[-1]:.1f}" for name, taken in speeds.items())
        print(f"{turn + 1} of {given.pairs}: {said} tokens a second", flush=True)
    ratio = median([own / max(others) for own, *others in zip(*speeds.values(), strict=True)])
    print(f"jaxft / transformers, tokens a second = {ratio}; at least {WANTED} wanted")
    medians = {name: vars(median(taken)) for name, taken in speeds.items()}
    record("decode", {"load": os.getloadavg()[1], "speeds": medians, "ratio": vars(ratio)})
    return 1 if ratio.median < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
