"""A checkpoint is read strictly: everything used or listed, everything wrong said in a sentence."""

import itertools
import json
import resource
import shutil
import signal
from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.families.bert import bert
from jaxft.models.layers.modules import Leaf
from jaxft.models.values import with_values
from jaxft.models.weights.files import open_tensors
from jaxft.models.weights.leaves import load_leaf
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import Tensor
from jaxft.models.weights.vocab import grown
from tests.support.families import compiled

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
BATCH = {"input_ids": np.array([[3, 4, 5, 6]]), "attention_mask": np.array([[1, 1, 1, 0]])}


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    """A BertForSequenceClassification of classes `bad` and `good`."""
    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.BertConfig(**SMALL, id2label={0: "bad", 1: "good"})
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "notes.txt").write_text("not the tokenizer's")
    return folder


@pytest.fixture
def folder(classifier_folder, tmp_path):
    """A copy of the classifier to spoil."""
    return shutil.copytree(classifier_folder, tmp_path / "checkpoint")


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder, edit):
    """Rewrites model.safetensors with what `edit(dict)` returns."""
    path = folder / "model.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    save_file(edit(tensors), path, metadata={"format": "pt"})


def same_params(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_old_names_without_prefix_and_buffers_are_understood(folder):
    before = registry.load(str(folder))

    def age(tensors):
        old = {}
        for name, value in tensors.items():
            name = name.removeprefix("bert.")
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
        old["embeddings.position_ids"] = np.arange(16)[None]
        old["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
        return old

    edit_tensors(folder, age)
    model = registry.load(str(folder))
    assert same_params(model.params, before.params)
    assert model.report.new == ()
    assert set(model.report.unused) == {"embeddings.position_ids", "cls.seq_relationship.weight"}


def test_a_name_that_comes_twice_is_refused(folder):
    edit_tensors(folder, lambda t: t | {"pooler.dense.bias": t["bert.pooler.dense.bias"].copy()})
    with pytest.raises(UserError, match=r"holds 'bert\.pooler\.dense\.bias' twice"):
        registry.load(str(folder))


def test_an_unknown_tensor_is_refused_unless_ignored(folder):
    edit_tensors(folder, lambda t: t | {"bert.encoder.layer.2.x": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"holds 'bert\.encoder\.layer\.2\.x'.*model\.ignore"):
        registry.load(str(folder))
    model = registry.load(str(folder), ignore=["bert.encoder.layer.2.x"])
    assert model.report.unused == ("bert.encoder.layer.2.x",)


@pytest.mark.parametrize(
    "name", ["bert.encoder.layer.1.output.dense.bias", "bert.pooler.dense.bias", "classifier.bias"]
)
def test_a_missing_tensor_is_named(folder, name):
    edit_tensors(folder, lambda t: {n: v for n, v in t.items() if n != name})
    with pytest.raises(UserError, match=f"lacks the tensor '{name}'"):
        registry.load(str(folder))


def test_a_wrong_shape_is_named(folder):
    edit_config(folder, vocab_size=21)
    with pytest.raises(UserError, match=r"word_embeddings.*\[20, 8\].*\[21, 8\]"):
        registry.load(str(folder))


def test_a_family_may_compute_a_tensor_of_another_shape(folder, tmp_path, monkeypatch):
    edit_config(folder, max_position_embeddings=20)
    with pytest.raises(UserError, match=r"position_embeddings.*\[16, 8\].*\[20, 8\]"):
        registry.load(str(folder))

    def refits(config, fields):
        assert (config.max_positions, fields["vocab_size"]) == (20, 20)
        return {
            "embeddings/position/embedding": lambda old: np.concatenate([old, old[:4] / 3]),
            "embeddings/word/embedding": lambda old: old * 0,  # of the right shape as it is
        }

    monkeypatch.setattr(bert, "FAMILY", replace(bert.FAMILY, refits=refits))
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    model = registry.load(
        str(folder), sharding=lambda name, shape, axes: rows if "position" in name else None
    )
    stored = load_file(folder / "model.safetensors")
    old = stored["bert.embeddings.position_embeddings.weight"]
    new = model.params["embeddings/position/embedding"]
    np.testing.assert_array_equal(new, np.concatenate([old, old[:4] / 3]))
    assert model.report.notes == (
        "embeddings/position/embedding is computed from the checkpoint's, which is [16, 8] and "
        "not [20, 8].",
    )
    assert "embeddings/position/embedding" in model.report.loaded
    assert np.any(model.params["embeddings/word/embedding"])
    model.save(tmp_path / "export")
    again = registry.load(str(tmp_path / "export"))
    assert same_params(again.params, model.params)
    assert again.report.notes == ()


@pytest.mark.parametrize("task", ["text_classification", "masked_lm"])
def test_a_vocabulary_grows_to_the_tokenizers(classifier_folder, tmp_path, task):
    folder = tmp_path / "checkpoint"
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(23)}))
    backend.save(str(folder / "tokenizer.json"))
    assert registry.load(str(folder), task=task).vocab_size == 20  # only where it is asked for
    mesh = Mesh(np.array(jax.devices()).reshape(1, 8), ("tensor", "fsdp"))
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    model = registry.load(
        str(folder),
        task=task,
        resize_vocab=True,
        sharding=lambda name, shape, axes: columns if "vocab" in axes[:-1] else None,
    )
    stored = load_file(folder / "model.safetensors")
    old = stored["bert.embeddings.word_embeddings.weight"]
    new = np.asarray(model.params["embeddings/word/embedding"])
    np.testing.assert_array_equal(new[:20], old)
    np.testing.assert_allclose(new[20:], np.tile(old.mean(0), (3, 1)), atol=1e-8)
    assert model.vocab_size == 23
    said = "embeddings/word/embedding grew from 20 words to 23; each new one is the mean of the old"
    assert said in model.report.notes[0]
    assert len(model.report.notes) == (2 if task == "masked_lm" else 1)  # head/bias has words too
    out = model.save(tmp_path / "export")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 23
    again = registry.load(str(out), task=task, resize_vocab=True)
    assert same_params(again.params, model.params)
    assert again.report.notes == ()


