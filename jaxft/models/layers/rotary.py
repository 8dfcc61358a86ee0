"""Rotary position embedding, and every published scaling of it.

B batch, T positions, H heads, K width of a head.

Source: Su et al. (2021), https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft.errors import UserError, did_you_mean
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.cross import Source
from jaxft.storage.json_files import is_number

# Kind of scaling -> the numbers it must have.
NEEDED = {
    "default": (),
    # Within max_position_embeddings, and a family takes no more, it is the default.
    "dynamic": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("original_max_position_embeddings",),
}
OPTIONAL = {
    "dynamic": ("factor",),
    "yarn": (
        *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        "finetuned",  # a note of the first files of yarn
    ),
    "longrope": ("short_factor", "long_factor", "factor", "attention_factor"),
}
EVERYWHERE = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding of positions.

    Args:
        width: the width K of a head, or of the first part of it that is rotated.
        theta: the base of the wavelengths.
        kind: how it was stretched to longer texts, a key of `NEEDED`; or `still`, which turns
            nothing: a block that has no positions.
        original: the positions it had before it was stretched.
        numbers: what the kind is made of, under Hugging Face's names.
    """

    width: int
    theta: float
    kind: str
    original: int
    numbers: tuple[tuple[str, Any], ...] = ()

    def frequencies(self, far: bool = False) -> tuple[np.ndarray, float]:
        """Return the angles per position [K / 2] float32, and the factor on cosine and sine.

        Args:
            far: whether a text goes beyond the original positions; for `longrope` alone.
        """
        numbers = dict(self.numbers)
        if self.kind == "still":
            return np.zeros(self.width // 2, np.float32), 1.0
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        plain = np.float32(1) / np.float32(self.theta) ** exponents
        if self.kind == "linear":
            return plain / np.float32(numbers["factor"]), 1.0
        if self.kind == "llama3":
            return _llama3(plain, self.original, numbers), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self.theta, self.original, numbers)
        if self.kind == "longrope":
            factors = numbers["long_factor" if far else "short_factor"]
            return plain / np.asarray(factors, np.float32), numbers["attention_factor"]
        return plain, 1.0


def read_rotary(fields: Mapping[str, Any], width: int, theta: float) -> Rotary:
    """Read the rotary embedding of a config.json, in the old or the new spelling.

    Args:
        fields: `rope_parameters`, or `rope_scaling` and `rope_theta`; `max_position_embeddings`.
        width: the width of a head.
        theta: the base where none is given.

    Raises:
        UserError: a kind that is not supported, a number that is missing, unknown or no number.
    """
    scaling = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise UserError("config.json: rope_parameters must be an object.")
    scaling = dict(scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in NEEDED:
        raise UserError(
            f"config.json: the rotary scaling '{kind}' is not supported.",
            did_you_mean(str(kind), NEEDED),
        )
    if width % 2:
        raise UserError(f"config.json: a rotary embedding needs an even head width, not {width}.")
    known = (*EVERYWHERE, *NEEDED[kind], *OPTIONAL.get(kind, ()))
    partial = scaling.pop("partial_rotary_factor", None)
    odd = [name for name in scaling if name not in known]
    if odd or partial not in (None, 1, 1.0):
        name = odd[0] if odd else "partial_rotary_factor"
        raise UserError(f"config.json: the rotary scaling '{kind}' has the unknown field '{name}'.")
    for name in NEEDED[kind]:
        value = scaling.get(name)
        if not is_number(value) or value <= 0:
            raise UserError(
                f"config.json: the rotary scaling '{kind}' has no number '{name}' above 0."
            )
    base = scaling.get("rope_theta") or fields.get("rope_theta") or theta
    original = scaling.get("original_max_position_embeddings") or fields["max_position_embeddings"]
    if kind == "longrope":
        scaling |= _longrope(scaling, width, fields["max_position_embeddings"])
    numbers = tuple((name, scaling[name]) for name in known if name in scaling and name != "type")
    return Rotary(width, float(base), kind, int(original), numbers)


def read_rotaries_by_kind(
    fields: Mapping[str, Any],
    kinds: Sequence[str],
    bases: Mapping[str, float],
    scaling: Mapping[str, Any],
    width: int,
) -> tuple[tuple[Rotary, ...], tuple[int, ...]]:
    """Read the rotary embeddings of a model whose blocks are of several kinds.

    Args:
        fields: `rope_parameters`, by kind or none, and `max_position_embeddings`.
        kinds: each block's.
        bases: every kind that there may be -> the base where none is given.
        scaling: kind -> its `rope_scaling` in the old spelling.
        width: the width of a head.

    Returns:
        The embeddings that blocks have, and the index of each block's.

    Raises:
        UserError: a kind that there is not, or what `read_rotary` refuses.
    """
    parameters = fields["rope_parameters"] or {}
    if odd := [name for name in parameters if name not in bases]:
        raise UserError(
            f"config.json: rope_parameters has '{odd[0]}', which is not a kind of block."
        )
    there = [kind for kind in bases if kind in kinds]
    rotaries, most = [], {"max_position_embeddings": fields["max_position_embeddings"]}
    for kind in there:
        own, over = parameters.get(kind), scaling.get(kind)
        own = _stretched(own, over) if over else own
        if isinstance(own, dict):
            # transformers reads `truncate` of yarn beside the kinds only, and so as its default.
            own = {name: value for name, value in own.items() if name != "truncate"}
        rotaries.append(read_rotary({"rope_parameters": own, **most}, width, bases[kind]))
    return tuple(rotaries), tuple(there.index(kind) for kind in kinds)


def _stretched(own: Any, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a kind of block under those of `rope_scaling`, as transformers."""
    if "rope_type" not in scaling and scaling.get("type", "default") != "default":
        message = "config.json: rope_scaling has a 'type', which is not read for this model_type."
        raise UserError(message, "Call it rope_type.")
    return {**(own if isinstance(own, dict) else {"rope_type": "default"}), **scaling}


def _longrope(scaling: Mapping[str, Any], width: int, positions: int) -> dict[str, Any]:
    """Check the factor lists of `longrope`, and return them and its factor on cosine and sine.

    Source: Ding et al. (2024), https://arxiv.org/abs/2402.13753; `transformers`.
    """
    checked: dict[str, Any] = {}
    for name in ("short_factor", "long_factor"):
        factors = scaling.get(name)
        if not isinstance(factors, list) or len(factors) != width // 2:
            raise UserError(
                f"config.json: the rotary scaling 'longrope' needs {width // 2} numbers in "
                f"'{name}'."
            )
        checked[name] = tuple(map(float, factors))
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or positions / original
    suggested = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return checked | {"attention_factor": scaling.get("attention_factor") or suggested}


def _llama3(plain: np.ndarray, original: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """Stretch long wavelengths, keep short ones, and interpolate between.

    Source: Llama Team (2024), https://arxiv.org/abs/2407.21783; `transformers`.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = original * plain / np.float32(2 * math.pi)  # over the original length
    mix = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - mix) * plain / scaling["factor"] + mix * plain).astype(np.float32)


