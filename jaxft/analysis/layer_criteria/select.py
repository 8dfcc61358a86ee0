"""Groups chosen by a criterion (`groups[].select`): measured once, and then matched by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import partial

from rich.console import Console

from jaxft.analysis.layer_criteria.measure import (
    Matrix,
    Measured,
    matrices_of,
    measure,
    measured_setup,
    measurements,
)
from jaxft.config.load import Config
from jaxft.config.recipe import Group, SelectSection
from jaxft.device.distributed import from_first
from jaxft.engine.setup import Setup
from jaxft.errors import UserError
from jaxft.layerwise.criteria.choose import (
    CHOICES,
    CRITERIA,
    RANDOM,
    choose,
    mean_ranks,
    random_scores,
)
from jaxft.report.terminal.criteria import measuring_bar

KIND, BLOCK = "kind", "block"


def choose_groups(config: Config, console: Console) -> Config:
    """Choose the parameters of each group that has `select` and no `match` yet.

    Every process measures, and all take the first one's choice.

    Args:
        config: of a new run.
        console: shows a bar while it measures, and a line for each choice.

    Returns:
        The config with the choices in `match`; the same one where there is nothing to choose.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint; or a
            criterion that is not defined for one of the matrices.
    """
    pending = {
        index: group.select
        for index, group in enumerate(config.groups)
        if group.select is not None and group.match is None
    }
    if not pending:
        return config
    setup = measured_setup(config)
    measured = _measure_all(setup, pending.values(), console)
    groups = list(config.groups)
    for index, section in pending.items():
        own = measured[section.batches] if section.by != RANDOM else _unmeasured(setup)
        criteria = section.by, section.fraction, section.per
        chosen = from_first(partial(chosen_matrices, setup, own, *criteria))
        groups[index] = groups[index].model_copy(
            update={"match": patterns(chosen, own.matrices, section.per)}
        )
        console.print(_line(index, groups[index], chosen, own), highlight=False)
    return config.model_copy(update={"groups": groups})


def chosen_matrices(
    setup: Setup, measured: Measured, by: str, fraction: float, per: str = KIND
) -> list[str]:
    """Choose matrices by a criterion.

    Args:
        setup: the run, whose seed of initial weights is that of a random choice.
        measured: with the criterion, unless the choice is random.
        by: a criterion, one of `CHOICES`.
        fraction: of the matrices of each kind, of all, or of the blocks.
        per: `kind`; `model` for all together; or `block` for all matrices of whole blocks, which
            have the highest mean rank within their kinds.

    Raises:
        UserError: a matrix has no value of the criterion.
    """
    kinds = measured.kinds if per != "model" else dict.fromkeys(measured.kinds, "")
    if by == RANDOM:
        scores = random_scores(list(kinds), setup.config.run.seed.init)
    else:
        scores = scores_of(measured, by, list(kinds))
    if per != BLOCK:
        return choose(scores, kinds, fraction)
    ranks = mean_ranks(scores, kinds, {one.name: one.block for one in measured.matrices})
    blocks = choose(ranks, dict.fromkeys(ranks, ""), fraction)
    return [one.name for one in measured.matrices if one.block in blocks]


def patterns(names: Sequence[str], matrices: Sequence[Matrix], per: str = KIND) -> list[str]:
    """Return patterns that match the linear maps of these matrices: kernel, bias and adapter.

    Args:
        names: of matrices.
        matrices: all of the model.
        per: `block` for patterns of the matrices' whole blocks, with their norms.
    """
    if per != BLOCK:
        return [re.escape(name.removesuffix("kernel")) + ".*" for name in names]
    blocks = dict.fromkeys(one.block for one in matrices if one.name in names)
    return [re.escape(block) + ".*" for block in blocks]


def scores_of(measured: Measured, by: str, names: Sequence[str]) -> dict[str, float]:
    """Return the scores by which the highest are chosen.

    Raises:
        UserError: a matrix has none.
    """
    values = {name: value for name, value in measured.scores[by].items() if value is not None}
    missing = [name for name in names if name not in values]
    if missing:
        raise UserError(
            f"The criterion '{by}' is not defined for '{missing[0]}'.",
            "gradient_signal needs two batches, and alpha ten singular values; choose another of "
            f"{', '.join(one for one in CHOICES if one != by)}.",
        )
    sign = 1 if CRITERIA[by].highest else -1
    return {name: sign * value for name, value in values.items()}


def _measure_all(
    setup: Setup, sections: Collection[SelectSection], console: Console
) -> dict[int, Measured]:
    """Measure what the choices need: number of batches -> criteria."""
    wanted: dict[int, set[str]] = {}
    for section in sections:
        if section.by != RANDOM:
            wanted.setdefault(section.batches, set()).add(section.by)
    if not wanted:
        return {}
    with measuring_bar(console) as (begin, advance):
        begin(sum(measurements(setup, *one) for one in wanted.items()))
        return {
            batches: measure(setup, names, batches, advance) for batches, names in wanted.items()
        }


def _unmeasured(setup: Setup) -> Measured:
    return Measured(matrices_of(setup), {}, {}, 0, 0.0)


def _line(index: int, group: Group, chosen: Sequence[str], measured: Measured) -> str:
    """Describe a choice in a line."""
    section = group.select
    assert isinstance(section, SelectSection)
    return (
        f"groups[{index}] ({group.name}): {len(chosen)} of {len(measured.matrices)} matrices of "
        f"the blocks, by {section.by} per {section.per}"
    )
