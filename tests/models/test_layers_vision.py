"""What the towers of images share, against PyTorch."""

import numpy as np
import pytest
import torch

from jaxft.errors import UserError
from jaxft.models.layers.vision import PatchEmbedding, grid_of, resize_grid
from jaxft.models.tower.tower import Part

ONE = np.random.default_rng(0)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((37, 37), (16, 16)),
        ((7, 7), (14, 13)),
        ((4, 4), (3, 9)),
        ((1, 1), (3, 3)),
        ((5, 3), (1, 1)),
    ],
)
def test_a_resized_grid_is_pytorchs(old, new, antialias):
    grid = ONE.uniform(-1, 1, (*old, 6)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None],
        size=new,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    ours = resize_grid(grid, new, antialias)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0), atol=1e-6)


def test_a_grid_of_its_own_size_stays_as_it_is():
    grid = ONE.normal(size=(5, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_grid(grid, (5, 4)), grid)
    np.testing.assert_array_equal(resize_grid(grid, (5, 4), antialias=True), grid)


@pytest.mark.parametrize("bias", [False, True])
def test_patches_are_pytorchs_convolution(bias):
    patch, image = (3, 2), (10, 7)  # one row of pixels and one column fill no patch
    pixels = ONE.normal(size=(2, 4, *image)).astype(np.float32)
    conv = torch.nn.Conv2d(4, 5, kernel_size=patch, stride=patch, bias=bias)
    part = Part(PatchEmbedding(4, patch, 5, std=0.02, bias=bias))
    values = {"kernel": np.moveaxis(conv.weight.detach().numpy(), 0, -1)}
    if bias:
        values["bias"] = conv.bias.detach().numpy()
    ours = part.bind(values)(pixels)
    with torch.no_grad():
        theirs = conv(torch.tensor(pixels)).flatten(2).transpose(1, 2)
    assert ours.shape == (2, np.prod(grid_of(image, patch)), 5) == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_an_image_of_other_channels_is_refused():
    part = Part(PatchEmbedding(3, (2, 2), 5, std=0.02))
    values = {"kernel": np.zeros((3, 2, 2, 5), np.float32), "bias": np.zeros(5, np.float32)}
    with pytest.raises(UserError, match="1 channels; the model takes 3"):
        part.bind(values)(np.zeros((2, 1, 4, 4), np.float32))
