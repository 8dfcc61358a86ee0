"""Images as colours: the ones that `transformers` takes, painted back, and what is refused."""

import random

import numpy as np
import pytest

from jaxft.data.image.colors import colors_of, painted
from jaxft.data.image.images import load_image_processor
from jaxft.errors import UserError
from tests.data.test_image import MODES, random_image, write_fields


def write_colours(folder, count=40, size=9, **fields):
    """The processor of an ImageGPT with random colours, as the hub's files have it."""
    clusters = np.random.default_rng(count).uniform(-1, 1, (count, 3))
    named = {"feature_extractor_type": "ImageGPTFeatureExtractor", "clusters": clusters.tolist()}
    write_fields(folder, named | {"size": size, "do_normalize": True, "resample": 2} | fields)


@pytest.mark.parametrize("seed", range(4))
def test_colours_are_transformers_own(seed, tmp_path):
    from transformers import AutoImageProcessor

    write_colours(tmp_path, count=random.Random(seed).choice([2, 16, 512]))
    (tmp_path / "config.json").write_text('{"model_type": "imagegpt"}')
    theirs = AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil")
    ours = load_image_processor(tmp_path)
    write_fields(tmp_path, ours.to_hf())
    assert load_image_processor(tmp_path) == ours
    again = AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil")
    for mode in MODES:
        image = random_image(random.Random(seed), mode).convert("RGB")
        found = colors_of(ours(image), ours)
        for processor in (theirs, again):
            expected = processor(images=image, return_tensors="np")["input_ids"][0]
            np.testing.assert_array_equal(found, expected, err_msg=mode)


def test_colours_are_painted_as_they_were_read(tmp_path):
    levels = np.array([[0, 0, 0], [255, 0, 7], [90, 120, 200], [255, 255, 255]])
    write_colours(tmp_path, size=2, clusters=(levels / 127.5 - 1).tolist())
    processor = load_image_processor(tmp_path)
    shown = painted(np.array([2, 0, 1, 3]), processor)
    np.testing.assert_array_equal(shown, levels[[2, 0, 1, 3]].reshape(2, 2, 3))
    values = processor.values(shown)
    np.testing.assert_array_equal(colors_of(values, processor), [2, 0, 1, 3])


def test_another_size_keeps_the_colours(tmp_path):
    write_colours(tmp_path)
    small = load_image_processor(tmp_path, 5)
    assert small.size == (5, 5)
    assert len(small.to_hf()["clusters"]) == 40


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"clusters": None}, "'clusters' is None; an ImageGPT needs a list of colors"),
        ({"clusters": [[0.1, 0.2]]}, "there are three channels"),
        ({"do_color_quantize": False}, "'do_color_quantize' is False"),
    ],
)
def test_colours_that_are_none(fields, said, tmp_path):
    write_colours(tmp_path, **fields)
    with pytest.raises(UserError, match=said):
        load_image_processor(tmp_path)


def test_a_processor_without_colours_takes_none(tmp_path):
    write_fields(tmp_path, {"image_processor_type": "ViTImageProcessor", "clusters": [[0, 0, 0]]})
    with pytest.raises(UserError, match="unknown setting 'clusters'"):
        load_image_processor(tmp_path)
