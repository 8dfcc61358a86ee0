"""Where a checkpoint is, and that finding it runs nothing."""

import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from jaxft.engine.trained import copy_adapter
from jaxft.errors import UserError
from jaxft.models.weights.source import Source, read_config, resolve


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that must not be imported, with a folder `inside/model`."""
    root = tmp_path / "site" / "trap_package"
    (root / "inside" / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('the package was run')")
    (root / "inside" / "__init__.py").write_text("raise RuntimeError('the package was run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_a_folder_is_itself(tmp_path):
    source = resolve(str(tmp_path))
    assert source.folder == tmp_path.resolve()
    assert source.asked == str(tmp_path)
    assert source.revision is None


def test_a_package_is_found_and_not_run(package):
    source = resolve("package:trap_package/inside/model")
    assert source.folder == (package / "inside" / "model").resolve()
    assert "trap_package" not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        "package:trap_package/../other",
        "package:trap_package/inside/../../other",
        "package:trap_package.inside/model",
        "package:trap_package//etc",
        "package:",
        "package:../trap_package",
    ],
)
def test_a_path_out_of_a_package_is_refused(package, path):
    with pytest.raises(UserError, match="is not a path inside a package"):
        resolve(path)
    assert "trap_package" not in sys.modules


def test_a_link_out_of_a_package_is_refused(package, tmp_path):
    (tmp_path / "outside").mkdir()
    (package / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of the package"):
        resolve("package:trap_package/link")


def test_what_is_not_there_is_said(package, tmp_path):
    with pytest.raises(UserError, match="no package 'no_such_package' is installed"):
        resolve("package:no_such_package/model")
    with pytest.raises(UserError, match=r"has no folder 'insid'\. Did you mean 'inside'"):
        resolve("package:trap_package/insid")
    with pytest.raises(UserError, match="there is no folder"):
        resolve(str(tmp_path / "nowhere" / "at" / "all"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no folder"):
        resolve(str(tmp_path / "file"))


def test_a_hub_id_names_its_commit(tmp_path, monkeypatch):
    """The hub's client is stood in for: tests reach no network."""
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    calls = []

    def download(repo, **options):
        calls.append((repo, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve("owner/name@main", cache="elsewhere")
    assert source.revision == "c" * 40
    assert source.folder == snapshot
    ((repo, options),) = calls
    assert (repo, options["revision"], options["cache_dir"]) == ("owner/name", "main", "elsewhere")
    assert not any(name.endswith((".py", ".bin")) for name in options["allow_patterns"])
    (snapshot / "model.safetensors").unlink()
    assert resolve("name").revision == "c" * 40
    for options, stem in zip([call[1] for call in calls[-2:]], ("pytorch", "flax"), strict=True):
        assert all(name.startswith((stem, "config.json")) for name in options["allow_patterns"])


def test_a_hub_out_of_reach_is_said(monkeypatch):
    def download(repo, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="neither a folder nor in the hub's cache"):
        resolve("owner/name")


def test_offline_is_honoured(tmp_path):
    """The tests run with HF_HUB_OFFLINE=1 and the true client."""
    with pytest.raises(UserError, match=r"hub is out of reach.*unset HF_HUB_OFFLINE"):
        resolve("owner/name@v1", cache=str(tmp_path))


def test_a_folder_without_config_is_said(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_config(tmp_path)
    for text, sentence in (("{", "is not JSON"), ("[]", "holds an array"), ("{}", "model_type")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_config(tmp_path)


def test_a_folder_without_weights_is_said(tmp_path):
    with pytest.raises(UserError, match=r"has no weights: no model\.safetensors"):
        _ = Source("here", tmp_path).weight_files


def test_the_hash_is_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = Source("here", tmp_path).sha256
    (tmp_path / "config.json").write_text("{}")
    assert Source("here", tmp_path).sha256 == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert Source("here", tmp_path).sha256 != first


TEMPLATES = "additional_chat_templates"
OWN = ("tokenizer.json", "vocab.txt", "chat_template.jinja", f"{TEMPLATES}/tools.jinja")
FOREIGN = (
    "tokenizer_evil.py",
    "tokenizer_key.txt",
    "vocab.secret",
    "chat_template.md",
    "notes.txt",
)


def put(folder, *names, content="{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_companions_are_files_of_known_names(tmp_path):
    put(tmp_path, *OWN, *FOREIGN, f"{TEMPLATES}/run.py")
    (tmp_path / "merges.txt").mkdir()
    assert set(resolve(str(tmp_path)).companions) == set(OWN)


@pytest.mark.parametrize("name", [*OWN, "processor_config.json", "generation_config.json"])
def test_a_link_out_of_a_checkpoint_is_refused(tmp_path, name):
    key = put(tmp_path, "key", content="SECRET") / "key"
    folder = put(tmp_path / "model", "config.json", f"{TEMPLATES}/other.jinja")
    (folder / name).symlink_to(key)
    with pytest.raises(UserError, match=rf"{name} is a link to .*key, which is outside the check"):
        resolve(str(folder))


def test_a_folder_that_is_a_link_out_of_a_checkpoint_is_refused(tmp_path):
    put(tmp_path, "elsewhere/x.jinja", "model/config.json", content="SECRET")
    (tmp_path / "model" / TEMPLATES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"x\.jinja is a link to .*, which is outside the checkpoint"
    ):
        resolve(str(tmp_path / "model"))


def test_links_within_a_checkpoint_and_of_the_hubs_cache_are_followed(tmp_path):
    plain = put(tmp_path / "model", "files/words")
    (plain / "vocab.txt").symlink_to("files/words")
    assert set(resolve(str(plain)).companions) == {"vocab.txt"}
    cache = put(tmp_path / "models--owner--name", "blobs/abc")
    snapshot = cache / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    source = resolve(str(snapshot))
    assert source.companions["tokenizer.json"].read_text() == "{}"
    put(tmp_path, "key", content="SECRET")
    (snapshot / "merges.txt").symlink_to("../../../key")
    with pytest.raises(UserError, match=r"merges\.txt is a link"):
        resolve(str(snapshot))


def test_blobs_that_are_elsewhere_are_not_the_hubs(tmp_path):
    put(tmp_path, "keys/abc", content="SECRET")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").symlink_to(tmp_path / "keys")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    with pytest.raises(UserError, match=r"tokenizer\.json is a link"):
        resolve(str(snapshot))


def test_a_companion_of_no_credible_size_is_refused(tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(6 << 30)  # sparse: it takes no room
    with pytest.raises(UserError, match=r"tokenizer\.model has 6,442,450,944 bytes; at most"):
        resolve(str(tmp_path))


def test_an_adapters_link_out_of_its_folder_is_not_copied(tmp_path):
    put(tmp_path, "key", content="SECRET")
    folder = put(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    copy_adapter(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (folder / "adapter_model.bin").symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a link to .*key"):
        copy_adapter(folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()
