"""What compilers are told beside the program."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxft.device.compiler_options import compiler_options
from jaxft.device.mesh import make_mesh, replicated
from jaxft.engine import step
from jaxft.engine.state import TrainState


def test_one_device_and_tpus_are_told_nothing():
    assert compiler_options("gpu", 1) is None
    assert compiler_options("tpu", 256) is None
    assert compiler_options("cpu", 8) is None


def test_several_gpus_are_told_what_their_compiler_knows():
    """XLA knows the options of all its platforms in each."""
    lowered = jax.jit(jnp.sum).lower(jax.ShapeDtypeStruct((2,), jnp.float32))
    told = compiler_options("gpu", 8)
    assert told["xla_gpu_enable_latency_hiding_scheduler"] is True
    lowered.compile(compiler_options=told)
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={**told, "xla_gpu_enable_wonders": True})


def test_a_later_jaxlib_is_told_nothing_that_it_has_dropped():
    pipelined = {f"xla_gpu_enable_pipelined_{kind}" for kind in ("all_gather", "all_reduce")}
    assert pipelined < compiler_options("gpu", 8, "0.10.2").keys()
    for version in ("0.11.0", "0.12.0.1"):
        left = compiler_options("gpu", 8, version)
        assert left == {"xla_gpu_enable_latency_hiding_scheduler": True}


def test_the_step_is_compiled_with_them(monkeypatch):
    """A word that no compiler knows, told for the platform and devices of the mesh."""
    asked = []

    def options(platform, devices):
        asked.append((platform, devices))
        return {"xla_wonders": True}

    monkeypatch.setattr(step, "compiler_options", options)
    mesh = make_mesh(8, 1, 1)
    whole = replicated(mesh)
    made = step.make_train_step(
        lambda params, batch, key: {"loss": (params["a"].sum(), 1.0)},
        optax.with_extra_args_support(optax.identity()),
        accumulate=1,
        ema=None,
        state_shardings=whole,
        frozen_shardings={},
        mesh=mesh,
    )
    assert asked == [("cpu", 8)]
    leaf, count = jnp.ones(2), jnp.zeros((), jnp.int32)
    state = TrainState(count, {"a": leaf}, (), jax.random.key(0), None, {}, count)
    batch = {"a": jnp.ones(8)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_wonders"):
        made(state, {}, batch, step.StepInputs(leaf, leaf, leaf))
