"""What the loss in pieces saves: peak memory of a 1B Llama's gradient, as the compiler says it.

`python -m benchmarks.loss_memory` compiles for one CPU device, and with `--topology v5e:2x2` for
that TPU, which takes `libtpu` (Linux on x86-64) and no TPU. Nothing is allocated or run: arrays
are shapes. The shape is Llama 3.2 1B's, in bfloat16 with blocks computed again on the way back,
on 4 rows of 2,048 tokens a device.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

# Before jax is imported: it compiles for a TPU on a machine that has none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from jaxft.device.mesh import batch_sharding, make_mesh, param_shardings, replicated
from jaxft.models.families.llama import llama
from jaxft.models.family import leaves_of
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute

FIELDS = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 2_048,
    "intermediate_size": 8_192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8_192,
    "head_dim": 64,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}
ROWS, LENGTH = 4, 2_048  # a device


def plain_loss(outputs: Mapping[str, jax.Array], targets: jax.Array) -> jax.Array:
    """The mean loss from scores in full."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], targets)
    return losses.mean()


def peak(mesh: jax.sharding.Mesh, platform: str, pieces: bool) -> dict[str, float]:
    """The compiled gradient's memory a device, in GB: `peak`, and `temporary`, of which it is part.

    Args:
        mesh: the devices; parameters are cut over `fsdp`.
        platform: what they are.
        pieces: the loss in pieces; else from scores in full.
    """
    towers = llama.towers(llama.Config.from_hf(FIELDS), "causal_lm", None)
    leaves = leaves_of(towers)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    places = param_shardings(shapes, {name: leaf.axes for name, leaf in leaves.items()}, mesh)
    rows = batch_sharding(mesh)
    compute = Compute("bfloat16", scan=True, remat="full", platform=platform, mesh=mesh)

    def loss(params, batch):
        inputs = batch if pieces else {"input_ids": batch["input_ids"]}
        outputs = run_tower(towers["text"], params, inputs, None, compute)
        return outputs["losses"].mean() if pieces else plain_loss(outputs, batch["targets"])

    whole = (ROWS * mesh.size, LENGTH)
    batch = {n: jax.ShapeDtypeStruct(whole, jnp.int32) for n in ("input_ids", "targets")}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    step = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(places, dict.fromkeys(batch, rows)),
        out_shardings=(replicated(mesh), places),
    )
    said = step.lower(params, batch).compile().memory_analysis()
    assert said is not None  # both compilers say
    return {"peak": said.peak_memory_in_bytes / 1e9, "temporary": said.temp_size_in_bytes / 1e9}


def main() -> int:
    """Compile both and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", help="a TPU and its shape, such as v5e:2x2")
    topology = parser.parse_args().topology
    devices, platform = jax.devices()[:1], "cpu"
    if topology:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        platform = "tpu"
    mesh = make_mesh(1, -1, 1, devices)
    for pieces in (False, True):
        said = peak(mesh, platform, pieces)
        name = "in pieces" if pieces else "in full  "
        print(
            f"{topology or 'one CPU device'}, loss {name}: "
            f"peak {said['peak']:.2f} GB, temporary {said['temporary']:.2f} GB a device"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
