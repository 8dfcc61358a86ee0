"""The stories around training, on a run that has trained: plan, eval, predict, export, Python."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.numpy import load_file, save_file

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.errors import UserError
from jaxft.inference.score import score
from tests.support.launch import cache, content, events, write_config  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")

TEXTS = ("a warm and witty film", "the plot of the cast", "grim , stale , cold and flat scenes")


@pytest.fixture(scope="module")
def config(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """Embeddings and the first block frozen, the head at a rate of its own."""
    return tiny_config(
        tmp_path_factory.mktemp("run"),
        train={"length": "18 steps", "evaluate_every": "6 steps"},
        optimizer={"lr": 3e-3},
        layer_decay={"rate": 0.8},
        groups=[
            {"name": "low", "depth": [0, 1], "freeze": True},
            {"name": "head", "match": "head/.*", "lr_mult": 10.0},
        ],
    )


@pytest.fixture(scope="module")
def run(config):
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    assert main(["export", str(run.folder), "--out", str(out)]) == 0
    return out


# -------------------------------------------------------------------------------------------- plan


@pytest.mark.slow
def test_a_plan_is_what_the_run_then_writes(config, run, tmp_path, capsys):
    file = write_config(config, tmp_path / "tiny.yaml")
    before = content(run.folder)
    assert main(["plan", file, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    written = {
        **json.loads((run.folder / "run.json").read_text()),
        **json.loads((run.folder / "table.json").read_text()),
    }
    planned.pop("command")
    assert not any(planned.pop("copies").values()), "nothing averages or pulls back"
    assert not planned.pop("reinit")
    saved, alone = planned.pop("saved"), planned.pop("lowest_block_alone")
    segments = {row.pop("segment"): sum(row.values()) for row in planned.pop("segments")}
    assert sum(segments.values()) == written["flops"]["step"]
    assert list(segments) == ["blocks 0-0", "blocks 1-1", "top"]
    assert 0.5 < alone < 1
    assert planned == {name: written[name] for name in planned}
    assert saved == 1 - written["flops"]["step"] / written["flops"]["full"]
    assert 0.3 < saved < 0.7, "a frozen block of two is not differentiated"
    assert content(run.folder) == before


def test_a_plan_in_a_terminal(config, run, tmp_path, capsys):
    assert main(["plan", write_config(config, tmp_path / "tiny.yaml")]) == 0
    shown = capsys.readouterr().out
    for word in (
        "low",
        "head",
        "rest",
        "frozen",
        "3e-2",
        "18 steps",
        "FLOP",
        "of moments",
        "saved",
    ):
        assert word in shown, word
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_a_plan_from_python_and_of_a_run_that_is_not_there(config, tmp_path):
    moved = config.dump()
    moved["run"]["dir"] = str(tmp_path / "runs")
    plan = jaxft.plan(parse_config(moved))
    assert [group["name"] for group in plan.table["groups"]] == ["low", "head", "rest"]
    assert plan.flops["forward"] < plan.flops["step"] < plan.flops["full"]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_plan_counts_the_copies_of_what_trains(tmp_path, capsys):
    config = tiny_config(
        tmp_path,
        model={"reinit": 1},
        groups=[{"name": "low", "depth": [0, 0], "freeze": True}],
        train={"ema": 0.99},
        regularise={"l2_sp": 0.1},
    )
    plan = jaxft.plan(config)
    trains = [row for row in plan.table["rows"] if row["trainable"]]
    fresh = ("blocks/1/", "pooler/", "head/")  # L2-SP skips these: they have no pretrained value
    anchored = [row for row in trains if not row["name"].startswith(fresh)]
    assert plan.copies == {
        "average": 4 * sum(row["parameters"] for row in trains),
        "origin": 4 * sum(row["parameters"] for row in anchored),
    }
    Console(width=120).print(plan.render())
    shown = " ".join(capsys.readouterr().out.split())
    assert "for their moving average" in shown
    assert "for the anchor of L2-SP" in shown
    assert "the top block and the pooler are re-initialized" in shown
    assert json.loads(plan.to_json())["copies"] == plan.copies


# -------------------------------------------------------------------------------------------- eval


def test_eval_equals_the_result(run, capsys):
    before = content(run.folder)
    assert main(["eval", str(run.folder)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["step"], said["examples"]) == (run.best, run.result["examples"])
    assert said["metrics"] == pytest.approx(run.metrics, rel=1e-6)
    assert main(["eval", str(run.folder), "--split", "eval"]) == 0
    said = json.loads(capsys.readouterr().out)
    logged = next(event for event in events(run.folder, "eval") if event["step"] == run.best)
    assert said["metrics"] == pytest.approx({n: logged[n] for n in said["metrics"]}, rel=1e-6)
    assert content(run.folder) == before


def test_eval_of_other_rows(run, tmp_path):
    rows = tmp_path / "more.csv"
    rows.write_text("text,label\na warm film,1\na cold film,0\nthe fine cast,1\n")
    said = score(run.folder, data=f"csv:{rows}")
    assert (said["examples"], said["source"]) == (3, f"csv:{rows}")
    labelled = [
        line["label"] for line in predicted(run, "a warm film", "a cold film", "the fine cast")
    ]
    right = np.mean([label == wanted for label, wanted in zip(labelled, "101", strict=True)])
    assert said["metrics"]["accuracy"] == pytest.approx(right)


def test_eval_of_the_training_rows_and_of_another_step(run, config):
    """The rows of `data.train`, each once, as if they were named by `--data`."""
    scored = score(run.folder, "train", which="last")
    assert scored == score(run.folder, data=config.data.train, which="last")
    assert scored["source"] == config.data.train
    assert scored["step"] == 18
    with pytest.raises(UserError, match="holds no checkpoint 3"):
        score(run.folder, which=3)
    with pytest.raises(UserError, match="--split train names rows of the run, and --data others"):
        score(run.folder, "train", data=config.data.train)


def test_eval_of_rows_that_the_run_has_not(config, tmp_path, capsys):
    dumped = config.dump()
    dumped["data"]["test"] = None
    dumped["run"]["dir"] = str(tmp_path / "runs")
    dumped["train"]["length"] = "2 steps"
    run = jaxft.train(parse_config(dumped), quiet=True)
    assert main(["eval", str(run.folder)]) == 2
    assert capsys.readouterr().err == (
        f"jaxft: {run.folder} has no test rows. Give rows with --data csv:FILE, or use --split "
        "eval.\n"
    )


# ----------------------------------------------------------------------------------------- predict


def predicted(run, *texts):
    from jaxft.inference.predict import predict

    return list(predict(run.folder, texts))


def in_torch(folder, texts):
    """Logits of `transformers` for the texts, one at a time: `[texts, classes]`."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        batches = [tokenizer(text, return_tensors="pt") for text in texts]
        return model, torch.cat([model.eval()(**batch).logits for batch in batches]).numpy()


