"""Read random hostile inputs: `python -m tests.faults.fuzz FOLDER --inputs 20000`.

Each input follows from the seed and its number alone; `--only NUMBER` reads one of them.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.faults.grammar import Draw
from tests.faults.judge import Case, as_json, count
from tests.faults.readers import MAKERS, workspace


def cases(seed: int, numbers: range | list[int]) -> Iterator[Case]:
    """Draw the inputs of these numbers."""
    weights = list(itertools.accumulate(weight for weight, _ in MAKERS))
    for number in numbers:
        draw = Draw(f"{seed}/{number}")
        (_, make) = draw.choices(MAKERS, cum_weights=weights)[0]
        case = make(draw)
        yield replace(case, name=f"{case.name}: input {number}")


def main() -> None:
    """Read the inputs, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    words = parser.parse_args()
    workspace(words.folder / "workspace")
    numbers = range(words.inputs) if words.only is None else [words.only]
    counts = count(cases(words.seed, numbers), Path.cwd())
    print(counts.lines(), file=sys.stderr)
    print(as_json(counts))


if __name__ == "__main__":
    main()
