"""The files of an export: shards, their index, what lies beside them, and nothing half-written."""

import gc
import json
import re
import resource
import signal
import tracemalloc
import weakref

import jax
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxft.errors import UserError
from jaxft.models import load as registry
from jaxft.models.weights.export import write_weights

IDS = np.array([[3, 4, 5, 6], [7, 8, 2, 1]])
LIMIT = 3000  # bytes of a shard; the largest tensor has 1,280


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama with all that may lie beside a checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir()
    for name in BESIDE:
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "notes.txt").write_text("nobody's")
    return folder


BESIDE = (
    "tokenizer.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_lies_beside_the_weights_goes_along(folder, tmp_path):
    registry.load(str(folder)).save(tmp_path)
    written, source = files_of(tmp_path), files_of(folder)
    weights = {"config.json", "model.safetensors"}
    assert set(written) == {*BESIDE, "generation_config.json", *weights}
    for name in set(written) - weights:
        assert written[name] == source[name], name


def test_weights_over_the_limit_are_shards_that_load_alike(folder, tmp_path):
    model = registry.load(str(folder))
    changed = {name: value * 0.9 for name, value in model.params.items()}
    model = model.with_params(changed)
    model.save(tmp_path, max_shard=LIMIT)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    count = len(shards)
    assert count > 3
    assert shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert not (tmp_path / "model.safetensors").exists()
    tensors = {shard: load_file(tmp_path / shard) for shard in shards}
    assert {name: shard for shard, held in tensors.items() for name in held} == index["weight_map"]
    sizes = {shard: sum(v.nbytes for v in held.values()) for shard, held in tensors.items()}
    assert max(sizes.values()) <= LIMIT
    assert index["metadata"]["total_size"] == sum(sizes.values())
    again = registry.load(str(tmp_path))
    assert all(np.array_equal(again.params[name], value) for name, value in changed.items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(again(input_ids=IDS)["logits"], expected, atol=2e-5)


def test_unchanged_weights_are_the_sources_also_in_shards(folder, tmp_path):
    registry.load(str(folder)).save(tmp_path / "shards", max_shard=LIMIT)
    registry.load(str(tmp_path / "shards")).save(tmp_path / "whole")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "whole"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_new_export_leaves_nothing_of_the_one_before(folder, tmp_path):
    model = registry.load(str(folder))

    def export(limit):
        model.save(tmp_path, max_shard=limit)
        assert registry.load(str(tmp_path)).report.new == ()
        found = sorted(name for name in files_of(tmp_path) if "model" in name)
        return [re.sub(r"\d{5}", "N", name) for name in found]

    many = export(LIMIT)
    few = export(3 * LIMIT)
    assert len(many) > len(few) > 2
    assert set(many) == set(few) == {"model-N-of-N.safetensors", "model.safetensors.index.json"}
    assert export(10**6) == ["model.safetensors"]
    assert export(LIMIT) == many


def refused(model, folder, said, **options):
    before = {path: path.lstat() for path in folder.rglob("*")} if folder.is_dir() else {}
    with pytest.raises(UserError, match=said):
        model.save(folder, **options)
    now = {path: path.lstat() for path in folder.rglob("*")} if folder.is_dir() else {}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in now.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


FOREIGN = {
    "README.md": b"mine",
    "model.safetensors": b"mine",
    "model-00001-of-00002.safetensors": b"mine",
    "adapter_model.safetensors": b"mine",
    ".git/HEAD": b"ref: refs/heads/main",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_somebody_elses_is_not_written_into(folder, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(FOREIGN[name])
    first = name.partition("/")[0]
    said = f"holds '{re.escape(first)}', and is not an earlier export of jaxft"
    refused(registry.load(str(folder)), tmp_path, said)


def test_a_checkpoint_of_transformers_is_not_written_into(folder, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path, max_shard_size=LIMIT)
    assert len(list(tmp_path.glob("model-*"))) > 1
    model = registry.load(str(folder))
    refused(model, tmp_path, "is not an earlier export")
    model.save(tmp_path, overwrite=True)


def test_anothers_shards_in_an_export_are_not_deleted(folder, tmp_path):
    model = registry.load(str(folder))
    model.save(tmp_path)
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(b"mine")
    refused(model, tmp_path, "holds 'model-00001-of-00009.safetensors'")
    model.save(tmp_path, overwrite=True)
    assert (tmp_path / "model-00001-of-00009.safetensors").read_bytes() == b"mine"


def test_an_export_names_no_code_of_the_source(folder, tmp_path):
    """The rest of the file is as it was, and files without such names are byte for byte."""
    source = registry.load(str(folder)).save(tmp_path / "source")
    fields = {"pad_token": "[PAD]", "auto_map": {"AutoTokenizer": ["evil.py", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(fields))
    (source / "special_tokens_map.json").write_text('{"pad_token":   "[PAD]"}')
    out = registry.load(str(source)).save(tmp_path / "export")
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"pad_token": "[PAD]"}
    assert (out / "special_tokens_map.json").read_text() == '{"pad_token":   "[PAD]"}'


def test_a_model_is_not_saved_over_its_own_source(folder, tmp_path):
    source = tmp_path / "source"
    registry.load(str(folder)).save(source)
    model = registry.load(str(source))
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link", source / "deep" / "er"):
        refused(model, target, "the checkpoint that the model was loaded from")
    assert not (source / "deep").exists()


def test_what_a_killed_export_left_is_cleared_by_the_next(folder, tmp_path):
    (tmp_path / ".weights-0a_bcdef").mkdir()
    (tmp_path / ".weights-0a_bcdef" / "0").write_bytes(b"half")
    (tmp_path / ".config.json.0123abcd.tmp").write_bytes(b"half")
    registry.load(str(folder)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_is_no_folder(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(registry.load(str(folder)), tmp_path / "file", "is a file. Name a new or an empty")
    with pytest.raises(UserError, match="could not be"):
        registry.load(str(folder)).save(tmp_path / "file" / "deep")


def test_each_file_has_the_mode_that_the_umask_leaves(folder, tmp_path):
    for limit in (LIMIT, 10**6):
        registry.load(str(folder)).save(tmp_path, max_shard=limit)
        modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
        assert set(modes.values()) == {modes["config.json"]}
        assert modes["config.json"] & 0o200


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The library's own order of the metadata differs from one write to the next."""
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        write_weights(tmp_path / str(number), [("a", np.arange(4.0))])
    files = {path.read_bytes() for path in tmp_path.rglob("model.safetensors")}
    assert len(files) == 1
    with safe_open(next(tmp_path.rglob("model.safetensors")), "np") as file:
        assert file.metadata() == {"format": "pt", "writer": "jaxft"}
        assert file.get_tensor("a").tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_disk_that_fills_up_leaves_the_export_before(folder, tmp_path):
    model = registry.load(str(folder))
    model.save(tmp_path, max_shard=LIMIT)
    before = files_of(tmp_path)
    changed = {name: value + 1 for name, value in model.params.items()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("model-*"))]
    assert sizes[0] < max(sizes)  # so that the disk fills up after some are written
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, limits[1]))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors could not be written"):
            model.save(tmp_path, changed, max_shard=LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_nothing_stays_on_the_host(folder, tmp_path):
    """jax keeps an array's value once it was asked for; a sharded one is a copy of its own."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    wide = {"vocab_size": 4000, "hidden_size": 64, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**wide, intermediate_size=64, num_hidden_layers=1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    model = registry.load(str(tmp_path / "source"), sharding=lambda name, shape, axes: rows)
    changed = model.with_params({name: value + 1 for name, value in model.params.items()})
    tracemalloc.start()
    try:
        changed.save(tmp_path / "out")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000  # one embedding is a million bytes


def test_no_more_than_a_shard_is_held(tmp_path):
    alive: set[int] = set()
    most = 0

    def tensors():
        nonlocal most
        for number in range(40):
            gc.collect()
            most = max(most, len(alive))
            value = np.full(25, number, np.float32)
            alive.add(number)
            weakref.finalize(value, alive.discard, number)
            yield f"t{number}", value
            del value

    gc.freeze()  # a collection looks at what is made from here on, and takes no second each
    assert write_weights(tmp_path, tensors(), limit=500) == {"float32"}
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 8
    assert most <= 6  # five fit a shard, and the sixth is found not to
