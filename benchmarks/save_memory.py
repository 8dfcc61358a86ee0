"""What repeated saves in the background take of the hosts' memory, on two processes.

`python -m benchmarks.save_memory` starts two processes, whose devices share a state of random
arrays, and saves it 20 times, with a step that changes every array beside each save. Wanted is that
a process never has more memory after the last five saves than it had after one of the first five:
what saves take is bounded, and given back. Where a step outlasts the save beside it, the arrays
that it replaced are still counted. `--gigabytes 4` is the size of an 8B model's state on a pod's
host.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import record
from jaxft.device.distributed import start
from jaxft.device.mesh import batch_sharding, make_mesh, replicated
from jaxft.device.process import prepare_process
from jaxft.engine.state import TrainState
from jaxft.launch.cluster import Cluster
from jaxft.runs.checkpoint import Checkpoints

SAVES, ARRAYS, PROCESSES = 20, 16, 2
ENDS = 5  # saves, the first and the last, whose largest memory is compared
MOST_GROWTH = 0.05  # of the state's bytes on a process, between these


def resident() -> int:
    """Return the bytes of this process in memory, without what maps files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def made(nbytes: int) -> TrainState:
    """A state of so many bytes over all processes, cut over their devices."""
    mesh = make_mesh(1, -1, 1)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    shape = (jax.device_count() * 256, nbytes // (4 * ARRAYS * jax.device_count() * 256))

    def make() -> TrainState:
        arrays = {f"layer_{n}/kernel": jnp.full(shape, n, jnp.float32) for n in range(ARRAYS)}
        arrays = {n: jax.lax.with_sharding_constraint(a, rows) for n, a in arrays.items()}
        numbers = jnp.int32(0), jnp.int32(0)
        step, bad = (jax.lax.with_sharding_constraint(one, whole) for one in numbers)
        return TrainState(step, arrays, {}, jax.random.key(0), None, {}, bad)

    return jax.jit(make)()


def save(folder: str, nbytes: int, saves: int) -> list[int]:
    """Save again and again beside steps; return the bytes in memory after each save."""
    state = made(nbytes)
    advance = jax.jit(lambda state: jax.tree.map(_next, state), donate_argnums=0)
    after = []
    with Checkpoints(Path(folder), keep=2) as checkpoints:
        for number in range(saves):
            checkpoints.save(number + 1, state)
            state = jax.block_until_ready(advance(state))
            checkpoints.wait()
            after.append(resident())
    return after


def _next(leaf: jax.Array) -> jax.Array:
    return leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.number) else leaf


def main() -> int:
    """Start the processes, or be one of them; print and record what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.25, help="of the whole state")
    parser.add_argument("--saves", type=int, default=SAVES)
    parser.add_argument("--folder", help="save there, as one of the processes")
    asked = parser.parse_args()
    nbytes = int(asked.gigabytes * 1e9)
    if asked.folder:
        prepare_process()
        start()
        print(json.dumps(save(asked.folder, nbytes, asked.saves)))
        return 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="jaxft-saves-") as folder:
        words = ["--gigabytes", str(asked.gigabytes), "--saves", str(asked.saves)]
        command = [sys.executable, "-m", "benchmarks.save_memory", *words, "--folder", folder]
        started = []
        for number in range(PROCESSES):
            place = Cluster(address, PROCESSES, number).environment()
            variables = {**os.environ, **place, "JAX_PLATFORMS": "cpu"}
            started.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE))
        after = [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
    growth = [max(one[-ENDS:]) - max(one[:ENDS]) for one in after]
    for number, (one, more) in enumerate(zip(after, growth, strict=True)):
        spread = f"{np.min(one) / 1e6:.0f} to {np.max(one) / 1e6:.0f}"
        print(f"process {number}: {spread} MB after a save, the largest grew by {more / 1e6:+.1f}")
    facts = {"gigabytes": asked.gigabytes, "saves": asked.saves, "after": after}
    record("save_memory", facts)
    return 1 if max(growth) > MOST_GROWTH * nbytes / PROCESSES else 0


if __name__ == "__main__":
    sys.exit(main())
