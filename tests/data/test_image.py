"""Images become pixel values bit for bit as in `transformers`; what is no image is named."""

import io
import json
import os
import pickle
import random
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxft.bounds import MOST_PIXELS
from jaxft.data.image.images import decode, load_image_processor
from jaxft.errors import UserError

MODES = ("RGB", "RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16")
KINDS = ("ViT", "DeiT", "CLIP", "Bit", "Siglip", "Beit")


def test_a_fifo_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"picture\.png' cannot be decoded.*not a regular file"):
        decode(tmp_path / "picture.png")


def random_fields(draw: random.Random) -> dict:
    """A `preprocessor_config.json` that draws over everything that changes a pixel."""
    kind = draw.choice(KINDS)
    fields = {"image_processor_type": f"{kind}ImageProcessor" + draw.choice(["", "Fast"])}
    if draw.random() < 0.8:
        sizes = [{"shortest_edge": draw.randint(5, 40)}, [draw.randint(5, 40), draw.randint(5, 40)]]
        sizes += [draw.randint(5, 40), {"height": draw.randint(5, 40), "width": 12}]
        fields["size"] = draw.choice(sizes)
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if draw.random() < 0.4:
            fields[name] = draw.random() < 0.7 or draw.choice([False, None])
    if not isinstance(fields.get("size"), dict | list) or draw.random() < 0.5:
        # A crop that is larger than the image too, on one side or both.
        fields["do_center_crop"] = True
        fields["crop_size"] = draw.choice([15, {"height": draw.randint(3, 60), "width": 21}])
    if not fields.get("do_resize", True) or "shortest_edge" in str(fields.get("size")):
        fields |= {"do_center_crop": True, "crop_size": draw.randint(3, 60)}
    if draw.random() < 0.5:
        fields["resample"] = draw.randint(0, 5)
    if draw.random() < 0.3:
        fields["rescale_factor"] = draw.choice([1 / 127.5, 0.1])
    if draw.random() < 0.5:
        fields["image_mean"] = [draw.random() for _ in range(3)]
        fields["image_std"] = [0.1 + draw.random() for _ in range(3)]
    return fields


def random_image(draw: random.Random, mode: str) -> Image.Image:
    width, height = draw.randint(2, 50), draw.randint(2, 50)
    if mode == "I;16":
        values = np.random.default_rng(draw.randint(0, 99)).integers(0, 2**16, (height, width))
        return Image.fromarray(values.astype(np.uint16))
    noise = np.random.default_rng(draw.randint(0, 99)).integers(0, 256, (height, width, 4))
    return Image.fromarray(noise.astype(np.uint8), "RGBA").convert(mode)


def write_fields(folder, fields) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))


@pytest.fixture(scope="module")
def reference():
    """`transformers`' own processor of a folder."""
    from transformers import AutoImageProcessor

    return lambda folder: AutoImageProcessor.from_pretrained(str(folder), backend="pil")


def expected_values(processor, image) -> np.ndarray:
    values = processor(images=image, return_tensors="np")["pixel_values"][0]
    return np.asarray(values, np.float32)  # without rescaling and normalising it stays uint8


@pytest.mark.parametrize("seed", range(40))
def test_pixel_values_are_transformers_own(seed, tmp_path, reference):
    draw = random.Random(seed)
    write_fields(tmp_path, random_fields(draw))
    theirs, ours = reference(tmp_path), load_image_processor(tmp_path)
    for mode in MODES:
        image = random_image(draw, mode)
        if mode != "RGB" and not theirs.do_convert_rgb:
            image = image.convert("RGB")  # theirs fails on other modes; ours converts them
        np.testing.assert_array_equal(ours(image), expected_values(theirs, image), err_msg=mode)


@pytest.mark.parametrize("size", [{"shortest_edge": 24}, 37, {"shortest_edge": 384}])
def test_a_convnexts_images_are_transformers_own(size, tmp_path, reference):
    fields = {"image_processor_type": "ConvNextImageProcessor", "size": size, "crop_pct": 0.875}
    write_fields(tmp_path, fields)
    for seed in range(4):
        image = random_image(random.Random(seed), "RGB")
        ours = load_image_processor(tmp_path)
        np.testing.assert_array_equal(ours(image), expected_values(reference(tmp_path), image))
    write_fields(tmp_path, ours.to_hf())  # what is written of another size
    np.testing.assert_array_equal(ours(image), expected_values(reference(tmp_path), image))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("crop_pct", 0, "'crop_pct' is 0, and must be a number from 0 to 1"),
        ("size", {"height": 24, "width": 24}, "must have a shortest_edge in pixels"),
    ],
)
def test_a_convnexts_odd_settings(field, value, sentence, tmp_path):
    write_fields(tmp_path, {"image_processor_type": "ConvNextFeatureExtractor", field: value})
    with pytest.raises(UserError, match=sentence):
        load_image_processor(tmp_path)


