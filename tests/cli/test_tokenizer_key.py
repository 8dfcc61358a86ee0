"""`model.tokenizer`: the tokenizer of another folder, in training, prediction and the export."""

import json
import shutil
from pathlib import Path

import pytest

from jaxft.cli.main import main
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.models.load import load
from tests.support.launch import write_config
from tests.support.tiny import tiny_checkpoint, tiny_config

FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_checkpoint_without_a_tokenizer_trains_predicts_and_exports(tmp_path, capsys):
    config = tiny_config(tmp_path, train={"length": "2 steps"}, model={"tokenizer": "words"})
    Path("words").mkdir()
    for name in FILES:
        shutil.move(f"checkpoint/{name}", f"words/{name}")
    file = write_config(config, tmp_path / "c.yaml")
    assert main(["train", file, "--quiet"]) == 0
    shutil.rmtree("words")  # the run has its own copy
    assert main(["predict", "runs/tiny", "a bright film"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["text"] == "a bright film"
    assert main(["export", "runs/tiny"]) == 0
    assert load_tokenizer("runs/tiny/export").encode(["a bright film"]).unknown == 0


def test_a_named_tokenizer_replaces_the_checkpoints_own_and_its_old_files(tmp_path):
    folder, other = tiny_checkpoint(tmp_path / "a"), tiny_checkpoint(tmp_path / "b")
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "generation_config.json").write_text("{}")
    named = json.loads((other / "tokenizer_config.json").read_text()) | {"name": "b's"}
    (other / "tokenizer_config.json").write_text(json.dumps(named))
    (other / "generation_config.json").write_text('{"of": "b"}')
    model = load(str(folder), tokenizer=str(other))
    assert model.tokenizer_folder == other
    model.save(str(tmp_path / "out"))
    assert not (tmp_path / "out/vocab.txt").exists()
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["name"] == "b's"
    assert (tmp_path / "out/generation_config.json").read_text() == "{}"


def test_what_is_wrong_with_it_is_one_sentence(tmp_path, capsys):
    config = tiny_config(tmp_path)
    file = write_config(config, tmp_path / "c.yaml")
    large = tiny_checkpoint(tmp_path / "large")
    content = json.loads((large / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{n}": 100 + n for n in range(3)}
    (large / "tokenizer.json").write_text(json.dumps(content))

    def refused(tokenizer):
        assert main(["plan", file, f"model.tokenizer={tokenizer}"]) == 2
        return capsys.readouterr().err

    assert refused("large").startswith(
        "jaxft: model.tokenizer: 'large' has 103 tokens and the model embeddings for 32."
    )
    assert "model.tokenizer: 'lage' is neither a folder nor" in refused("lage")
    Path("empty").mkdir()
    assert "empty' holds no tokenizer" in refused("empty")
    Path("linked").mkdir()
    Path("secret").write_text("key")
    Path("linked/tokenizer.json").symlink_to(tmp_path / "secret")
    assert "outside the checkpoint" in refused("linked")
    Path("checkpoint/tokenizer.json").unlink()
    assert main(["plan", file]) == 2
    assert "model.tokenizer names another folder" in capsys.readouterr().err
