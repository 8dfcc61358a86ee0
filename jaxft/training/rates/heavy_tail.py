"""Heavy-tail rates: learning rate multipliers from the spectra of the weights.

A matrix whose spectrum has a large power-law exponent has learned little structure yet and gets a
higher rate. The exponents are measured when a phase begins and every `layer_decay.every` after,
before the step; the multipliers are logged in full precision, so that a resumed run continues bit
for bit.

Source: Zhou et al. (2023), Temperature Balancing, https://arxiv.org/abs/2312.00359, whose
multipliers rise linearly with Hill's estimate from 0.5 to 1.5; Layer-wise Learning Rates
(https://arxiv.org/abs/2605.22297) give language models rates by the same exponents.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft.device.distributed import from_first
from jaxft.device.mesh import fetch
from jaxft.engine.setup import Setup
from jaxft.errors import UserError
from jaxft.layerwise.criteria.spectrum import eigenvalues, hill_exponent, singular_values
from jaxft.layerwise.defaults import is_matrix
from jaxft.layerwise.table import LayerTable

LOWEST, HIGHEST = 0.5, 1.5  # of the multipliers, as in the paper
PRESET = "heavy_tail"


def check_matrices_train(setup: Setup) -> None:
    """Raise a UserError if a run's rates are to come from the spectra of no matrix."""
    if setup.config.layer_decay.preset != PRESET:
        return
    train = any(matrices_of(phase.table) for phase in setup.phases)
    if setup.config.adapter.kind is not None or not train:
        raise UserError(
            "layer_decay.preset: heavy_tail sets rates by the spectra of the blocks' matrices, and "
            "none of them trains.",
            "Use another preset, or train matrices of blocks without an adapter.",
        )


def matrices_of(table: LayerTable) -> list[str]:
    """List the matrices of blocks that train."""
    return [one.name for one in table.leaves if one.trainable and is_matrix(one.name, one.shape)]


def measured_exponents(mesh: Mesh, matrices: Mapping[str, jax.Array]) -> dict[str, float | None]:
    """Estimate the power-law exponent of each matrix's spectrum, one matrix on the host at a time.

    Args:
        mesh: the devices.
        matrices: name -> `[inputs, outputs]`, in any sharding.

    Returns:
        Name -> Hill's estimate from the larger half of the eigenvalues, None where it is not
        defined; the first process's in all of them.
    """
    exponents = {
        name: hill_exponent(eigenvalues(singular_values(fetch(mesh, kernel))))
        for name, kernel in matrices.items()
    }
    return from_first(lambda: exponents)


def heavy_tail_multipliers(table: LayerTable, exponents: Mapping[str, float | None]) -> np.ndarray:
    """Compute the multipliers of the trainable leaves: `[leaves]` float32.

    Those of the matrices rise linearly with their exponents, from 0.5 for the smallest to 1.5 for
    the largest; a bias takes its matrix's, and all else keeps 1. A group's `lr_mult` applies too.

    Args:
        table: of the phase.
        exponents: matrix -> exponent, see `measured_exponents`.
    """
    known = {name: value for name, value in exponents.items() if value is not None}
    low, high = min(known.values(), default=0.0), max(known.values(), default=0.0)
    share = {
        name: (value - low) / (high - low) if high > low else 0.5 for name, value in known.items()
    }

    def multiplier(name: str) -> float:
        matrix = f"{name.rpartition('/')[0]}/kernel"
        if matrix not in share:
            return 1.0
        return LOWEST + (HIGHEST - LOWEST) * share[matrix]

    factors = np.array([multiplier(name) for name in table.trainable])
    return (table.multipliers() * factors).astype(np.float32)
