"""`jaxft layers`: every criterion of every matrix, how they agree, and groups made of one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from jaxft.analysis.layer_criteria.measure import (
    Advance,
    Measured,
    measure,
    measured_setup,
    measurements,
)
from jaxft.analysis.layer_criteria.select import chosen_matrices, patterns
from jaxft.config.load import Config, to_yaml
from jaxft.engine.setup import Setup
from jaxft.layerwise.criteria.choose import CRITERIA, rank_correlations
from jaxft.report.terminal.criteria import criteria_tables
from jaxft.report.terminal.tables import checkpoint_names

GROUPS_MARK = b"# Groups by jaxft layers"
Begin = Callable[[int], None]  # called with the number of measurements to come


@dataclass(frozen=True)
class LayerCriteria:
    """Criteria of the matrices of a model's blocks.

    Attributes:
        setup: the run that they were measured on.
        measured: their values.
    """

    setup: Setup
    measured: Measured

    def content(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        scores = self.measured.scores
        return {
            "checkpoint": checkpoint_names(self.setup.config.model.checkpoint),
            "data": self.setup.config.data.train,
            "batches": self.measured.batches,
            "examples": self.measured.batches * self.measured.examples,
            "optimizer": self.setup.config.optimizer.name,
            "criteria": {
                name: {"title": CRITERIA[name].title, "meaning": CRITERIA[name].lead}
                | {"by_block": CRITERIA[name].by_block}
                for name in scores
            },
            "matrices": [self._row(index) for index in range(len(self.measured.matrices))],
            "rank_correlations": rank_correlations(
                {name: scores[name] for name in scores if CRITERIA[name].highest is not None},
                self.measured.kinds,
            ),
        }

    def _row(self, index: int) -> dict[str, Any]:
        one = self.measured.matrices[index]
        fit = self.measured.fits.get(one.name)
        fitted: dict[str, Any] = dict.fromkeys(("alpha_interval", "alpha_error", "alpha_xmin"))
        if fit is not None:
            fitted = {
                "alpha_interval": list(fit.interval),
                "alpha_error": fit.error,
                "alpha_xmin": fit.xmin,
            }
        return {
            "name": one.name,
            "block": one.block.removesuffix("/"),
            "kind": one.kind,
            "depth": one.depth,
            "shape": list(one.shape),
            **{name: scores[one.name] for name, scores in self.measured.scores.items()},
            **fitted,
        }

    def to_json(self) -> str:
        """Format it as JSON."""
        return json.dumps(self.content(), indent=2)

    def render(self) -> RenderableType:
        """Format it as tables for a terminal."""
        return criteria_tables(self.content())

    def groups(self, by: str, fraction: float) -> str:
        """Write groups in which a share of the matrices of each kind trains, as YAML.

        Biases train with their matrices. The other parameters of the blocks and the embeddings
        are frozen; the final norm, the pooler and the head of each tower train as well.

        Args:
            by: a criterion, one of `CHOICES`.
            fraction: of the matrices of each kind.
        """
        chosen = chosen_matrices(self.setup, self.measured, by, fraction)
        model = self.setup.model
        tops = [name for name in model.leaves if model.depths[name] == model.tops[name]]
        groups: list[dict[str, Any]] = [
            {"name": "chosen", "match": patterns(chosen, self.measured.matrices)}
        ]
        if tops:
            groups.append({"name": "top", "match": [re.escape(name) for name in tops]})
        groups.append({"name": "frozen", "match": ".*", "freeze": True})
        total = len(self.measured.matrices)
        head = f"{GROUPS_MARK.decode()}: {len(chosen)} of {total} matrices train, by {by}."
        return f"{head}\n{to_yaml({'groups': groups})}"


def layer_criteria(config: Config, batches: int, begin: Begin, advance: Advance) -> LayerCriteria:
    """Measure every criterion of a config's model, with nothing trained.

    Args:
        config: the run; its groups, phases and adapter play no part.
        batches: training batches to read, at most one epoch of them.
        begin: called before the first measurement.
        advance: called after each.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.
    """
    setup = measured_setup(config)
    begin(measurements(setup, batches, CRITERIA))
    return LayerCriteria(setup, measure(setup, CRITERIA, batches, advance))
