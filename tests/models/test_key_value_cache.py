"""The key-value cache is an argument and a result: nothing that a caller holds changes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.layers.attention import (
    AttentionOptions,
    Mask,
    attention,
    cached_attention,
    make_mask,
)
from jaxft.models.layers.cache import KeyValues
from jaxft.models.layers.cross import Source, cross_attention

BATCH, LENGTH, PROMPT, HEADS, GROUPS, WIDTH = 2, 6, 3, 4, 2, 8
OPTIONS = AttentionOptions(HEADS)


def arrays():
    sizes = (HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH)
    return [
        jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, size))
        for seed, size in enumerate(sizes)
    ]


def test_one_position_at_a_time_over_a_cache_is_attention_over_all():
    query, key, value = arrays()
    segments = jnp.ones((BATCH, LENGTH), jnp.int32)
    whole = attention(query, key, value, make_mask(segments, causal=True), OPTIONS)

    def part(cache, positions, mask):
        own = (x[:, positions] for x in (query, key, value))
        return cached_attention(*own, mask, cache, OPTIONS)

    blank = KeyValues(LENGTH)
    first = make_mask(segments[:, :PROMPT], causal=True)
    out, cache = part(blank, slice(PROMPT), first)
    np.testing.assert_allclose(out, whole[:, :PROMPT], atol=1e-6)
    assert blank == KeyValues(LENGTH), "what was passed stays as it was"
    for position in range(PROMPT, LENGTH):
        slot = jnp.int32(position)
        before = KeyValues(LENGTH, slot, *cache.arrays())
        bits = [np.asarray(x).tobytes() for x in before.arrays()]
        mask = make_mask(segments, causal=True, slot=slot)
        out, after = part(before, slice(position, position + 1), mask)
        again, _ = part(before, slice(position, position + 1), mask)
        np.testing.assert_array_equal(out, again)
        np.testing.assert_allclose(out[:, 0], whole[:, position], atol=1e-6)
        assert [np.asarray(x).tobytes() for x in before.arrays()] == bits
        cache = after


def test_a_source_is_projected_once_and_read_from_the_cache():
    query, key, value = arrays()
    calls = []

    def project(hidden):
        calls.append(hidden)
        return key, value

    source = Source(jnp.zeros((BATCH, LENGTH, 1)), Mask(jnp.ones((BATCH, LENGTH), jnp.int32), None))
    whole, filled = cross_attention(query, project, source, KeyValues(LENGTH), OPTIONS)
    one, same = cross_attention(query[:, :1], project, source, filled, OPTIONS)
    assert len(calls) == 1
    assert same is filled
    np.testing.assert_allclose(one, whole[:, :1], atol=1e-6)
