"""Examples a second and MFU on a GPU: jaxft's step against PyTorch's, compiled, in turns.

`python -m benchmarks.gpu [SHAPE ...]` trains BERT-base on 64 x 128 tokens, ViT-B/16 on 64 images of
224 pixels and a 1B Llama on 4 x 2,048 tokens, in bfloat16 with float32 masters and AdamW, weights
and rows drawn. The other side is the same shape of `transformers` under `torch.compile`, with
scaled-dot-product attention, autocast and the fused AdamW. Each turn is a process of its own, so
that each side has the whole GPU; its steps eat batches that lie on the GPU already. BERT-base with
8 of 12 blocks frozen is held against itself with none, and against the ratio of their FLOPs. Both
sides' MFU is of the same model FLOPs, those that jaxft counts, and of the chip's bfloat16 peak.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import median, record, run_apart
from jaxft.config.load import Config, load_config, override_config

ROWS = 128  # that are drawn
WARM, TIMED = 5, 30  # steps
SIDES = ("jaxft", "torch")
LEAST, LEAST_FROZEN = 1.15, 0.95
FROZEN = "groups=[{name: trunk, depth: [0, 8], freeze: true}]"


@dataclass(frozen=True)
class Shape:
    """What is trained.

    Attributes:
        config: of `benchmarks/shapes`.
        torch: the class of `transformers` that is the same.
        overrides: of the config.
        mfu: that jaxft is to reach.
    """

    config: str
    torch: str
    overrides: tuple[str, ...] = ()
    mfu: float | None = None


SHAPES = {
    "bert": Shape("bert_base", "AutoModelForSequenceClassification"),
    "vit": Shape("vit_b16", "AutoModelForImageClassification"),
    "llama": Shape(
        "llama_1b", "AutoModelForCausalLM", ("data.batch_size=4", "train.remat=auto"), mfu=0.5
    ),
}


def make_config(shape: Shape, folder: Path, overrides: tuple[str, ...] = ()) -> Config:
    """The config of a shape, and in `folder` the rows that it reads."""
    config = load_config(f"benchmarks/shapes/{shape.config}.yaml", [*shape.overrides, *overrides])
    reads_images = config.task.kind == "image_classification"
    rows = _write_images(folder) if reads_images else _write_texts(config, folder)
    return override_config(config, [f"data.train={rows}", f"data.eval={rows}"])


def _write_texts(config: Config, folder: Path) -> str:
    text = " ".join("a" * _row_length(config))
    path = folder / "rows.jsonl"
    rows = ({"text": text, "label": number % 2} for number in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def _row_length(config: Config) -> int:
    assert config.data.max_length is not None
    return config.data.max_length


def _write_images(folder: Path) -> str:
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(ROWS):
        path = folder / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return f"images:{folder / 'images'}"


def run_jaxft(config: Config, warm: int, timed: int) -> dict[str, Any]:
    """A step of jaxft: `seconds`, `flops`, `examples`; the chip's `peak` FLOPs (None: unknown)."""
    import jax

    from benchmarks.loop import bare_step
    from jaxft.device.process import prepare_process
    from jaxft.engine.cost import batch_shapes, gradient_flops
    from jaxft.engine.remat import phase_setups
    from jaxft.engine.setup import build
    from jaxft.models.weights.leaves import fresh_leaf
    from jaxft.planning.stand_in import with_tokenizer
    from jaxft.training.utilisation import work_of

    prepare_process()
    with with_tokenizer(config) as (readable, _):
        built = build(readable, devices=jax.devices()[:1], weights=False)
        phases = phase_setups(built)
        params = {
            name: fresh_leaf(name, leaf, "float32", 0, built.shardings[name])
            for name, leaf in built.model.leaves.items()
        }
        flops = gradient_flops(built, phases[0].table.trainable, batch_shapes(built))
        step = bare_step(built, warm + timed, first=warm, params=params)
        return {
            "seconds": step()["second"],
            "flops": flops,
            "peak": work_of(built, phases, phases[0], False, {"step": flops}).peak,
            "examples": built.layout.examples_per_step,
            "device": jax.devices()[0].device_kind,
        }