def test_predict_says_what_transformers_says_of_the_export(run, exported, capsys):
    assert main(["predict", str(run.folder), *TEXTS]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in said] == list(TEXTS)
    model, logits = in_torch(exported, TEXTS)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ours = [[line["probabilities"][name] for name in ("0", "1")] for line in said]
    np.testing.assert_allclose(ours, probabilities, atol=2e-6)
    names = [model.config.id2label[int(row.argmax())] for row in logits]
    assert [line["label"] for line in said] == names
    assert np.ptp(np.array(ours), axis=0).max() > 1e-3, "the texts differ, so their order shows"
    assert all("cut" not in line for line in said)


@pytest.mark.slow
def test_predict_takes_more_than_a_batch_from_standard_input(run, capsys, monkeypatch):
    lines = "".join(f"a film {'warm ' * (number % 9)}\n" for number in range(70))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["predict", str(run.folder)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in said] == lines.splitlines()
    assert said[0]["probabilities"] == said[63]["probabilities"], "the same text, another batch"
    assert predicted(run) == []


def test_predict_tells_what_it_cut(run):
    long = "fine " * 60 + "film"
    (said,) = predicted(run, long)
    assert said["text"] == long
    assert said["cut"] == 61 + 2 - 40
    (cut,) = predicted(run, "fine " * 38)
    assert cut["probabilities"] == said["probabilities"]


# ------------------------------------------------------------------------------------------ export


