"""Bits of a run's checkpoints and base are flipped: noticed, or what is read stays the same."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft.config.load import parse_config
from jaxft.engine.initial_state import abstract_state
from jaxft.engine.setup import build
from jaxft.engine.trained import base_checkpoint, check_base, open_checkpoints
from jaxft.errors import UserError
from jaxft.models.weights.source import resolve
from jaxft.runs.folder import open_run
from tests.faults.harness import Toy, driven, files_of
from tests.support.phases import phase_of


def flip_bits(toy: Toy, count: int) -> Counter[str]:
    """Flip single bits of checkpoints and base; each is noticed, or nothing that is read differs.

    Half of the bits are drawn evenly over all bytes, half evenly over the files.
    """
    run = open_run(toy.run)
    config = parse_config(run.config())
    built = build(config, devices=jax.devices()[:1])
    wanted = abstract_state(built, phase_of(built))

    def content(path: Path) -> list[object]:
        """Read what a file is part of: the base, or one checkpoint and the choice of the best."""
        folder, step = path.relative_to(toy.run).parts[:2]
        if folder == "base":
            base = resolve(base_checkpoint(run, config))
            check_base(run, base)
            return [files_of(base.folder)]
        with open_checkpoints(run, config, built.task, read_only=True) as checkpoints:
            state, meta, _ = checkpoints.restore(lambda _: wanted, int(step))
            chosen = [checkpoints.best(), *map(checkpoints.metrics, checkpoints.steps())]
        arrays = [
            np.asarray(jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf).tobytes()
            for leaf in jax.tree.leaves(state)
        ]
        return [chosen, meta, arrays]

    paths = [path for name in ("checkpoints", "base") for path in (toy.run / name).rglob("*")]
    paths = sorted(path for path in paths if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in paths]
    one_of = {path.relative_to(toy.run).parts[:2]: path for path in paths}
    expected = {part: content(path) for part, path in one_of.items()}
    draw, counts = random.Random(0), Counter[str]()
    silent = []
    for number in range(count):
        (path,) = draw.choices(paths, sizes if number % 2 else None)
        before = bytearray(path.read_bytes())
        at, bit = draw.randrange(len(before)), 1 << draw.randrange(8)
        after = before.copy()
        after[at] ^= bit
        path.write_bytes(after)
        try:
            same = content(path) == expected[path.relative_to(toy.run).parts[:2]]
            counts["without effect" if same else "silent"] += 1
            if not same:
                silent.append(f"{path.relative_to(toy.run)}, byte {at}, bit {bit}")
        except UserError:
            counts["noticed"] += 1
        path.write_bytes(before)
    print(dict(counts))
    assert silent == []
    return counts


def flipped(top: Path, count: int) -> Counter[str]:
    """Train the toy run and flip bits of it."""
    with driven(top, faults=False) as (toy, driver):
        toy.put(None)
        ended = driver.do(toy.train())
        assert ended.code == 0, ended.text
        return flip_bits(toy, count)


@pytest.mark.slow
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    assert flipped(tmp_path, 20)["noticed"] >= 5


@pytest.mark.full
def test_a_thousand_flipped_bits(tmp_path):
    counts = flipped(tmp_path, 1000)
    assert counts["noticed"] + counts["without effect"] == 1000