def test_a_part_of_a_grown_vocabulary_is_that_part(folder):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor = grown(Tensor(folder, (4, 3), "F32", lambda index: rows[index]), 7)
    whole = np.concatenate([rows, np.tile(rows.mean(0), (3, 1))])
    assert tensor.shape == whole.shape
    for start, stop in itertools.combinations(range(8), 2):
        for columns in (slice(None), slice(1, 3)):
            index = (slice(start, stop), columns)
            np.testing.assert_array_equal(tensor.read(index), whole[index])


def test_a_wrong_type_is_named(folder):
    edit_tensors(folder, lambda t: t | {"classifier.bias": np.zeros(2, np.int32)})
    with pytest.raises(UserError, match=r"'classifier\.bias' is of type I32"):
        registry.load(str(folder))


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: it is cut short"):
        registry.load(str(folder))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rope_theta": 1e4}, r"field 'rope_theta' \(10000\.0\).*model\.ignore=\[rope_theta\]"),
        ({"position_embedding_type": "relative_key"}, 'only "absolute" is supported'),
        ({"is_decoder": True}, "is_decoder is true; only false"),
        ({"hidden_act": "gelu_neww"}, "Did you mean 'gelu_new'"),
        ({"num_attention_heads": 3}, "8 does not divide into 3 heads"),
        ({"hidden_size": None}, "hidden_size must be a whole number"),
        ({"model_type": "bort"}, "model_type 'bort' is not supported.*'bert'"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "Name a task: text_class"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(folder, fields, sentence):
    edit_config(folder, **fields)
    with pytest.raises(UserError, match=sentence):
        registry.describe(str(folder))


def test_harmless_fields_pass(folder):
    edit_config(folder, pooler_type="first_token_transform", use_cache=False, extra=None)
    registry.describe(str(folder))
    edit_config(folder, rope_theta=1e4)
    registry.describe(str(folder), registry.LoadOptions(ignore=["rope_theta"]))


def test_an_unknown_task_is_refused(folder):
    with pytest.raises(UserError, match=r"'painting' has no head on bert.*masked_lm"):
        registry.describe(str(folder), registry.LoadOptions(task="painting"))


def test_the_classifier_is_kept_where_number_and_names_agree(folder):
    own = registry.load(str(folder))
    assert own.labels == ("bad", "good")
    same = registry.load(str(folder), task="text_classification", labels=["bad", "good"])
    counted = registry.load(str(folder), task="text_classification", num_labels=2)
    for model in (same, counted):
        assert model.report.new == ()
        assert same_params(model.params, own.params)
    for labels in (["good", "bad"], ["a", "b", "c"]):
        model = registry.load(str(folder), task="text_classification", labels=labels)
        assert model.labels == tuple(labels)
        assert model.report.new == ("head/bias", "head/kernel")
        assert model.report.unused == ("classifier.bias", "classifier.weight")
        assert model.params["head/kernel"].shape == (8, len(labels))
    with pytest.raises(UserError, match="num_labels is 3, but 2 labels"):
        registry.load(str(folder), num_labels=3, labels=["a", "b"])
    with pytest.raises(UserError, match="named twice"):
        registry.load(str(folder), labels=["a", "a"])


def test_classes_without_names_are_counted_as_transformers_does(folder):
    edit_config(folder, id2label=None, label2id=None, num_labels=3)
    names = tuple(transformers.BertConfig.from_pretrained(folder).id2label.values())
    (folder / "model.safetensors").unlink()
    model = registry.describe(
        str(folder), registry.LoadOptions(task="text_classification"), weights=False
    )
    assert model.labels == names == ("LABEL_0", "LABEL_1", "LABEL_2")
    for count in (0, True, "3", 10**9):
        edit_config(folder, num_labels=count)
        with pytest.raises(UserError, match="num_labels"):
            registry.describe(str(folder))


def test_new_parameters_depend_on_the_seed_and_their_name_only(folder):
    def fresh(**options):
        options = {"task": "masked_lm", "seed": 0} | options
        return registry.load(str(folder), **options)

    model = fresh()
    assert set(model.report.new) == {name for name in model.params if name.startswith("head/")}
    assert "bert.pooler.dense.bias" in model.report.unused
    kernel = np.asarray(model.params["head/transform/kernel"])
    assert 0.01 < kernel.std() < 0.03
    assert np.array_equal(model.params["head/norm/scale"], np.ones(8))
    assert np.array_equal(fresh().params["head/transform/kernel"], kernel)
    assert not np.array_equal(fresh(seed=1).params["head/transform/kernel"], kernel)
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    sharding = NamedSharding(mesh, PartitionSpec())
    many = fresh(sharding=lambda name, shape, axes: sharding)
    np.testing.assert_array_equal(many.params["head/transform/kernel"], kernel)
    labels = list("abcdefgh")  # as many as the width: a head of the pooler's shape
    two = registry.load(str(folder), task="text_classification", labels=labels)
    edit_tensors(folder, lambda t: {n: v for n, v in t.items() if "pooler" not in n})
    more = registry.load(str(folder), task="text_classification", labels=labels)
    assert set(more.report.new) == {"head/bias", "head/kernel", "pooler/bias", "pooler/kernel"}
    assert np.array_equal(two.params["head/kernel"], more.params["head/kernel"])
    assert not np.array_equal(more.params["pooler/kernel"], more.params["head/kernel"])


def test_what_is_known_is_not_read(folder):
    """A run's checkpoint holds what it trained: the base's own values of that are passed over."""
    known = registry.load(str(folder)).params
    unread = registry.describe(str(folder), weights=False)  # reading a tensor is an error
    assert same_params(with_values(unread, known=known).params, known)
    with pytest.raises(UserError, match="has no weights"):
        with_values(unread, known={n: v for n, v in known.items() if n != "embeddings/norm/bias"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_than_a_shard_is_on_its_way(folder, monkeypatch, dtype):
    model = registry.describe(str(folder))
    name = "blocks/0/mlp/up/kernel"
    tensor, given = model.matching.loaded[name], []
    whole = tensor.whole()
    device_put = jax.device_put

    def spy(part, device):
        given.append(part)
        return device_put(part, device)

    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_put", spy)
        viewed = replace(tensor, read=lambda index: whole[index])
        line, leaf = model.hf_names[name], model.leaves[name]
        value = load_leaf(viewed, line, leaf, dtype, sharding)
    np.testing.assert_array_equal(value, whole.T.astype(dtype))
    assert [part.size for part in given] == [8 * 12 // 4] * 4
    assert not any(np.shares_memory(part, whole) for part in given)


def shard(folder):
    """Rewrites model.safetensors as a.safetensors, b.safetensors and an index; returns that."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[1::2], "b.safetensors": names[::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_of_weights_are_one_checkpoint(folder):
    whole = registry.load(str(folder))
    hash_of_whole = whole.source.sha256
    shard(folder)
    model = registry.load(str(folder))
    assert same_params(model.params, whole.params)
    assert model.source.sha256 != hash_of_whole


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        ({"classifier.bias": "c.safetensors"}, "names 'c.safetensors', which is missing"),
        ({"classifier.bias": "../a.safetensors"}, "not a safetensors file beside it"),
        ({"classifier.bias": "/a.safetensors"}, "not a safetensors file beside it"),
        ({"classifier.bias": "vocab.txt"}, "not a safetensors file beside it"),
        ({"classifier.bias": 3}, "not a safetensors file beside it"),
        ({"classifier.kernel": "a.safetensors"}, "a.safetensors lacks the tensor 'classifier.ker"),
        ({"classifier.bias": "b.safetensors"}, "b.safetensors lacks the tensor 'classifier.bias'"),
        (None, "index.json is not an index of safetensors files"),
        ({}, "index.json is not an index of safetensors files"),
        ([], "index.json is not an index of safetensors files"),
    ],
)
def test_a_wrong_index_is_refused(folder, shards, sentence):
    index = shard(folder)
    assert index["weight_map"]["classifier.bias"] == "a.safetensors"
    index["weight_map"] = index["weight_map"] | shards if shards else shards
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=sentence):
        registry.describe(str(folder))


def test_a_shard_that_is_cut_short_or_gone_is_named(folder):
    shard(folder)
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"b\.safetensors cannot be read: it is cut short"):
        registry.describe(str(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"names 'b\.safetensors', which is missing"):
        registry.describe(str(folder))


def test_no_parameter_is_a_piece_of_the_file(tmp_path):
    """jax may keep an array that it is given, and a file may be overwritten in place."""
    path = tmp_path / "model.safetensors"
    stored = {"whole": np.ones((64, 64), np.float32), "turned": np.ones((64, 64), np.float32)}
    for filling in range(64):  # jax keeps what begins at a multiple of 64 bytes
        save_file(stored, path, metadata={"filling": "x" * filling})
        if int.from_bytes(path.read_bytes()[:8], "little") % 64 == 56:
            break
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    places = [None, *(NamedSharding(mesh, PartitionSpec(*cut)) for cut in [(), ("fsdp",)])]
    leaf = Leaf((64, 64), ("embed", "mlp"))
    values = [
        load_leaf(tensor, Name(name, name, transpose=name == "turned"), leaf, "float32", place)
        for name, tensor in open_tensors([path]).items()
        for place in places
    ]
    jax.block_until_ready(values)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    for value in values:
        np.testing.assert_array_equal(value, 1.0)


def test_a_file_that_is_replaced_is_read_as_it_was(folder):
    tensor = registry.describe(str(folder)).matching.loaded["pooler/kernel"]
    before = tensor.whole().copy()
    (folder / "other").write_bytes(bytes(1000))
    (folder / "other").replace(folder / "model.safetensors")
    np.testing.assert_array_equal(tensor.whole(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bin_is_read_as_weights_only(folder, dtype):
    whole = registry.load(str(folder))
    tensors = load_file(folder / "model.safetensors")
    state = {name: torch.tensor(value).to(dtype) for name, value in tensors.items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model = registry.load(str(folder))
    for name, value in model.params.items():
        expected = torch.tensor(np.array(whole.params[name])).to(dtype).float().numpy()
        np.testing.assert_array_equal(value, expected)
    torch.save({"classifier.bias": Fraction(1, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights only"):
        registry.load(str(folder))


@pytest.mark.parametrize("wrap", [list, lambda state: {"state_dict": state}, lambda _: {3: 4}])
def test_a_bin_of_something_else_than_named_tensors(folder, wrap):
    tensors = load_file(folder / "model.safetensors")
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    (folder / "model.safetensors").unlink()
    torch.save(wrap(state), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds something else than named tensors"):
        registry.load(str(folder))
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    torch.save(parameters, folder / "pytorch_model.bin")
    model = registry.load(str(folder))
    np.testing.assert_array_equal(model.params["pooler/bias"], tensors["bert.pooler.dense.bias"])


def test_a_bin_in_shards_is_read_by_its_index(folder):
    whole = registry.load(str(folder)).params
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for part in (1, 2):
        names, file = list(tensors)[part - 1 :: 2], f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: torch.tensor(tensors[name]) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for name, value in registry.load(str(folder)).params.items():
        np.testing.assert_array_equal(value, whole[name])
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"names '{file}', which is missing"):
        registry.load(str(folder))


def test_a_bin_without_torch_says_what_to_do(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"takes torch to read safely.*Install torch"):
        registry.load(str(folder))


def test_a_half_precision_checkpoint_goes_back_as_it_was(folder, tmp_path):
    edit_tensors(folder, lambda t: {n: v.astype(np.float16) for n, v in t.items()})
    edit_config(folder, dtype="float16")
    model = registry.load(str(folder))
    assert {str(v.dtype) for v in model.params.values()} == {"float32"}
    model.save(tmp_path / "same")
    assert json.loads((tmp_path / "same/config.json").read_text())["dtype"] == "float16"
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "same/model.safetensors")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    changed = model.params | {"head/bias": model.params["head/bias"] + 1e-4}
    model.save(tmp_path / "trained", changed)
    assert json.loads((tmp_path / "trained/config.json").read_text())["dtype"] == "float32"
    after = load_file(tmp_path / "trained/model.safetensors")
    assert after["classifier.bias"].dtype == np.float32
    assert after["bert.pooler.dense.weight"].dtype == np.float16


def test_an_export_has_its_labels_and_tokenizer(folder, tmp_path):
    edit_config(folder, problem_type="regression", num_labels=2, _num_labels=2)
    asked = {"labels": ["x", "y", "z"], "ignore": ["_num_labels"]}
    model = registry.load(str(folder), task="text_classification", **asked)
    out = model.save(tmp_path / "export")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    }
    fields = json.loads((out / "config.json").read_text())
    assert fields["architectures"] == ["BertForSequenceClassification"]
    assert not {"problem_type", "num_labels", "_num_labels"} & fields.keys()
    assert fields["id2label"] == {"0": "x", "1": "y", "2": "z"}
    assert fields["label2id"] == {"x": 0, "y": 1, "z": 2}
    again = registry.load(str(out))
    assert again.labels == ("x", "y", "z")
    assert same_params(again.params, model.params)
    again.save(out, overwrite=True)  # over its own source
    assert same_params(registry.load(str(out)).params, model.params)


def test_a_full_disk_leaves_the_old_export(folder, tmp_path):
    model = registry.load(str(folder))
    out = model.save(tmp_path / "export")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    changed = {name: value + 1 for name, value in model.params.items()}  # may write to jax's cache
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors could not be written"):
            model.save(out, changed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_dropout_of_the_config_is_the_one_that_is_exported(folder, tmp_path):
    model = registry.load(str(folder), dropout=0.25)
    key = jax.random.key(0)
    with_key, without = (compiled(model, model.params, BATCH, k)["logits"] for k in (key, None))
    assert not np.array_equal(with_key, without)
    fields = json.loads((model.save(tmp_path / "export") / "config.json").read_text())
    assert fields["hidden_dropout_prob"] == fields["classifier_dropout"] == 0.25
    none = registry.load(str(folder), dropout=0.0)
    with_key, without = (compiled(none, none.params, BATCH, k)["logits"] for k in (key, None))
    assert np.array_equal(with_key, without)


def test_a_text_longer_than_the_positions_is_refused(folder):
    model = registry.load(str(folder))
    with pytest.raises(UserError, match="has 17 tokens; the model takes 16"):
        model(input_ids=np.ones((1, 17), np.int32))


def test_other_params_must_be_this_models(folder):
    model = registry.load(str(folder))
    with pytest.raises(ValueError, match="head/bias"):
        model.with_params({n: v for n, v in model.params.items() if n != "head/bias"})