def test_an_export_is_a_hugging_face_folder_with_the_same_logits(run, exported):
    model, logits = in_torch(exported, TEXTS)
    assert type(model).__name__ == "BertForSequenceClassification"
    tokens = [model.config.id2label, model.config.label2id]
    assert tokens == [{0: "0", 1: "1"}, {"0": 0, "1": 1}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    batch = dict(tokenizer(list(TEXTS), padding=True, return_tensors="np"))
    np.testing.assert_allclose(run.model()(**batch)["logits"], logits, atol=2e-5)


def test_what_never_trained_is_exported_byte_for_byte(config, exported):
    source = load_file(f"{config.model.checkpoint}/model.safetensors")
    ours = load_file(exported / "model.safetensors")
    frozen = [name for name in source if name.startswith(("embeddings.", "encoder.layer.0."))]
    trained = [name for name in source if name not in frozen]
    assert len(frozen) == 5 + 16
    for name in frozen:
        assert ours[f"bert.{name}"].tobytes() == source[name].tobytes(), name
    for name in trained:
        assert ours[f"bert.{name}"].tobytes() != source[name].tobytes(), name


def test_the_export_of_another_step(run, exported, tmp_path):
    """By default it is the best; the last is another."""
    out = tmp_path / "last"
    assert main(["export", str(run.folder), "--out", str(out), "--checkpoint", "6"]) == 0
    head = [
        load_file(folder / "model.safetensors")["classifier.weight"] for folder in (exported, out)
    ]
    same = np.array_equal(*head)
    assert same == (run.best == 6)
    assert main(["export", str(run.folder), "--checkpoint", "3"]) == 2


def test_an_export_goes_where_nothing_of_anybody_elses_is(
    run, config, tmp_path, monkeypatch, capsys
):
    (tmp_path / "README.md").write_text("MINE")
    monkeypatch.chdir(tmp_path)
    words = ["export", str(run.folder), "--out"]
    for out, said in (
        ("", "a path is empty"),
        (".", "README.md exists and was not written by jaxft"),
        (str(run.folder / "base"), "the checkpoint that the model was loaded from"),
        (str(run.folder / "base" / "export"), "the checkpoint that the model was loaded from"),
        (str(run.folder), "and is not an earlier export of jaxft"),
        (config.model.checkpoint, "and is not an earlier export of jaxft"),
    ):
        before = content(run.folder), content(Path(config.model.checkpoint))
        assert main([*words, out]) == 2, out
        assert said in capsys.readouterr().err
        assert (content(run.folder), content(Path(config.model.checkpoint))) == before
    assert content(tmp_path) == {"README.md": b"MINE"}


def test_an_export_replaces_an_earlier_one_but_no_card_of_somebody_elses(run, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", str(run.folder), "--out", str(out)]
    assert main(words) == 0
    first = content(out)
    (out / "notes.txt").write_text("MINE")
    assert main([*words, "--checkpoint", "6"]) == 0
    assert main(words) == 0
    assert content(out) == first | {"notes.txt": b"MINE"}
    (out / "README.md").write_text("MINE")
    assert main(words) == 2
    assert "README.md exists and was not written by jaxft" in capsys.readouterr().err
    assert content(out) == first | {"notes.txt": b"MINE", "README.md": b"MINE"}


# ------------------------------------------------------------------------------------------ Python


def test_the_python_face(run, exported, tmp_path):
    model = run.model()
    loaded = jaxft.load(str(exported))
    assert loaded.labels == model.labels == ("0", "1")
    assert loaded.params.keys() == model.params.keys()
    for name, leaf in model.params.items():
        np.testing.assert_array_equal(leaf, loaded.params[name], err_msg=name)
    again = model.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (
        exported / "model.safetensors"
    ).read_bytes()
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        jaxft.tune  # noqa: B018 the attribute is the test


# -------------------------------------------------------------------------------------------- base


def test_a_run_whose_checkpoint_is_gone_predicts_and_exports(config, run, exported, tmp_path):
    moved = shutil.copytree(run.folder, tmp_path / "tiny")
    (moved / "digests.json").unlink()  # config.yaml is changed on purpose
    config_file = moved / "config.yaml"
    text = config_file.read_text()
    assert config.model.checkpoint in text
    config_file.write_text(text.replace(config.model.checkpoint, str(tmp_path / "gone")))
    out = tmp_path / "out"
    assert main(["export", str(moved), "--out", str(out)]) == 0
    assert content(out) == content(exported)
    assert predicted(jaxft.Run(moved), *TEXTS) == predicted(run, *TEXTS)


def test_a_copy_that_changed_is_noticed(run, tmp_path, capsys):
    moved = shutil.copytree(run.folder, tmp_path / "tiny")
    change(moved / "base" / "model.safetensors", "bert.pooler.dense.bias")
    assert main(["predict", str(moved), "a film"]) == 2
    assert "the weights are not those that the run started from" in capsys.readouterr().err


def test_a_referenced_checkpoint_that_changed_is_noticed(config, tmp_path, capsys):
    dumped = config.dump()
    source = shutil.copytree(config.model.checkpoint, tmp_path / "source")
    dumped["run"]["dir"] = str(tmp_path / "runs")
    dumped["train"]["length"] = "2 steps"
    dumped["model"]["checkpoint"] = str(source)
    dumped["checkpoint"]["base"] = "reference"
    given = parse_config(dumped)
    run = jaxft.train(given, quiet=True)
    assert not (run.folder / "base").exists()
    assert len(predicted(run, *TEXTS)) == 3

    change(source / "model.safetensors", "pooler.dense.bias")
    before = content(run.folder)
    file = write_config(given, tmp_path / "tiny.yaml")
    for words in (
        ["predict", str(run.folder), "a film"],
        ["export", str(run.folder)],
        ["eval", str(run.folder)],
        ["train", file, "train.length=4", "--resume", "--quiet"],
    ):
        assert main(words) == 2, words
        assert "are not those that the run started from" in capsys.readouterr().err, words
    assert content(run.folder) == before


def change(path, name):
    tensors = load_file(path)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})
