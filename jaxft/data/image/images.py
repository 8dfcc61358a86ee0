"""Images to pixel values, as a checkpoint's own image processor makes them.

`transformers`' processor is what a checkpoint was trained with, so ours equals its PIL backend bit
for bit. It is written anew because that one takes seconds to import, in every worker process, and
several times as long for each image.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxft.bounds import MOST_PIXELS
from jaxft.data.image.config import check_scaled, read_settings
from jaxft.data.image.processors import FLOATS, TO_NEAREST
from jaxft.data.image.resize import crop_middle, resize_floats, target_size
from jaxft.data.image.timm import timm_settings
from jaxft.errors import UserError

# Not every format that Pillow knows: some (EPS) start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LEVELS = 256  # values that a channel of a pixel can have
# Pillow warns of images that `decode` refuses with a sentence of its own, and of odd tags.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class ImageProcessor:
    """The processing of an image for the model, in the order of the attributes.

    Attributes:
        kind: `transformers`' name of the processor.
        blend: lay what is transparent over white; else only another mode than RGB is converted.
        resize: height and width to resize to, or one number for the shorter edge; None resizes
            nothing.
        resample: Pillow's number of the filter.
        crop: height and width cut out of the middle, black where the image is smaller; or None.
        factor: multiplies the pixels; None leaves 0 to 255.
        mean: `[3]` subtracted from the channels; None normalises nothing.
        std: `[3]` the channels are divided by.
        clusters: the colors, `[C, 3]` as normalised, that pixels are taken for; None where they
            stay values.
    """

    kind: str
    blend: bool
    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    factor: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    clusters: tuple[tuple[float, float, float], ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        size = self.crop or self.resize
        assert isinstance(size, tuple), "see load_image_processor"
        return size

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that is done to an image."""
        return hashlib.sha256(json.dumps(self.to_hf(), sort_keys=True).encode()).hexdigest()

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixel values of one image: `[3, H, W]` float32."""
        if self.kind not in FLOATS or self.resize is None or self.crop is not None:
            return self.values(self.fit(image))
        pixels = replace(self, resize=None).fit(image).transpose(2, 0, 1).astype(np.float32)
        scaled = pixels if self.factor is None else pixels * np.float32(self.factor)
        values = resize_floats(scaled, target_size(image, self.resize))
        return values if self.mean is None else self._normalized(values)

    def fit(self, image: Image.Image) -> np.ndarray:
        """Return the image in RGB, resized and cropped: `[H, W, 3]` uint8."""
        if self.blend or image.mode != "RGB":
            image = to_rgb(image)
        if self.resize is not None:
            height, width = target_size(image, self.resize)
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is None:
            return pixels
        return crop_middle(pixels, self.crop, to_nearest=self.kind in TO_NEAREST)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """Rescale and normalize pixels `[H, W, 3]` uint8: `[3, H, W]` float32."""
        values = np.empty((3, *pixels.shape[:2]), np.float32)  # [3, H, W]
        for channel, table in enumerate(self._table):
            np.take(table, pixels[:, :, channel], out=values[channel], mode="clip")
        return values

    @cached_property
    def _table(self) -> np.ndarray:
        """Return the normalized value of each level of each channel: `[3, 256]` float32.

        Rescaling and normalization look at one value at a time, so 256 of them are enough; they are
        computed in the types that `transformers` uses.
        """
        levels: np.ndarray = np.arange(LEVELS, dtype=np.uint8)
        if self.factor is not None:
            levels = levels.astype(np.float64) * self.factor
        table = np.tile(levels.astype(np.float32), (3, 1))
        return table if self.mean is None else self._normalized(table)

    def _normalized(self, values: np.ndarray) -> np.ndarray:
        """Return values `[3, ...]` less the mean of their channel, by its deviation."""
        mean, std = (
            np.array(numbers, np.float32).reshape(3, *[1] * (values.ndim - 1))
            for numbers in (self.mean, self.std)
        )
        return (values - mean) / std

    @property
    def whole(self) -> ImageProcessor:
        """Return the processor that resizes all of an image to `size`, and crops nothing."""
        return replace(self, resize=self.size, crop=None)

    def to_hf(self) -> dict[str, Any]:
        """Return the content of an equivalent `preprocessor_config.json` for `transformers`."""
        fields: dict[str, Any] = {
            "image_processor_type": self.kind,
            "do_convert_rgb": self.blend,
            "do_resize": self.resize is not None,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "do_rescale": self.factor is not None,
            "do_normalize": self.mean is not None,
        }
        if isinstance(self.resize, int):
            fields["size"] = {"shortest_edge": self.resize}
        elif self.resize is not None:
            fields["size"] = dict(zip(("height", "width"), self.resize, strict=True))
        if self.crop is not None:
            fields["crop_size"] = dict(zip(("height", "width"), self.crop, strict=True))
        if self.factor is not None:
            fields["rescale_factor"] = self.factor
        if self.mean is not None and self.std is not None:
            fields |= {"image_mean": list(self.mean), "image_std": list(self.std)}
        if self.clusters is not None:
            fields["clusters"] = [list(color) for color in self.clusters]
        return fields


def load_image_processor(folder: str | Path, size: int | None = None) -> ImageProcessor:
    """Return the image processor of a checkpoint's folder.

    Args:
        folder: holds `preprocessor_config.json` or `processor_config.json`, or timm's config.json.
        size: height and width of what comes out, where another than the checkpoint's is wanted; a
            resize before a crop keeps its proportion to it (256 and 224 become 112 and 98).

    Raises:
        UserError: no such file, a processor that is not known, or a setting that is not.

    Source: https://github.com/huggingface/transformers, `image_processing_backends.PilBackend`.
    """
    if settings := timm_settings(Path(folder), size):
        return ImageProcessor(**settings)
    processor = ImageProcessor(**read_settings(Path(folder)))
    if size is not None:
        processor = _resized(processor, size)
    if processor.crop is None and not isinstance(processor.resize, tuple):
        raise UserError(
            f"The image processor in '{folder}' names neither a crop nor a height and width, so "
            "images would come out in differing sizes, which no batch holds.",
            "Set model.image_size.",
        )
    return processor


def _resized(processor: ImageProcessor, size: int) -> ImageProcessor:
    resize, crop = processor.resize, processor.crop
    if crop is None:
        return replace(processor, resize=(size, size))
    if isinstance(resize, int):
        resize = round(resize * size / min(crop))
    elif resize is not None:
        resize = (round(resize[0] * size / crop[0]), round(resize[1] * size / crop[1]))
    check_scaled(size, resize)
    return replace(processor, resize=resize, crop=(size, size))


def decode(source: bytes | str | Path | np.ndarray, name: str = "") -> Image.Image:
    """Return an image out of a file, a file's bytes, or an array of pixels.

    Args:
        source: a path, the bytes of a file, or `[H, W]` or `[H, W, 1, 3 or 4]` uint8. A
            rotation that a camera noted is not done: image processors of `transformers` do none
            either, but its `load_image` does.
        name: what a message calls the image; a path is called by its name.

    Returns:
        The image in its own mode, decoded.

    Raises:
        UserError: no file, no image, a truncated one, over 64 million pixels or 8 bits a level.
    """
    return _open(source, name, whole=True)


def check_header(source: bytes | str | Path | np.ndarray, name: str = "") -> tuple[int, int]:
    """Return an image's (height, width), or raise what `decode` would of its header alone."""
    image = _open(source, name, whole=False)
    return image.height, image.width


