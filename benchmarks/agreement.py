"""The same recipe in PyTorch on the same 500 rows: sentiment, entities and digits, three seeds.

`python -m benchmarks.agreement [NAME...]` trains each config on 500 rows with seeds 0, 1 and 2 (all
three of `run.seed` at once) and its PyTorch twin (`benchmarks.twin`) on the same rows, each in a
process of its own, and prints both test scores. A seed draws the rows too, for both alike, so what
is compared is their difference, seed by seed. It fails where the mean difference is more than noise
explains, or where one of the two has not learned.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.measure import record
from benchmarks.seeds import jaxft_score, torch_score

SEEDS = 3
STUDENT = 4.303  # of 3 differences: the 95% interval of their mean is so many standard errors
SAME, MOST_APART = 0.015, 0.05  # below the one it is no difference; above the other no noise


@dataclass(frozen=True)
class Recipe:
    """A config on 500 rows.

    Attributes:
        metric: of the test rows.
        least: what both reach at least that have learned.
        overrides: the rows, and one evaluation an epoch.
    """

    metric: str
    least: float
    overrides: tuple[str, ...]


ONCE = ("train.evaluate_every=1 epoch", "checkpoint.every=1 epoch")
RECIPES = {
    "sentiment": Recipe(
        "accuracy",
        0.65,
        (
            "data.train=csv:assets/reviews/train.csv[:500]",
            "data.eval=csv:assets/reviews/train.csv[90%:93%]",
            *ONCE,
        ),
    ),
    "ner": Recipe("f1", 0.15, ("data.train=conll:assets/tweets/train.conll[:500]", *ONCE)),
    "digits": Recipe(
        "accuracy",
        0.6,
        (
            "data.train=images:assets/digits/train[:500]",
            "data.eval=images:assets/digits/train[90%:94%]",
            *ONCE,
        ),
    ),
}


def compare(name: str, seeds: int = SEEDS, more: Sequence[str] = ()) -> dict[str, list[float]]:
    """The test scores of a recipe by seed: `jaxft` and `torch`.

    Args:
        name: of the config.
        seeds: how many.
        more: further overrides.
    """
    recipe, config = RECIPES[name], f"configs/{name}.yaml"
    overrides = [*recipe.overrides, *more]
    found: dict[str, list[float]] = {"jaxft": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            ours = jaxft_score(config, recipe.metric, seed, Path(folder), overrides)
            theirs = torch_score(config, seed, overrides)
            found["jaxft"].append(ours)
            found["torch"].append(theirs)
            print(f"{name}, seed {seed}: jaxft {ours:.3f}, PyTorch {theirs:.3f}", flush=True)
    return found


def allowed(differences: Sequence[float]) -> float:
    """How far from 0 the mean of the differences may be: what its 95% interval reaches.

    Args:
        differences: one a seed.
    """
    noise = STUDENT * stdev(differences) / math.sqrt(len(differences))
    return min(max(noise, SAME), MOST_APART)


def complaints(name: str, found: dict[str, list[float]]) -> list[str]:
    """What does not hold of a recipe's scores; empty where all does."""
    recipe, said = RECIPES[name], []
    for who, scores in found.items():
        if mean(scores) < recipe.least:
            said.append(f"{name}: {who} reached {mean(scores):.3f} only, below {recipe.least}")
    differences = [a - b for a, b in zip(found["jaxft"], found["torch"], strict=True)]
    apart, most = mean(differences), allowed(differences)
    if abs(apart) > most:
        said.append(f"{name}: jaxft is {apart:+.3f} from PyTorch, more than {most:.3f}")
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the recipes that were named, or all; print, record, and say whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in RECIPES]:
        parser.error(f"there is no {unknown[0]}: {', '.join(RECIPES)}")
    found = {name: compare(name) for name in given.names or RECIPES}
    for name, scores in found.items():
        both = "; ".join(
            f"{who} {', '.join(f'{one:.3f}' for one in each)}, mean {mean(each):.3f}"
            for who, each in scores.items()
        )
        print(f"{name}, {RECIPES[name].metric}: {both}")
    record("agreement", found)
    wrong = [complaint for name, scores in found.items() for complaint in complaints(name, scores)]
    for complaint in wrong:
        print(f"does not hold: {complaint}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
