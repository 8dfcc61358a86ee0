"""Criteria of every matrix of a model's blocks, from its weights and a few training batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxft.analysis.layer_criteria.program import gradient_sums, state_measures, tokens_of
from jaxft.analysis.layer_criteria.residual_norms import passes, residual_norms
from jaxft.config.load import Config, parse_config
from jaxft.device.mesh import fetch
from jaxft.engine.cost import count_flops
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import Setup, build
from jaxft.layerwise.criteria import gradients, spectrum
from jaxft.layerwise.criteria.choose import CRITERIA, Scores
from jaxft.layerwise.defaults import state_bytes
from jaxft.models.adapters.low_rank import kernels_of
from jaxft.models.layers.math import linear
from jaxft.models.tower.tower import Tower

SPECTRA = ("alpha", "hill", "above_noise", "spectrum")
GRADIENTS = ("relative_gradient", "gradient_signal", "fisher", "layer_card")
STATES = ("outliers", "residual", "cosine", "cls_cosine")
COSTS = ("flops", "optimizer_bytes")
# What decides which parameters train, and how: the criteria are measured with none of it.
LEFT_OUT = (
    "groups",
    "phases",
    "freezing",
    "sampling",
    "adapter",
    "layer_decay",
    "regularise",
)
Advance = Callable[[str], None]  # called with what has just been measured


@dataclass(frozen=True)
class Matrix:
    """One matrix of a block.

    Attributes:
        name: of the parameter.
        shape: inputs and outputs.
        block: the prefix of its block's names, `blocks/3/`.
        kind: its path in the block, `attention/query`, behind the prefix of its tower.
        depth: of the parameter: i + 1 in block i.
    """

    name: str
    shape: tuple[int, int]
    block: str
    kind: str
    depth: int


@dataclass(frozen=True)
class Measured:
    """Criteria of a model's matrices.

    Attributes:
        matrices: in order of depth.
        scores: criterion -> matrix -> value; None where it is not defined.
        fits: matrix -> the power law fitted to its spectrum, where `alpha` was measured.
        batches: training batches that were read.
        examples: examples in a batch, on average.
    """

    matrices: tuple[Matrix, ...]
    scores: dict[str, Scores]
    fits: dict[str, spectrum.PowerLaw | None]
    batches: int
    examples: float

    @property
    def kinds(self) -> dict[str, str]:
        """Map each matrix to its kind."""
        return {one.name: one.kind for one in self.matrices}


def measured_setup(config: Config) -> Setup:
    """Set up a run in which everything trains, without adapter, as the criteria are measured.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.
    """
    written = config.model_dump(mode="json", exclude_unset=True)
    return build(parse_config({k: v for k, v in written.items() if k not in LEFT_OUT}))


def matrices_of(setup: Setup) -> tuple[Matrix, ...]:
    """List the matrices of the linear maps of all blocks, from the input up."""
    made = []
    for tower in setup.model.towers.values():
        if not isinstance(tower, Tower):
            continue
        for name, leaf in kernels_of({"": tower}).items():
            depth = tower.depths[name]
            block = tower.block_prefix(depth - 1)
            path = name.removeprefix(block).removesuffix("/kernel")
            inside, outside = leaf.shape
            made.append(Matrix(name, (inside, outside), block, tower.prefix + path, depth))
    return tuple(made)


def measurements(setup: Setup, batches: int, wanted: Collection[str]) -> int:
    """Count how often `measure` will call `advance`."""
    count, matrices = min(batches, setup.length.steps_per_epoch), matrices_of(setup)
    readings = sum(any(name in wanted for name in one) for one in (GRADIENTS, STATES))
    if "layer_card" in wanted:
        readings += len(passes({one.name: one.shape[0] for one in matrices}))
    spectra = len(matrices) if any(name in wanted for name in SPECTRA) else 0
    return spectra + readings * count


def measure(
    setup: Setup, wanted: Collection[str], batches: int, advance: Advance = lambda _: None
) -> Measured:
    """Measure criteria of every matrix of a model's blocks, with nothing trained.

    Args:
        setup: from `measured_setup`.
        wanted: criteria, names of `CRITERIA`; only what they need is computed.
        batches: of the train split, the first of the run; at most one epoch of them.
        advance: called after each matrix and each batch.
    """
    matrices, count = matrices_of(setup), min(batches, setup.length.steps_per_epoch)
    names = tuple(one.name for one in matrices)
    params = load_params(setup).params
    scores: dict[str, Scores] = {}
    fits: dict[str, spectrum.PowerLaw | None] = {}
    if any(name in wanted for name in SPECTRA):
        scores |= _spectra(setup, params, matrices, fits, advance)
    if any(name in wanted for name in GRADIENTS):
        scores |= _gradients(setup, params, names, count, "layer_card" in wanted, advance)
    if any(name in wanted for name in STATES):
        states = state_measures(setup, params, count, lambda: advance("states"))
        scores["outliers"] = {name: states.outliers.get(name) for name in names}
        for by_block in ("residual", "cosine", "cls_cosine"):
            values = getattr(states, by_block)
            scores[by_block] = {one.name: values[one.block] for one in matrices}
    if any(name in wanted for name in COSTS):
        scores |= _costs(setup, matrices)
    chosen = {name: _finite(scores[name]) for name in CRITERIA if name in wanted}
    return Measured(matrices, chosen, fits, count, setup.layout.examples_per_step)


def _spectra(
    setup: Setup,
    params: Mapping[str, jax.Array],
    matrices: tuple[Matrix, ...],
    fits: dict[str, spectrum.PowerLaw | None],
    advance: Advance,
) -> dict[str, Scores]:
    """Measure the spectrum of each matrix, one matrix on the host at a time."""
    scores: dict[str, dict[str, float | None]] = {name: {} for name in SPECTRA}
    for one in matrices:
        singular = spectrum.singular_values(fetch(setup.mesh, params[one.name]))
        values = spectrum.eigenvalues(singular)
        fit = fits[one.name] = spectrum.fit_power_law(values)
        scores["alpha"][one.name] = None if fit is None else fit.exponent
        scores["hill"][one.name] = spectrum.hill_exponent(values)
        scores["above_noise"][one.name] = spectrum.share_above_noise(singular, one.shape)
        scores["spectrum"][one.name] = spectrum.signal_to_noise(singular, one.shape)
        advance("spectra")
    return {name: dict(values) for name, values in scores.items()}


def _gradients(
    setup: Setup,
    params: Mapping[str, jax.Array],
    names: tuple[str, ...],
    count: int,
    layer_card: bool,
    advance: Advance,
) -> dict[str, Scores]:
    """Measure the gradient of each matrix over batches, if asked for against its inputs too."""
    sums, mean = gradient_sums(setup, params, names, count, lambda: advance("gradients"))
    scores: dict[str, Scores] = {
        "relative_gradient": {n: gradients.relative_gradient(sums[n]) for n in names},
        "gradient_signal": {n: gradients.gradient_signal(sums[n]) for n in names},
        "fisher": {n: gradients.fisher_trace(sums[n]) for n in names},
    }
    if layer_card:
        scores["layer_card"] = residual_norms(
            setup, params, mean, count, lambda: advance("inputs of the matrices")
        )
    return scores


def _costs(setup: Setup, matrices: tuple[Matrix, ...]) -> dict[str, Scores]:
    """Count what each matrix costs in a step in which it trains."""
    tokens, optimizer = tokens_of(setup), setup.config.optimizer
    counted = cache(_matrix_flops)
    return {
        "flops": {
            one.name: counted(tokens[one.name], one.shape) if one.name in tokens else None
            for one in matrices
        },
        "optimizer_bytes": {
            one.name: state_bytes(optimizer.name, one.name, one.shape, optimizer.moments)
            for one in matrices
        },
    }


def _matrix_flops(tokens: int, shape: tuple[int, int]) -> int:
    """Count the FLOPs of a linear map's forward pass and of both of its gradients."""

    def step(x: Any, kernel: Any) -> Any:
        out, backward = jax.vjp(lambda x, kernel: linear(x, kernel, None), x, kernel)
        return backward(out)

    arrays = [jax.ShapeDtypeStruct(s, np.float32) for s in ((tokens, shape[0]), shape)]
    return count_flops(step, *arrays)


def _finite(scores: Scores) -> Scores:
    return {n: v if v is not None and np.isfinite(v) else None for n, v in scores.items()}
