"""Checkpoints of the Flax classes that transformers had until version 4, beside their PyTorch twin.

The writer here goes by the class of each PyTorch layer, as the Flax modules were written; the
reader goes by the names and shapes in the file.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from tests.support.families import make_pair, outputs_of

TWINS = (
    ("bert", "text_classification"),
    ("vit", "image_classification"),
    ("clip", "contrastive"),
    ("t5", "seq2seq"),
    ("gpt2", "causal_lm"),
)


LINEAR = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)  # FlaxConv1D keeps (out, in)


def flax_leaf(layer: torch.nn.Module, name: str) -> int:
    """The index in `LEAVES` of what the Flax layer calls a parameter of a PyTorch one."""
    if isinstance(layer, torch.nn.Embedding):
        return 1
    if isinstance(layer, torch.nn.LayerNorm) and name == "weight":
        return 2
    return 3 if isinstance(layer, (torch.nn.Conv2d, *LINEAR)) and name == "weight" else 0


LEAVES = (None, "embedding", "scale", "kernel")


def flax_arrays(model: torch.nn.Module, folder: Path) -> dict[str, np.ndarray]:
    """Every parameter of a saved PyTorch model by its path in the Flax model.

    Args:
        model: its layers tell what each parameter is.
        folder: where it was saved: the names in its file are what Flax's modules are called, and
            transformers 5 calls some of its own otherwise.
    """
    leaves = {
        f"{path}.{name}".lstrip("."): torch.full_like(value, flax_leaf(layer, name))
        for path, layer in model.named_modules()
        for name, value in layer.named_parameters(recurse=False)
    }
    model.save_pretrained(folder / "leaves", state_dict=leaves)
    leaves = load_file(folder / "leaves" / "model.safetensors")
    arrays = {}
    for name, array in load_file(folder / "model.safetensors").items():
        leaf = LEAVES[int(leaves[name].max())]
        if leaf == "kernel":
            array = array.T if array.ndim == 2 else np.moveaxis(array, (2, 3, 1, 0), (0, 1, 2, 3))
        *path, own = name.split(".")
        arrays["/".join([*path, leaf or own])] = array.copy(order="C")
    return arrays


def write_flax(arrays: dict[str, np.ndarray], path: Path) -> None:
    path.write_bytes(msgpack_serialize(unflatten_dict(arrays, sep="/")))


@pytest.fixture(scope="module", params=TWINS, ids=lambda twin: twin[0])
def pair(request, tmp_path_factory):
    """A random PyTorch model, and ours from the Flax file of the same weights."""
    folder = tmp_path_factory.mktemp("flax")
    pair = make_pair(*request.param, 0, folder)
    write_flax(flax_arrays(pair.torch, folder), folder / "flax_model.msgpack")
    (folder / "model.safetensors").rename(folder / "twin")
    pair.ours = registry.load(str(folder))
    return pair


def test_outputs_are_those_of_the_twin(pair):
    for ours, theirs in outputs_of(pair):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def test_the_export_is_the_twins_file(pair, tmp_path):
    pair.ours.save(tmp_path / "export")
    twin, export = (
        load_file(f"{pair.folder}/twin"),
        load_file(tmp_path / "export/model.safetensors"),
    )
    assert twin.keys() == export.keys()
    for name, value in twin.items():
        np.testing.assert_array_equal(value, export[name], err_msg=name)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny BERT with Flax weights; `twin` has its PyTorch ones."""
    pair = make_pair("bert", "masked_lm", 0, tmp_path)
    write_flax(flax_arrays(pair.torch, tmp_path), tmp_path / "flax_model.msgpack")
    (tmp_path / "model.safetensors").rename(tmp_path / "twin")
    return tmp_path


def test_shards_by_their_index(folder):
    whole = registry.load(str(folder)).params
    arrays = flatten_dict(msgpack_restore((folder / "flax_model.msgpack").read_bytes()), sep="/")
    (folder / "flax_model.msgpack").unlink()
    shards = {f"flax_model-0000{i}-of-00002.msgpack": list(arrays)[i - 1 :: 2] for i in (1, 2)}
    for file, names in shards.items():
        write_flax({name: arrays[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = folder / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for name, value in registry.load(str(folder)).params.items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    first = next(iter(weight_map))
    index.write_text(json.dumps({"weight_map": weight_map | {first + "x": weight_map[first]}}))
    with pytest.raises(UserError, match=r"lacks the tensor '.*x', which the index says it holds"):
        registry.load(str(folder))


def test_safetensors_are_preferred(folder):
    (folder / "twin").rename(folder / "model.safetensors")
    (folder / "flax_model.msgpack").write_bytes(b"damaged")
    registry.load(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short or is not Flax weights"),
        (b"\xc1" * 9, "cut short or is not Flax weights"),
        (msgpack_serialize({"bert": {"bias": "text"}}), r"nested named arrays \(at 'bert/bias'\)"),
        (msgpack_serialize({}), "has no weights"),
        (msgpack_serialize({"a.b": np.ones(2), "a": {"b": np.ones(2)}}), r"'a\.b' twice"),
    ],
)
def test_other_content_is_refused(folder, content, message):
    (folder / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(UserError, match=message):
        registry.load(str(folder))


def test_a_file_that_is_cut_short_is_refused(folder):
    file = folder / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        registry.load(str(folder))


def test_a_variable_collection_is_read_too(folder):
    whole = registry.load(str(folder)).params
    file = folder / "flax_model.msgpack"
    file.write_bytes(b"\x81\xa6params" + file.read_bytes())
    for name, value in registry.load(str(folder)).params.items():
        np.testing.assert_array_equal(value, whole[name])