def test_how_smolvlm2_reads_videos_says_nothing_of_images(tmp_path):
    """HuggingFaceTB/SmolVLM2-2.2B-Instruct's file."""
    fields = {"image_processor_type": "SmolVLMImageProcessor", "resample": 1, "do_pad": True}
    fields |= {"max_image_size": {"longest_edge": 384}, "size": {"longest_edge": 1536}}
    write_fields(tmp_path, fields)
    plain = load_image_processor(tmp_path)
    video = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 384}}
    write_fields(tmp_path, fields | {"video_sampling": video})
    assert load_image_processor(tmp_path) == plain


def test_a_step_that_is_null_is_left_out(tmp_path, reference):
    fields = {"image_processor_type": "DeiTImageProcessor", "do_center_crop": None, "size": 20}
    write_fields(tmp_path, fields | {"do_rescale": None})
    image, ours = random_image(random.Random(3), "RGB"), load_image_processor(tmp_path)
    assert ours(image).shape == (3, 20, 20)
    np.testing.assert_array_equal(ours(image), expected_values(reference(tmp_path), image))


def test_a_mode_that_transformers_would_not_convert_is_converted(tmp_path, reference):
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": 20})
    gray = random_image(random.Random(0), "L")
    expected = expected_values(reference(tmp_path), gray.convert("RGB"))
    np.testing.assert_array_equal(load_image_processor(tmp_path)(gray), expected)


def test_transparency_of_a_png_without_an_alpha_channel(tmp_path, reference):
    write_fields(tmp_path, {"image_processor_type": "CLIPImageProcessor", "crop_size": 9})
    file = tmp_path / "image.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file, transparency=(1, 2, 3))
    with Image.open(file) as image:
        expected = expected_values(reference(tmp_path), image)
    np.testing.assert_array_equal(load_image_processor(tmp_path)(decode(file)), expected)
    assert expected.min() > 1  # it was laid over white


def test_nobody_rotates_what_a_camera_marked(tmp_path, reference):
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": 20})
    file = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees"
    random_image(random.Random(1), "RGB").save(file, exif=exif)
    from transformers.image_utils import load_image

    with Image.open(file) as image:
        expected = expected_values(reference(tmp_path), image.copy())
    np.testing.assert_array_equal(load_image_processor(tmp_path)(decode(file)), expected)
    assert load_image(str(file)).size != decode(file).size  # their loader of URLs does rotate


@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_back_does_the_same(seed, tmp_path, reference):
    draw = random.Random(seed)
    write_fields(tmp_path, random_fields(draw))
    ours = load_image_processor(tmp_path)
    write_fields(tmp_path, ours.to_hf())
    image = random_image(draw, "RGB")
    assert load_image_processor(tmp_path) == ours
    np.testing.assert_array_equal(ours(image), expected_values(reference(tmp_path), image))


def test_old_files_name_no_processor(tmp_path, reference):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    write_fields(tmp_path, {"size": 30, "crop_size": 20})
    image = random_image(random.Random(2), "RGB")
    expected = expected_values(reference(tmp_path), image)
    np.testing.assert_array_equal(load_image_processor(tmp_path)(image), expected)


def test_another_size_keeps_the_crop_in_proportion(tmp_path):
    write_fields(tmp_path, {"image_processor_type": "BitImageProcessor", "size": 256})
    processor = load_image_processor(tmp_path, size=98)
    assert (processor.resize, processor.crop, processor.size) == (112, (98, 98), (98, 98))
    assert processor(Image.new("RGB", (300, 200))).shape == (3, 98, 98)
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    assert load_image_processor(tmp_path).size == (224, 224)
    assert load_image_processor(tmp_path, size=98).size == (98, 98)


def test_it_goes_to_another_process_and_is_known_by_what_it_does(tmp_path):
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    processor = load_image_processor(tmp_path)
    assert pickle.loads(pickle.dumps(processor)) == processor
    assert processor.fingerprint != load_image_processor(tmp_path, size=98).fingerprint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_processor_type": "OwlViTImageProcessor"}, "does not know the image processor Owl"),
        ({"do_pad": True}, "'do_pad' is True"),
        ({"do_flip_channel_order": True}, "unknown setting 'do_flip_channel_order'"),
        ({"size": {"longest_edge": 9}}, "'size' is {'longest_edge': 9}"),
        ({"resample": 9}, "'resample' is 9"),
        ({"image_mean": [0.5]}, "there are three channels"),
        ({"image_mean": [0.5, 0.5, 1e308]}, "there are three channels"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "there are three channels"),
        ({"image_std": [0, 0, 0]}, "pixels are divided by it"),
        ({"rescale_factor": "x"}, "must be a number above 0"),
        ({"rescale_factor": 10**400}, "must be a number above 0"),
        ({"rescale_factor": float("nan")}, "must be a number above 0"),
        ({"size": 10**9}, "A side has 1 to 16,384 pixels"),
        ({"resample": 2.5}, "Pillow's filters are 0 to 5"),
        ({"do_resize": False}, "differing sizes"),
        ({"size": {"shortest_edge": 9}}, "differing sizes"),
    ],
)
def test_settings_that_are_not_known(fields, said, tmp_path):
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor"} | fields)
    with pytest.raises(UserError, match=said):
        load_image_processor(tmp_path)


