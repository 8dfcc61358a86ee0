"""Residuals of a block by name: which the backward pass saves, on the device or in host memory.

A linear map's product has the map's path in its block as its name (`attention/query`, `mlp/up`);
`block_input` is the stream that enters a block, and `attention_output` what attention mixes, with
what its kernel saves for its own backward pass. What has no name is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxft.models.layers.math import PRODUCT

BLOCK_INPUT = "block_input"
HOST = "pinned_host"
Policy = Callable[..., Any]


@dataclass(frozen=True)
class Residuals:
    """Named residuals that are kept instead of recomputed.

    Args:
        save: those that stay on the device; a block's input does if it is not offloaded.
        offload: those that wait in host memory for the backward pass.
    """

    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = {"save": self.save, "offload": self.offload}
        return "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts.items() if names)


Remat = str | Residuals  # none, dots, full or auto; or names


def policy_of(remat: Remat) -> Policy | None:
    """Return what the backward pass saves, in a block and between the blocks of a scan.

    None where it saves everything.
    """
    policies = jax.checkpoint_policies
    if isinstance(remat, Residuals):
        saved = {BLOCK_INPUT, *remat.save} - {*remat.offload}
        policy: Policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=sorted(saved),
            names_which_can_be_offloaded=list(remat.offload),
            offload_src="device",
            offload_dst=HOST,
        )
        return policy
    names = {"full": (BLOCK_INPUT,), "dots": (BLOCK_INPUT, PRODUCT)}.get(remat)
    return None if names is None else policies.save_only_these_names(*names)
