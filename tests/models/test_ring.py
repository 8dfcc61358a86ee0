"""Attention over the devices of a row: that of one device, whatever a position sees."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.device.mesh import make_mesh
from jaxft.models.layers.attention import AttentionOptions, attention, make_mask
from jaxft.models.layers.kernels import Kernel
from jaxft.models.layers.ring import chunks
from jaxft.models.layers.ring.order import dealt_order

ROWS, LENGTH, HEADS, WIDTH = 2, 48, 4, 8
MESHES = {
    "8": {"context": 8},
    "2 x 4": {"data": 2, "context": 4},
    "2 x 2 x 2": {"fsdp": 2, "context": 2, "tensor": 2},
}


def ring(data=1, fsdp=1, context=1, tensor=1, **options) -> Kernel:
    return Kernel("ring", make_mesh(data, fsdp, tensor, context=context), **options)


def draw(groups: int) -> tuple[jax.Array, ...]:
    """Queries, and keys and values of `groups` heads: [ROWS, LENGTH, ...] each."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(ROWS, LENGTH, WIDTH * heads) for heads in (HEADS, groups, groups)]
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))


def segments() -> jax.Array:
    """A row of three segments and padding, and a row of one."""
    cut = np.repeat([1, 2, 3, 0], np.array([19, 3, 20, 6]) * (LENGTH // 48))
    cut = np.pad(cut, (0, LENGTH - len(cut)))
    return jnp.asarray([cut, np.ones_like(cut)], jnp.int32)


def mixed_and_slopes(arrays, owners, kernel, soft_cap=None, **seen):
    """What attention gives, and its gradients, under a weight for each element of it."""

    def mixed(*arrays):
        mask = make_mask(owners, **seen, kernel=kernel)
        out = attention(*arrays, mask, AttentionOptions(heads=HEADS, soft_cap=soft_cap))
        places = jnp.arange(LENGTH) if kernel is None else jnp.asarray(order_of(kernel, seen))
        weights = jnp.cos(places[:, None] * 7 + jnp.arange(out.shape[-1]))
        return (out * weights).sum(), out

    return jax.jit(jax.grad(mixed, argnums=(0, 1, 2), has_aux=True))(*arrays)


def order_of(kernel: Kernel, seen) -> np.ndarray:
    devices = kernel.mesh.shape["context"]
    dealt = seen.get("causal") and kernel.name == "ring"
    return dealt_order(LENGTH, devices) if dealt else np.arange(LENGTH)


def assert_is_one_devices(kernel, groups=2, **seen):
    arrays, owners = draw(groups), segments()
    wanted = mixed_and_slopes(arrays, owners, None, **seen)
    order = order_of(kernel, seen)
    dealt = [array[:, order] for array in (*arrays, owners)]
    parts = mixed_and_slopes(dealt[:3], dealt[3], kernel, **seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:, order], atol=1e-5), parts, wanted)


SEEN = {
    "causal": {"causal": True},
    "capped": {"causal": True, "soft_cap": 2.0},
    "both sides": {},
    "window": {"causal": True, "window": 5},
    "wide window": {"causal": True, "window": 30, "soft_cap": 2.0},
    "window on both sides": {"window": 8},
}


def shown(*quick: str) -> list:
    """All of `SEEN`, of which some run in every test."""
    return [
        pytest.param(seen, id=name, marks=() if name in quick else pytest.mark.full)
        for name, seen in SEEN.items()
    ]


@pytest.mark.parametrize("seen", shown("capped", "both sides", "window", "window on both sides"))
def test_a_ring_is_one_devices_attention(seen):
    """Grouped queries, in packed rows: outputs and gradients."""
    assert_is_one_devices(ring(**MESHES["2 x 4"]), **seen)


@pytest.mark.full
@pytest.mark.parametrize("mesh", [MESHES["8"], MESHES["2 x 2 x 2"]], ids=["8", "2 x 2 x 2"])
@pytest.mark.parametrize("seen", ["capped", "window"])
def test_so_it_is_on_other_meshes(mesh, seen):
    assert_is_one_devices(ring(**mesh), **SEEN[seen])


def test_a_chunks_keys_are_scored_some_at_a_time(monkeypatch):
    """Three keys of a chunk of six at once."""
    monkeypatch.setattr(chunks, "MOST_SCORES", 3 * HEADS * 6)
    assert chunks._block_size(HEADS * 6, 6) == 3
    assert_is_one_devices(ring(**MESHES["2 x 4"]), **SEEN["wide window"])


@pytest.mark.slow
@pytest.mark.parametrize("seen", shown("wide window"))
def test_chunks_by_splash_are_those_by_xla(seen, monkeypatch):
    """Interpreted, in chunks of 128 and of 256, windows of less than a chunk and of more."""
    monkeypatch.setitem(globals(), "LENGTH", 512)
    if "window" in seen:
        seen = seen | {"window": 13 * seen["window"]}
    kernel = ring(data=2, context=2, tensor=2, chunks="splash", interpret=True)
    assert_is_one_devices(kernel, **seen)


def ulysses(**options) -> Kernel:
    return replace(ring(**options), name="ulysses")


@pytest.mark.parametrize("seen", shown("capped", "both sides", "window", "window on both sides"))
def test_exchanged_heads_are_one_devices_attention(seen):
    """Grouped queries on half of the devices, and four heads of keys on all: with gradients."""
    half = make_mesh(2, 1, 1, jax.devices()[:4], context=2)
    assert_is_one_devices(Kernel("ulysses", half), groups=2, **seen)
    assert_is_one_devices(ulysses(**MESHES["2 x 4"]), groups=4, **seen)


@pytest.mark.parametrize("seen", shown("wide window"))
def test_exchanged_heads_by_splash_are_those_by_xla(seen, monkeypatch):
    monkeypatch.setitem(globals(), "LENGTH", 512)
    if "window" in seen:
        seen = seen | {"window": 13 * seen["window"]}
    kernel = ulysses(data=2, context=2, tensor=2, chunks="splash", interpret=True)
    assert_is_one_devices(kernel, groups=4, **seen)