def test_a_folder_without_a_processor(tmp_path):
    with pytest.raises(UserError, match=r"holds no image processor.*preprocessor_config\.json"):
        load_image_processor(tmp_path)


def png(width: int, height: int) -> bytes:
    """A PNG of 41 bytes whose header promises a size."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + header
    check = zlib.crc32(chunk).to_bytes(4, "big")
    pixels = b"\x00\x00\x00\x09IDAT"
    return b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0d" + chunk + check + pixels


@pytest.mark.parametrize("width", [8193, 10_000, 60_000])  # Pillow is silent, warns, refuses
def test_an_image_bomb_is_refused_by_its_header(width, tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(png(width, width))
    assert width * width > MOST_PIXELS
    with pytest.raises(UserError, match=r"bomb\.png' is refused.*67,108,864 pixels"):
        decode(file)


def test_what_does_not_decode_is_named(tmp_path):
    whole = io.BytesIO()
    picture = random_image(random.Random(3), "RGB").resize((60, 60))
    ImageDraw.Draw(picture).text((5, 5), "x")
    picture.save(whole, "PNG")
    for name, content in {
        "text.png": b"not an image",
        "empty.jpg": b"",
        "cut.png": whole.getvalue()[:200],
        "header.png": png(9, 9),
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}' cannot be decoded as an image"):
            decode(tmp_path / name)
        with pytest.raises(UserError, match="row 3 cannot be decoded as an image"):
            decode(content, "row 3")
    with pytest.raises(UserError, match=r"There is no image '.*gone\.png'"):
        decode(tmp_path / "gone.png")
    with pytest.raises(UserError, match="cannot be decoded as an image"):
        decode(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(np.full((9, 9), 256, np.uint16), "I;16"), (np.full((9, 9), 0.5, np.float32), "F")],
)
def test_levels_that_eight_bits_do_not_hold_are_refused(pixels, mode, tmp_path):
    file = tmp_path / "deep.tiff"
    Image.fromarray(pixels).save(file)
    with pytest.raises(UserError, match=rf"deep\.tiff' has more than 8 bits a channel \({mode}\)"):
        decode(file)
    with pytest.raises(UserError, match="the image of row 3 has more than 8 bits"):
        decode(file.read_bytes(), "the image of row 3")
    Image.fromarray(np.full((9, 9), 255, np.uint16)).save(file)
    assert decode(file).getextrema() == (255, 255)


@pytest.mark.parametrize("size", [{"shortest_edge": 20, "longest_edge": 30}, 20, None])
def test_a_detectors_processor_needs_a_size(size, tmp_path, reference):
    """YOLOS's own images differ in size; of one size they are transformers', bit for bit."""
    fields = {"image_processor_type": "YolosImageProcessor", "format": "coco_detection"}
    fields |= {"do_pad": True, "max_size": 30} | ({} if size is None else {"size": size})
    write_fields(tmp_path, fields)
    with pytest.raises(UserError, match=r"differing sizes.*Set model\.image_size"):
        load_image_processor(tmp_path)
    ours = load_image_processor(tmp_path, 24)
    write_fields(tmp_path, ours.to_hf())
    image = random_image(random.Random(2), "RGB")
    np.testing.assert_array_equal(ours(image), expected_values(reference(tmp_path), image))


@pytest.mark.parametrize("size", [(70, 60), (96, 128)])
def test_rf_detr_resizes_floats_as_transformers_does(size, tmp_path):
    """Larger and smaller, behind the rescaling, without smoothing.

    The last digit of theirs depends on PyTorch's number of threads.
    """
    from transformers import AutoImageProcessor

    fields = {"image_processor_type": "RfDetrImageProcessor", "do_pad": True}
    write_fields(tmp_path, fields | {"size": dict(zip(("height", "width"), size, strict=True))})
    theirs, ours = AutoImageProcessor.from_pretrained(str(tmp_path)), load_image_processor(tmp_path)
    for shape in ((50, 90, 3), (130, 61, 3), (*size, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        image = Image.fromarray(pixels)
        np.testing.assert_allclose(ours(image), expected_values(theirs, image), atol=1e-5)


def test_arrays_are_images():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(np.asarray(decode(pixels)), pixels)
    assert decode(pixels[:, :, :1]).mode == decode(pixels[:, :, 0]).mode == "L"
    for wrong in (pixels.astype(np.float32), pixels[:, :, :2], pixels[None]):
        with pytest.raises(UserError, match="row 1 is an array of"):
            decode(wrong, "row 1")
