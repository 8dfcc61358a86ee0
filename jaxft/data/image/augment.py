"""Image augmentation: random crops, flips, color and shape changes, and mixing.

All random numbers come from the `ExampleRandom` of one example in one epoch, in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxft.data.image.images import ImageProcessor, to_rgb
from jaxft.data.random import ExampleRandom

TRIES = 10  # to find a crop of the sampled area and shape
RATIO = math.log(4 / 3)  # of the logarithm of width over height, up and down
STRONGEST = 30  # of magnitudes
SHEAR, SHIFT, TURN, ENHANCE = 0.3, 150 / 331, 30.0, 0.9  # at the strongest
GREY = (128, 128, 128)  # fills what lies outside the image
LEAST_ALPHA = 0.05  # of a Beta distribution: below it nothing is mixed


@dataclass(frozen=True)
class Augmentation:
    """Random changes of an image while a model learns from it.

    Attributes:
        crop: the least and most share of the area that is cut out and resized; None cuts nothing.
        flip: the probability that left and right are exchanged.
        changes: changes of color and shape one after the other (RandAugment).
        magnitude: of those, 0 to 30.
        mixup: alpha of the Beta distribution of another image's share; 0 mixes none.
        cutmix: likewise, of the area of another image's piece.
    """

    crop: Sequence[float] | None = None
    flip: float = 0.0
    changes: int = 0
    magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """True where an example is a mixture of two."""
        return bool(self.mixup or self.cutmix)


def augment(
    image: Image.Image, processor: ImageProcessor, how: Augmentation, chance: ExampleRandom
) -> np.ndarray:
    """Return the pixel values of a randomly changed image: `[3, H, W]` float32.

    Args:
        image: as it was decoded.
        processor: the checkpoint's, which scales and normalises what comes out, and fits it where
            no piece is cut out of it.
        how: the settings.
        chance: the random numbers.
    """
    image = to_rgb(image)
    if how.crop is not None:
        height, width = processor.size
        box = piece(image.size, (how.crop[0], how.crop[1]), chance)
        image = image.resize((width, height), Image.Resampling(processor.resample), box=box)
    else:
        image = Image.fromarray(processor.fit(image))
    mirrored, *numbers = chance.uniform(1 + 3 * how.changes).tolist()
    if mirrored < how.flip:
        image = ImageOps.mirror(image)
    for number in range(how.changes):
        which, sign = numbers[3 * number : 3 * number + 2]
        change = CHANGES[int(which * len(CHANGES))]
        image = change(image, how.magnitude / STRONGEST, -1.0 if sign < 0.5 else 1.0)
    return processor.values(np.asarray(image))


def piece(
    size: tuple[int, int], shares: tuple[float, float], chance: ExampleRandom
) -> tuple[int, int, int, int]:
    """Return a random crop of an image: left, upper, right, lower, in pixels.

    Source: Szegedy et al. (2014), https://arxiv.org/abs/1409.4842, section 6.

    Args:
        size: width and height.
        shares: the least and most share of the area.
        chance: the random numbers.
    """
    width, height = size
    tries = chance.uniform(4 * TRIES).reshape(TRIES, 4).tolist()
    for area, shape, across, down in tries:
        share = shares[0] + area * (shares[1] - shares[0])
        ratio = math.exp((2 * shape - 1) * RATIO)
        wide = round(math.sqrt(width * height * share * ratio))
        high = round(math.sqrt(width * height * share / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, upper = int(across * (width - wide + 1)), int(down * (height - high + 1))
            return left, upper, left + wide, upper + high
    side = min(width, height)  # a long and thin image: the middle of it
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side


def mix(
    values: np.ndarray, other: np.ndarray, how: Augmentation, chance: ExampleRandom
) -> tuple[np.ndarray, float]:
    """Mix an image with another: `[3, H, W]`, and the weight of the other.

    Source: Zhang et al. (2017), https://arxiv.org/abs/1710.09412, equation 1; Yun et al. (2019),
    https://arxiv.org/abs/1905.04899, section 3.1.

    Args:
        values, other: `[3, H, W]`.
        how: at least one of `mixup` and `cutmix` is above 0.
        chance: the random numbers.
    """
    which, down, across = chance.uniform(3).tolist()
    cuts = bool(how.cutmix) and (not how.mixup or which < 0.5)
    share = 1 - beta(how.cutmix if cuts else how.mixup, chance)
    if not cuts:
        return (values * np.float32(1 - share) + other * np.float32(share)), share
    height, width = values.shape[1:]
    high, wide = round(height * math.sqrt(share)), round(width * math.sqrt(share))
    top, left = int(down * height) - high // 2, int(across * width) - wide // 2
    rows, columns = (
        slice(max(top, 0), max(min(top + high, height), 0)),
        slice(max(left, 0), max(min(left + wide, width), 0)),
    )
    mixed = values.copy()
    mixed[:, rows, columns] = other[:, rows, columns]
    return mixed, mixed[0, rows, columns].size / (height * width)


def beta(alpha: float, chance: ExampleRandom) -> float:
    """Return a sample of the Beta(alpha, alpha) distribution, for an alpha up to 1.

    Source: Joehnk (1964), Metrika 8, pages 5 to 15.
    """
    power = 1 / max(alpha, LEAST_ALPHA)
    while True:
        for first, second in chance.uniform(32).reshape(16, 2).tolist():
            one, two = first**power, second**power
            if 0 < one + two <= 1:
                return one / (one + two)


def _affine(image: Image.Image, numbers: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        numbers,
        resample=Image.Resampling.BILINEAR,
        fillcolor=GREY,
    )


def _enhanced(kind: type) -> Callable[[Image.Image, float, float], Image.Image]:
    return lambda image, strength, sign: kind(image).enhance(1 + sign * strength * ENHANCE)


# (image, strength from 0 to 1, sign) -> image. Source: Cubuk et al. (2019),
# https://arxiv.org/abs/1909.13719, section 3; the ranges are torchvision's.
CHANGES: tuple[Callable[[Image.Image, float, float], Image.Image], ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: _affine(image, (1, sign * strength * SHEAR, 0, 0, 1, 0)),
    lambda image, strength, sign: _affine(image, (1, 0, 0, sign * strength * SHEAR, 1, 0)),
    lambda image, strength, sign: _affine(
        image, (1, 0, sign * strength * SHIFT * image.width, 0, 1, 0)
    ),
    lambda image, strength, sign: _affine(
        image, (1, 0, 0, 0, 1, sign * strength * SHIFT * image.height)
    ),
    lambda image, strength, sign: image.rotate(
        sign * strength * TURN, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    ),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1 - strength))),
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
)
