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
from jaxft.engine.initial_state import abstract_state, state_shardings
from jaxft.engine.setup import build, objective_of
from jaxft.engine.step import Rates, make_train_step
from tests.support.phases import phase_of


def main(config: str, topology: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    built = build(load_config(Path(config)), devices=devices)
    frozen = {
        name: jax.ShapeDtypeStruct(built.model.params[name].shape, built.compute.dtype)
        for name in phase_of(built).table.frozen
    }
    step = make_train_step(
        objective_of(built, phase_of(built).compute),
        phase_of(built).optimizer,
        accumulate=built.config.train.accumulate,
        ema=built.config.train.ema,
        state_shardings=state_shardings(built, phase_of(built)),
        frozen_shardings={name: built.shardings[name] for name in frozen},
        mesh=built.mesh,
    )
    layout = built.layout
    first = built.splits["train"].examples.collate(built.plan.batch(0), layout.row_length)
    rows = batch_sharding(built.mesh)
    batch = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) for n, a in first.items()}
    rates = Rates(
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
