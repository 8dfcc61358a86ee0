"""Memory that a chip takes for known shapes, planned for TPUs that are not there.

`python -m benchmarks.plan_shapes [NAME ...]` runs from the repository's root and takes libtpu
(Linux on x86-64) and minutes of CPU a shape; without names it plans all. The last column is the
shape with the most elements in a chip's program. Of the checkpoints there is a config.json alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jaxft.config.load import load_config
from jaxft.device.chips import parse_topology
from jaxft.planning.pod import plan_on


@dataclass(frozen=True)
class Shape:
    """One line of the table.

    Attributes:
        config: of `benchmarks/shapes`.
        overrides: of that config.
        goal: GB that it should take at most: of the peak, or of what `of` says.
        of: `peak` or `temporary`.
        topology: the slice.
    """

    config: str
    overrides: tuple[str, ...] = ()
    goal: float | None = None
    of: str = "peak"
    topology: str = "v5e:4x4"


def frozen(blocks: int) -> str:
    """The override that freezes the embeddings and so many blocks."""
    return f"groups=[{{name: trunk, depth: [0, {blocks}], freeze: true}}]"


BERT_BASE = "model.checkpoint=benchmarks/shapes/bert_base"
BF16 = "optimizer.moments=bfloat16"
QLORA = "adapter={kind: lora, quantize: nf4}"
SHAPES = {
    "bert": Shape("bert_large", (), 2.3, "temporary"),
    "bert-frozen": Shape("bert_large", (frozen(16),), 1.2, "temporary"),
    "bert-unrolled": Shape("bert_large", ("train.scan=false",), None, "temporary"),
    "bert-512": Shape("deberta_v3_base", (BERT_BASE,), None, "temporary", "v5e:2x2"),
    "deberta-512": Shape("deberta_v3_base", (), 5.85, "temporary", "v5e:2x2"),
    "1b": Shape("llama_1b", (), 2.45),
    "1b-4": Shape("llama_1b", ("data.batch_size=64",), 2.95),
    "1b-frozen": Shape("llama_1b", (frozen(12),), 0.95),
    "8b": Shape("llama_8b", (), 8.0),
    "8b-fused": Shape("llama_8b", ("optimizer.fused=true", "optimizer.clip=null")),
    "8b-fused-clip": Shape("llama_8b", ("optimizer.fused=true",)),
    "8b-lisa": Shape("llama_8b", ("sampling.method=lisa",)),
    "8b-bf16": Shape("llama_8b", (BF16,), 6.5),
    "8b-lora": Shape("llama_8b", ("data.batch_size=64", "adapter.kind=lora")),
    "8b-qlora": Shape("llama_8b", (QLORA, "data.batch_size=1"), topology="v5e:1x1"),
    "8b-256-bf16": Shape(
        "llama_8b",
        (BF16, "data.batch_size=1024"),
        4.5,
        topology="v5e:16x16",
    ),
    "8b-v6e": Shape(
        "llama_8b",
        (BF16, "data.batch_size=64"),
        11,
        topology="v6e:4x4",
    ),
    "8b-32k": Shape(
        "llama_8b",
        ("data.row_length=32768", "data.batch_size=4", "mesh.fsdp=4", "mesh.context=4", BF16),
    ),
    "8b-131k": Shape(
        "llama_8b",
        ("data.row_length=131072", "data.batch_size=8", "mesh.fsdp=8", "mesh.context=8"),
        topology="v5p:4x4x4",
    ),
    "1b-slices": Shape(
        "llama_1b", ("data.batch_size=32", "mesh.data=2", "mesh.fsdp=16", "mesh.slices=2")
    ),
    "70b-qlora": Shape("llama_70b", (QLORA,)),
    "70b-256": Shape(
        "llama_70b",
        (BF16, "data.batch_size=256"),
        topology="v5e:16x16",
    ),
    "8b-256": Shape("llama_8b", ("data.batch_size=256",), None, topology="v5e:16x16"),
    "gemma2-8192": Shape("gemma2_2b"),
    "smolvlm": Shape("smolvlm_500m"),
    "smolvlm-whole": Shape("smolvlm_500m", ("task.grid=1",)),
    "modernbert-8192": Shape("modernbert_large"),
    "modernbert-2048": Shape("modernbert_large", ("data.max_length=2048",)),
    "30b-a3b": Shape("qwen3_30b_a3b", (), topology="v5p:2x2x4"),
    "rf-detr": Shape("rf_detr_base"),
    "clip": Shape("clip_vit_l14", (), topology="v5e:16x16"),
    "sd15": Shape("sd15"),
    "clip-65k": Shape(
        "clip_vit_l14", ("data.batch_size=65536", "train.accumulate=16"), topology="v5e:16x16"
    ),
    "clip-whole": Shape("clip_vit_l14", ("train.accumulate=1",), topology="v5e:16x16"),
}


def main() -> int:
    """Plan the shapes that are named, or all, and print a line each."""
    names = sys.argv[1:] or list(SHAPES)
    if unknown := [name for name in names if name not in SHAPES]:
        print(f"no shape {unknown[0]}; there are {', '.join(SHAPES)}", file=sys.stderr)
        return 2
    print(f"{'shape':<14} {'peak':>8} {'temp.':>8} {'goal':>14} {'compile CPU':>12}  widest array")
    for name in names:
        shape = SHAPES[name]
        config = load_config(f"benchmarks/shapes/{shape.config}.yaml", shape.overrides)
        facts = plan_on(config, topology=parse_topology(shape.topology)).facts
        if not facts["fits"]:
            print(f"{name:<14} does not fit", flush=True)
            continue
        memory = {key: nbytes / 1e9 for key, nbytes in facts["memory"].items()}
        goal = "fits" if shape.goal is None else f"{shape.of} <= {shape.goal}"
        spent = facts["compile"]["cpu_seconds"]
        peak, temporary = memory["peak"], memory["temporary"]
        line = f"{name:<14} {peak:8.2f} {temporary:8.2f} {goal:>14} {spent:10.0f} s"
        print(f"{line}  {facts['widest']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