def _open(source: bytes | str | Path | np.ndarray, name: str, whole: bool) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or ("the image" if isinstance(source, bytes) else f"'{source}'")
    if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
        raise UserError(f"{name} cannot be decoded as an image (not a regular file).")
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            if whole:
                image.load()
                _check_depth(image, name)
            return image
    except FileNotFoundError:
        raise UserError(f"There is no image {name}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        many = f"its header declares more than {MOST_PIXELS:,} pixels ({error})"
        raise UserError(f"{name} is refused: {many}.", "Make it smaller, or remove it.") from None
    except UserError:
        raise
    except Exception as error:  # each format's reader raises its own kinds on broken bytes
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"not one of {', '.join(FORMATS)}"
        raise UserError(f"{name} cannot be decoded as an image ({reason}).") from None


def _check_depth(image: Image.Image, name: str) -> None:
    """Raise a UserError where Pillow would make white, or black, of a channel's levels."""
    if image.mode[0] not in "IF":  # whole numbers of 16 or 32 bits, and floats
        return
    darkest, brightest = image.getextrema()
    if image.mode == "F" or darkest < 0 or brightest >= LEVELS:  # type: ignore[operator]
        raise UserError(
            f"{name} has more than 8 bits a channel ({image.mode}).",
            "Scale it to 8 bits, or all levels above 255 would become white.",
        )


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    name = name or "the image"
    channels = pixels.shape[2:] or (1,)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels[0] not in (1, 3, 4):
        raise UserError(
            f"{name} is an array of {pixels.dtype} {list(pixels.shape)}, which is not an image.",
            "Images are uint8 [height, width, channels] with 1, 3 or 4 channels.",
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels[0] == 1 else pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, what is transparent laid over white, as `transformers` does it."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
