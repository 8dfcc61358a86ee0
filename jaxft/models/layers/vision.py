"""Image patches as vectors, and learned positions resized to another grid."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.math import linear
from jaxft.models.layers.modules import Leaf, parameter

Size = tuple[int, int]  # height, width


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
