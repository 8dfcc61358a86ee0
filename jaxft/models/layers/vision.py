"""Image patches as vectors, convolutions, and grids of vectors resized.

B images of H x W pixels with C channels; convolutions have the channels last.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxft.errors import UserError
from jaxft.models.layers.math import linear, matmul_precision
from jaxft.models.layers.modules import Leaf, parameter

Size = tuple[int, int]  # height, width
LAST = ("NHWC", "IHWO", "NHWC")  # channels of images, and of kernels those that come out


def size_of(value: Any) -> Size:
    """Read an image size of config.json: one number for a square, or height and width."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


class PatchEmbedding(nnx.Module):
    """Embedding of image patches: a convolution whose stride is its kernel, as a matmul.

    Args:
        channels: C of an image.
        patch: height P and width Q of a patch.
        width: D of a vector.
        std: the standard deviation of a fresh kernel.
        bias: whether the convolution has one.
    """

    def __init__(self, channels: int, patch: Size, width: int, std: float, bias: bool = True):
        axes = ("channels", "patch_height", "patch_width", "embed")
        self.kernel = parameter(Leaf((channels, *patch, width), axes, std=std))
        self.bias = parameter(Leaf((width,), ("embed",), decay=False)) if bias else None
        self.channels = channels
        self.patch = patch

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embed [B, C, H, W] as [B, (H // P) (W // Q), D], row by row; partial patches are cut off.

        Raises:
            UserError: the image has another number of channels.
        """
        if pixels.shape[1] != self.channels:
            raise UserError(
                f"The images have {pixels.shape[1]} channels; the model takes {self.channels}."
            )
        kernel = self.kernel[...]
        (p, q), (rows, columns) = self.patch, grid_of(pixels.shape[2:], self.patch)
        x = pixels[:, :, : rows * p, : columns * q].astype(kernel.dtype)
        x = x.reshape(len(x), self.channels, rows, p, columns, q)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(len(x), rows * columns, -1)  # [B, N, C P Q]
        bias = None if self.bias is None else self.bias[...]
        return linear(x, kernel.reshape(-1, kernel.shape[-1]), bias)


class Convolution(nnx.Module):
    """Convolution [B, H, W, I] -> [B, H', W', O] with an odd square kernel.

    Args:
        inside, outside: I and O.
        side: pixels a side of the kernel.
        stride: of the output.
        padding: zeros before and after rows and columns; None keeps the size at a stride of 1.
        bias: whether there is one.
        std: the standard deviation of a fresh kernel; None for one over the root of the inputs.
        alone: whether each channel is convolved by itself, at a stride of 1; I is O.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        side: int = 3,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        bias: bool = True,
        std: float | None = None,
        alone: bool = False,
    ):
        read = 1 if alone else inside
        axes = ("one" if alone else "embed", "kernel_height", "kernel_width", "mlp")
        std = 1 / math.sqrt(read * side * side) if std is None else std
        self.kernel = parameter(Leaf((read, side, side, outside), axes, std=std))
        self.bias = parameter(Leaf((outside,), ("mlp",), decay=False)) if bias else None
        self.stride = stride
        self.padding = ((side // 2, side // 2),) * 2 if padding is None else padding
        self.alone = alone

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.alone:
            out = _alone(x, self.kernel[...], matmul_precision())
        else:
            strides = (self.stride, self.stride)
            out = lax.conv_general_dilated(
                x, self.kernel[...], strides, self.padding, dimension_numbers=LAST
            )
        return out if self.bias is None else out + self.bias[...]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _alone(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Convolve each channel of [B, H, W, C] by itself, with zeros around.

    XLA's own gradient of the kernel, a convolution in as many groups, is wrong where rows are
    divided over devices (jaxlib 0.10.2), and slow on CPU. Here it is a sum of products.
    """
    return convolved_alone(x, kernel, precision)


def convolved_alone(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Convolve as `_alone` does, with jax's own backward pass; `kernel` is [1, S, S, C]."""
    edge = kernel.shape[1] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((edge, edge), (edge, edge)),
        dimension_numbers=LAST,
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def _alone_forward(x: Any, kernel: Any, precision: Any) -> tuple[jax.Array, Any]:
    # Saved is only what a required gradient reads; of the kernel's shape an empty array.
    residuals = (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
        kernel.value[..., :0],
    )
    return convolved_alone(x.value, kernel.value, precision), residuals


def _alone_backward(precision: Any, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    x, kernel, shape = residuals
    turned = None if kernel is None else kernel[:, ::-1, ::-1]
    d_x = None if turned is None else convolved_alone(d_out, turned, precision)
    if x is None:
        return d_x, None
    side, (height, width) = shape.shape[1], d_out.shape[1:3]
    edges = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), edges, edges, (0, 0)))
    products = [
        jnp.sum(padded[:, row : row + height, column : column + width] * d_out, (0, 1, 2))
        for row in range(side)
        for column in range(side)
    ]
    return d_x, jnp.stack(products).reshape(1, side, side, -1).astype(x.dtype)


_alone.defvjp(_alone_forward, _alone_backward, symbolic_zeros=True)


class BatchNorm(nnx.Module):
    """Normalization of each channel by the statistics of the checkpoint, which stay as they are.

    So an image's output does not depend on the others of its batch.

    Args:
        width: C.
        eps: added to the variance.

    Source: Ioffe and Szegedy (2015), https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        def vector(mean: float) -> nnx.Param:
            return parameter(Leaf((width,), ("mlp",), mean=mean, decay=False))

        self.scale, self.bias = vector(1.0), vector(0.0)
        self.mean, self.variance = vector(0.0), vector(1.0)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, variance = (
            lax.stop_gradient(one[...]).astype(jnp.float32) for one in (self.mean, self.variance)
        )
        factor = self.scale[...].astype(jnp.float32) * lax.rsqrt(variance + self.eps)
        shift = self.bias[...].astype(jnp.float32) - mean * factor
        return x * factor.astype(x.dtype) + shift.astype(x.dtype)


def drop_path(branch: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Leave out the branch of a share `rate` of the images and scale up the rest; no key, none.

    Args:
        branch: [B, H, W, C].
        rate, key: of the block.

    Source: Huang et al. (2016), https://arxiv.org/abs/1603.09382.
    """
    if key is None:
        return branch
    survives = jax.random.bernoulli(key, 1.0 - rate, (len(branch), 1, 1, 1))
    return jnp.where(survives, branch / (1.0 - rate), 0.0).astype(branch.dtype)


def rising_rates(last: float, blocks: int) -> tuple[float, ...]:
    """Return the rate of `drop_path` of each block: from 0 up to `last`, evenly."""
    return tuple(last * block / max(blocks - 1, 1) for block in range(blocks))


def resize_linear(images: jax.Array, size: Size) -> jax.Array:
    """Resize images [B, H, W, C] bilinearly to [B, *size, C], by two products with constants."""
    down, across = (linear_matrix(images.shape[1 + axis], size[axis]) for axis in (0, 1))
    tall = jnp.einsum("yh,bhwc->bywc", down.astype(images.dtype), images)
    return jnp.einsum("xw,bywc->byxc", across.astype(images.dtype), tall)


def linear_matrix(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] float32 that resizes a line of samples linearly.

    It is what `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` computes.
    """
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old))).astype(np.float32)


def channels_last(images: jax.Array, channels: int) -> jax.Array:
    """Turn images [B, C, H, W] into [B, H, W, C].

    Raises:
        UserError: they have another number of channels.
    """
    if images.shape[1] != channels:
        raise UserError(f"The images have {images.shape[1]} channels; the model takes {channels}.")
    return images.transpose(0, 2, 3, 1)


def channels_first(images: jax.Array) -> jax.Array:
    """Turn images [B, H, W, C] into [B, C, H, W]."""
    return images.transpose(0, 3, 1, 2)


def grid_of(image: tuple[int, ...], patch: Size) -> Size:
    """Count the patches of an image of (height, width), down and across."""
    return image[0] // patch[0], image[1] // patch[1]


def resize_grid(grid: Any, new: Size, antialias: bool = False) -> Any:
    """Resize a grid of vectors bicubically: [H, W, D] -> [H', W', D].

    Args:
        grid: numpy or jax array; the matrices that it is multiplied with are constants.
        new: H' and W'.
        antialias: as `resize_matrix` has it.
    """
    height, width, _ = grid.shape
    down = resize_matrix(height, new[0], antialias)  # [H', H]
    across = resize_matrix(width, new[1], antialias)  # [W', W]
    return across @ (down @ grid.reshape(height, -1)).reshape(new[0], width, -1)


def resize_matrix(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """Return the matrix [new, old] float32 that resizes a line of samples bicubically.

    It is what `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` computes.

    Args:
        old, new: the numbers of samples.
        antialias: smooth first where there are fewer new samples, by a kernel that grows with
            the step (and cuts off at the ends what would lie outside), else samples at the ends
            are repeated.

    Source: Keys (1981), "Cubic convolution interpolation for digital image processing".
    """
    step = np.float32(old / new)  # float32 as there: the last digits of a place are its own
    centres = (np.arange(new, dtype=np.float32) + 0.5) * step - 0.5  # in samples of the old line
    stretch = max(float(step), 1.0) if antialias else 1.0
    reach = math.ceil(2 * stretch)
    first = np.floor(centres).astype(int) - reach + 1
    taps = first[:, None] + np.arange(2 * reach)  # [new, taps]
    weights = _cubic((centres[:, None] - taps) / stretch, -0.5 if antialias else -0.75)
    if antialias:
        weights = np.where((taps >= 0) & (taps < old), weights, 0.0)
        weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, slope: float) -> np.ndarray:
    """Evaluate the cubic convolution kernel whose slope at 1 is `slope`; it is 0 from 2 on."""
    x = np.abs(x)
    near = ((slope + 2) * x - (slope + 3)) * x * x + 1
    far = slope * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