def run_torch(config: Config, kind: str, device: str, warm: int, timed: int) -> dict[str, Any]:
    """A step of PyTorch on one batch that lies on the device: `seconds`."""
    import torch
    import transformers

    folder = str(config.model.checkpoint)
    shape = transformers.AutoConfig.from_pretrained(folder, num_labels=2, use_cache=False)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(shape, name):
            setattr(shape, name, 0.0)
    model = getattr(transformers, kind).from_config(shape, attn_implementation="sdpa")
    model = model.to(device).train()
    batch = _torch_batch(config, shape, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, weight_decay=0.01, fused=device == "cuda"
    )
    run = torch.compile(model) if device == "cuda" else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = run(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(warm):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(timed):
        step()
    wait()
    return {"seconds": (time.perf_counter() - began) / timed}


def _torch_batch(config: Config, shape: Any, device: str) -> dict[str, Any]:
    import torch

    rows = config.data.batch_size
    labels = torch.arange(rows, device=device) % 2
    if shape.model_type == "vit":
        size = (rows, 3, shape.image_size, shape.image_size)
        return {"pixel_values": torch.rand(size, device=device), "labels": labels}
    words = torch.ones((rows, _row_length(config)), dtype=torch.long, device=device)
    return {"input_ids": words, "labels": words if shape.model_type == "llama" else labels}


def compare(name: str, pairs: int) -> dict[str, Any]:
    """A shape's speeds by turns; printed, and whether they are as wanted."""
    sides = (*SIDES, "frozen") if name == "bert" else SIDES
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(pairs):
        for side in sides[:: -1 if turn % 2 else 1]:
            turns[side].append(run_apart("gpu", name, "--one", side))
        now = ", ".join(f"{side} {1e3 * turns[side][-1]['seconds']:.1f} ms" for side in sides)
        print(f"{name}, {turn + 1} of {pairs}: {now}", flush=True)
    return summary(turns, SHAPES[name])


def summary(turns: dict[str, list[dict[str, Any]]], shape: Shape) -> dict[str, Any]:
    """What the turns of a shape say.

    Args:
        turns: by side, what `run_jaxft` or `run_torch` gave.
        shape: what they trained.

    Returns:
        `device`, `examples_per_second` and `mfu` (None: the chip is in no table) by side, `ratio`
        to PyTorch, `frozen` (the speed-up over that of the FLOPs, None where it was not run) and
        `held`.
    """
    facts = turns["jaxft"][0]
    seconds = {
        side: median([turn["seconds"] for turn in taken]).median for side, taken in turns.items()
    }
    pairs = zip(turns["torch"], turns["jaxft"], strict=True)
    ratio = median([theirs["seconds"] / ours["seconds"] for theirs, ours in pairs])
    peak, frozen = facts["peak"], None
    if "frozen" in turns:
        wanted = facts["flops"] / turns["frozen"][0]["flops"]
        frozen = seconds["jaxft"] / seconds["frozen"] / wanted
    mfu = {side: facts["flops"] / seconds[side] / peak if peak else None for side in SIDES}
    held = ratio.median >= LEAST and (frozen is None or frozen >= LEAST_FROZEN)
    return {
        "device": facts["device"],
        "examples_per_second": {side: facts["examples"] / spent for side, spent in seconds.items()},
        "mfu": mfu,
        "ratio": vars(ratio),
        "frozen": frozen,
        "held": held and (shape.mfu is None or (mfu["jaxft"] or 0) >= shape.mfu),
    }


def turn_of(side: str, name: str) -> dict[str, Any]:
    """One turn, in this process."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as made:
        config = make_config(shape, Path(made), (FROZEN,) if side == "frozen" else ())
        if side == "torch":
            return run_torch(config, shape.torch, "cuda", WARM, TIMED)
        return run_jaxft(config, WARM, TIMED)


def main() -> int:
    """Compare the shapes, record what was found, and say whether it is as wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--pairs", type=int, default=3, help="turns that each side takes")
    parser.add_argument("--one", choices=(*SIDES, "frozen"), help="one turn, here")
    given = parser.parse_args()
    names = given.shapes or list(SHAPES)
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"no shape {unknown[0]}; there are {', '.join(SHAPES)}")
    if given.one:
        print(json.dumps(turn_of(given.one, names[0])))
        return 0
    found = {name: compare(name, given.pairs) for name in names}
    for name, result in found.items():
        print(f"{name}: {json.dumps(result)}")
    record("gpu", {"shapes": found})
    return 0 if all(result["held"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
