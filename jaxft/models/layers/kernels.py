"""Attention kernels of accelerators: which of them can serve a model, and why none can.

B rows, T positions, H heads, G heads of keys and values, K width of a head. Neither kernel keeps
scores [B, H, T, T], and neither has dropout on the attention weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax.sharding import Mesh

from jaxft.errors import UserError

PLATFORMS = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}
ATTENTION_OUTPUT = "attention_output"  # the name of what attention mixes, a residual
# The mesh's axes that rows, positions and heads are cut over.
ROWS, CONTEXT, HEADS = ("data", "fsdp", "expert"), "context", "tensor"
RING, ULYSSES, SPLASH, XLA = "ring", "ulysses", "splash", "xla"
LANES = 128  # splash takes positions by so many
WIDEST = 128  # head that cudnn takes on every GPU


@dataclass(frozen=True)
class Needs:
    """Requirements of a model on an attention kernel.

    Args:
        heads, groups: H and G.
        width: K.
        rate: dropout on the attention weights.
        soft_cap: bound of the scores; None for none.
        positions: whether something learned is added to the scores.
        causal: whether a position sees itself and those before it only.
    """

    heads: int
    groups: int
    width: int
    rate: float = 0.0
    soft_cap: float | None = None
    positions: bool = False
    causal: bool = False


@dataclass(frozen=True)
class Setting:
    """Setting in which attention runs.

    Args:
        platform: what the program is compiled for.
        dtype: the type of queries, keys and values.
        dropout: whether dropout is on.
        mesh: the devices that rows and heads are cut over; None where it is not known.
        rows, length: B and T.
    """

    platform: str
    dtype: str
    dropout: bool
    mesh: Mesh | None
    rows: int
    length: int


@dataclass(frozen=True)
class Kernel:
    """Attention kernel that serves a model.

    Args:
        name: `cudnn`, `splash`, or where the positions of a row lie on several devices `ring` or
            `ulysses`.
        mesh: the devices that rows, positions and heads are cut over; None for one device.
        interpret: run splash as plain jax, as tests do where there is no TPU.
        chunks: what computes the parts of a ring, or the rows of Ulysses: `xla` or `splash`.
    """

    name: str
    mesh: Mesh | None = None
    interpret: bool = False
    chunks: str = XLA

    @property
    def reads_bias(self) -> bool:
        """Return whether it reads the bias of the scores; else it reads the segments."""
        return self.name == "cudnn"


@dataclass(frozen=True)
class Choice:
    """Implementation of attention that was chosen for a model.

    Args:
        kernel: what computes attention; None for XLA, which keeps the scores [B, H, T, T].
        reason: why it is that one, to follow "since".
    """

    kernel: Kernel | None
    reason: str

    @property
    def name(self) -> str:
        """Return `xla`, or the kernel's name."""
        return "xla" if self.kernel is None else self.kernel.name


def choose(asked: str, needs: Needs, setting: Setting) -> Choice:
    """Choose the implementation of attention for a model.

    Args:
        asked: `auto` takes a kernel where one can serve; `xla`; or a kernel's name, of which
            `ulysses` is for rows on several devices, and `auto` elsewhere.
        needs: what the model asks.
        setting: where it runs.

    Raises:
        UserError: the kernel that is asked for cannot serve.
    """
    if (devices := context_of(setting.mesh)) > 1:
        return _over_context(asked, needs, setting, devices)
    if asked == "xla":
        return Choice(None, "train.attention=xla")
    if asked not in ("auto", ULYSSES):
        why = refusal(asked, needs, setting)
        if why is None:
            return Choice(Kernel(asked, setting.mesh), f"train.attention={asked}")
        raise UserError(
            f"train.attention: {asked} cannot serve this run: {why}.",
            "Use train.attention=auto, which takes a kernel only where it can serve.",
        )
    name = next((n for n, names in PLATFORMS.items() if setting.platform in names), None)
    if name is None:
        return Choice(None, f"there is no kernel for {setting.platform}")
    why = refusal(name, needs, setting) or _misfit(name, setting)
    if why is None:
        return Choice(Kernel(name, setting.mesh), f"it serves on {PLATFORMS[name][0].upper()}s")
    return Choice(None, f"{name} cannot serve: {why}")