def _yarn(
    plain: np.ndarray, theta: float, original: int, scaling: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    """Stretch as `_llama3` does, interpolated by dimension; scale cosine and sine.

    Source: Peng et al. (2023), https://arxiv.org/abs/2309.00071; `transformers`.
    """
    width, factor = 2 * len(plain), scaling["factor"]

    def dimension(turns: float) -> float:
        """Return the dimension whose wave turns that often over the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(len(plain), dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    mixed = plain / factor * ramp + plain * (1 - ramp)
    return mixed.astype(np.float32), _yarn_scale(factor, scaling)


def _yarn_scale(factor: float, scaling: Mapping[str, Any]) -> float:
    """Return the factor on cosine and sine: the configured one, or the paper's."""

    def suggested(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return suggested(scaling["mscale"]) / suggested(scaling["mscale_all_dim"])
    return suggested(1.0)


def rotary_waves(rotary: Rotary, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute cosine and sine at `positions` [B or 1, T]: each [B or 1, T, 1, K / 2] float32.

    As in transformers, one text beyond the original positions turns all of the batch by the
    `longrope` of long texts.
    """
    frequencies: Any
    frequencies, scale = rotary.frequencies()
    if rotary.kind == "longrope":
        far, _ = rotary.frequencies(far=True)
        frequencies = jnp.where(positions.max() >= rotary.original, far, frequencies)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RotaryContext:
    """Context of blocks with rotary positions: what each reads beside the stream.

    Args:
        mask: which positions see which.
        cosine, sine: the waves of each rotary embedding at each position:
            [N, B or 1, T, 1, K / 2] float32.
        source: what a decoder reads; None where it reads nothing.
        mesh: the devices, for blocks that divide their own work; None where they are not known.
    """

    mask: Mask
    cosine: jax.Array
    sine: jax.Array
    source: Source | None = None
    mesh: Mesh | None = field(default=None, metadata={"static": True})


def rotary_context(mask: Mask, rotaries: Sequence[Rotary], positions: jax.Array) -> RotaryContext:
    """Compute the waves of every rotary embedding at `positions` [B or 1, T]."""
    waves = [rotary_waves(rotary, positions) for rotary in rotaries]
    cosine, sine = (jnp.stack(parts) for parts in zip(*waves, strict=True))
    return RotaryContext(mask, cosine, sine)


def rotate(x: jax.Array, waves: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate `x` [B, T, H, K] by its positions: element i is paired with i + K / 2.

    Where the waves are for less than K, the elements beyond are left as they are.
    """
    cosine, sine = waves
    if (width := 2 * cosine.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], waves), x[..., width:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
