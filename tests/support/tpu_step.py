"""Compiles a config's train step for a TPU that is not there, and says what is in the program.

A process of its own, since libtpu is loaded once and has no device:
`python -m tests.support.tpu_step CONFIG TOPOLOGY` prints JSON: `kernels`, the number of Pallas
kernels in it.
"""

import json
import sys
from pathlib import Path

import jax
from jax.experimental import topologies

from jaxft.config.load import load_config
from jaxft.device.mesh import batch_sharding
from jaxft.engine.initial_state import abstract_state
from jaxft.engine.setup import build
from jaxft.engine.step import StepInputs
from jaxft.training.phase import make_step
from tests.support.phases import phase_of


def main(config: str, topology: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    built = build(load_config(Path(config)), devices=devices)
    frozen = {
        name: jax.ShapeDtypeStruct(built.model.params[name].shape, phase_of(built).compute.dtype)
        for name in phase_of(built).table.frozen
    }
    step = make_step(built, phase_of(built), frozen)
    layout = built.layout
    first = built.splits["train"].examples.collate(built.plan.batch(0), layout.row_length)
    rows = batch_sharding(built.mesh)
    batch = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) for n, a in first.items()}
    rates = StepInputs(
        phase_of(built).rates[0],
        phase_of(built).table.multipliers(),
        phase_of(built).table.weight_decays(),
    )
    text = (
        step.lower(abstract_state(built, phase_of(built)), frozen, batch, rates).compile().as_text()
    )
    print(json.dumps({"kernels": text.count("tpu_custom_call")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