def context_of(mesh: Mesh | None) -> int:
    """Return the number of devices that the positions of a row are cut over."""
    return 1 if mesh is None else mesh.shape.get(CONTEXT, 1)


def positions_divisor(devices: int, causal: bool) -> int:
    """Return what the positions of a row must divide by where so many devices have them.

    Under a causal mask a device has two chunks of a row, an early and a late one.
    """
    return devices * 2 if causal and devices > 1 else devices


def _over_context(asked: str, needs: Needs, setting: Setting, devices: int) -> Choice:
    """Choose attention over the devices of a row; raise a UserError where it cannot serve."""
    assert setting.mesh is not None  # it has several of them
    divisor = positions_divisor(devices, needs.causal)
    refusals = {
        f"rows of {setting.length} positions are not a multiple of {divisor}": (
            setting.length % divisor != 0
        ),
        "train.attention=cudnn takes whole rows": asked == "cudnn",
    }
    own = setting.platform in PLATFORMS[SPLASH] and setting.dtype == "bfloat16"
    parts = 1 if asked == ULYSSES else divisor
    serves = own and setting.length // parts % LANES == 0
    refusals[
        f"splash takes chunks of multiples of {LANES} positions, in bfloat16 on TPUs alone"
    ] = asked == SPLASH and not serves
    shares = devices * setting.mesh.shape[HEADS]
    refusals[
        f"train.attention=ulysses divides {needs.groups} heads of keys over mesh.context x "
        f"mesh.tensor = {shares}, which must divide them"
    ] = asked == ULYSSES and needs.groups % shares != 0
    reasons = _common_refusals(needs, setting) | refusals
    if (why := next((why for why, holds in reasons.items() if holds), None)) is not None:
        raise UserError(
            f"mesh.context: attention cannot be divided over {devices} devices: {why}.",
            "Use mesh.fsdp or mesh.data in its place.",
        )
    chunks = SPLASH if serves and asked != XLA else XLA
    name, of = (ULYSSES, "rows") if asked == ULYSSES else (RING, "chunks")
    kernel = Kernel(name, setting.mesh, chunks=chunks)
    return Choice(kernel, f"mesh.context={devices}, whose {of} are computed by {chunks}")


def refusal(name: str, needs: Needs, setting: Setting) -> str | None:
    """Return why a kernel cannot serve a model, to follow "since"; None if it can."""
    reasons = {
        f"it runs on {PLATFORMS[name][0].upper()}s, and this is for {setting.platform}": (
            setting.platform not in PLATFORMS[name]
        ),
        f"it computes in bfloat16, and this run in {setting.dtype}": setting.dtype != "bfloat16",
        **_common_refusals(needs, setting),
    }
    if name == "cudnn":
        reasons |= {
            "it has no soft cap on scores": needs.soft_cap is not None,
            f"heads are {needs.width} wide, and it takes multiples of 8 up to {WIDEST}": (
                needs.width % 8 != 0 or needs.width > WIDEST
            ),
            f"{setting.length} positions are an odd number": setting.length % 2 != 0,
        }
    else:
        reasons["the mesh is not known to the model"] = setting.mesh is None
    return next((why for why, holds in reasons.items() if holds), None)


def _common_refusals(needs: Needs, setting: Setting) -> dict[str, bool]:
    """Return what no kernel can do, and whether it is asked."""
    mesh = setting.mesh
    shares = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)
    tensor = 1 if mesh is None else mesh.shape[HEADS]
    return {
        f"it has no dropout on attention weights, and the rate is {needs.rate} "
        "(model.dropout=0 turns it off)": needs.rate > 0 and setting.dropout,
        "positions are learned scores, and no kernel has their gradient": needs.positions,
        f"{needs.groups} heads of keys do not divide over mesh.tensor={tensor}": (
            needs.groups % tensor != 0
        ),
        f"{setting.rows} rows do not divide over {shares} devices": setting.rows % shares != 0,
    }


def _misfit(name: str, setting: Setting) -> str | None:
    """Return why a kernel would compute padding beyond a row's end; None if it would not."""
    if name != "splash" or setting.length % LANES == 0:
        return None
    return f"rows of {setting.length} positions are not a multiple of {LANES}"
