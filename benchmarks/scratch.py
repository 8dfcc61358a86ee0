"""What pretraining is worth: the same architecture and tokenizer, with weights that are drawn.

`python -m benchmarks.scratch CHECKPOINT FOLDER` writes such a checkpoint. Every parameter is drawn
as a new one of its kind is (the std of the family's own `initializer_range`, as a rule 0.02).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jaxft
from jaxft.models.weights.leaves import fresh_leaf
from jaxft.models.weights.source import Checkpoint


def write_scratch(checkpoint: Checkpoint, folder: Path, seed: int = 0) -> list[str]:
    """Write a checkpoint of drawn weights, and say which overrides make a config read it.

    Args:
        checkpoint: a config's `model.checkpoint`: one, or one for each tower.
        folder: where; of two towers it holds a folder each.
        seed: the weights are drawn from it and from their names.
    """
    if isinstance(checkpoint, str | Path):
        _write(str(checkpoint), folder, seed)
        return [f"model.checkpoint={folder}"]
    for tower, one in checkpoint.items():
        _write(one, folder / tower, seed)
    named = ", ".join(f"{tower}: {folder / tower}" for tower in checkpoint)
    return [f"model.checkpoint={{{named}}}"]


def _write(checkpoint: str, folder: Path, seed: int) -> None:
    model = jaxft.load(checkpoint)
    drawn = {
        name: fresh_leaf(name, leaf, "float32", seed, None) for name, leaf in model.leaves.items()
    }
    model.save(folder, drawn)


def main() -> None:
    """Write a checkpoint of drawn weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_scratch(given.checkpoint, given.folder)


if __name__ == "__main__":
    main()
