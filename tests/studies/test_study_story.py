"""`jaxft study` from end to end: the folder, the table, the page, what resumes, what is refused."""

import json

import jax
import numpy as np
import pyarrow.parquet
import pytest

import jaxft
from jaxft.cli.main import main
from jaxft.cli.study import parse_vary
from jaxft.config.load import load_config, to_yaml
from jaxft.errors import UserError
from jaxft.report.events import read_events
from jaxft.report.page.study_figures import figures
from jaxft.storage import files
from jaxft.studies import range as study_range
from jaxft.studies.folder import check_study
from jaxft.studies.range import range_of, rising_rates
from tests.support.launch import cache, content  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")
VARY = ["--vary", "optimizer.lr=1e-2,1e38", "--vary", "run.seed.data=0,1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `c.yaml`: 8 steps, scored twice."""
    folder = tmp_path_factory.mktemp("story")
    config = tiny_config(
        folder,
        groups=[{"name": "trunk", "depth": [0, 1], "freeze": True}],
        data={"batch_size": 16},
        train={"length": 8, "evaluate_every": 4, "log_every": 2},
    )
    (folder / "c.yaml").write_text(to_yaml(config.dump()))
    return folder


@pytest.fixture(scope="module")
def study(folder):
    """The folder of a study of 4 in two programs, of which two members diverge."""
    assert main(["study", str(folder / "c.yaml"), *VARY]) == 0
    return folder / "runs" / "tiny-study"


def about(study):
    return json.loads((study / "study.json").read_text())


def test_a_study_is_told_whole(study):
    found = about(study)
    assert found["state"] == "finished"
    assert [part["members"] for part in found["parts"]] == [[0, 2], [1, 3]]
    assert [part["differs"] for part in found["parts"]] == ["run.seed.data 0", "run.seed.data 1"]
    assert [entry["values"] for entry in found["ranking"]] == [
        {"optimizer.lr": 1e-2},
        {"optimizer.lr": 1e38},
    ]
    assert found["ranking"][1]["diverged"] == 2
    assert found["ranking"][1]["test"]["mean"] is None
    assert 0 <= found["ranking"][0]["test"]["mean"] <= 1, "every member is scored on the test rows"
    assert found["ranking"][0]["best"]["deviation"] is not None, "the order of the data is a seed"
    notes = [event["text"] for event in read_events(study) if event["kind"] == "note"]
    assert [note.split(":")[0] for note in notes] == ["Member 2 diverged", "Member 3 diverged"]


def test_its_table_has_a_row_for_each_member_and_evaluation(study):
    rows = pyarrow.parquet.read_table(study / "study.parquet").to_pylist()
    assert [(row["member"], row["step"]) for row in rows] == [
        (member, step) for member in range(4) for step in (4, 8)
    ]
    assert [row["last"] for row in rows] == [False, True] * 4
    assert {row["optimizer.lr"] for row in rows if row["diverged"]} == {1e38}
    assert all(0 <= row["accuracy"] <= 1 for row in rows if not row["diverged"])
    assert {row["accuracy"] for row in rows if row["diverged"]} == {None}
    assert [row["member"] for row in rows if row["best"]] == [0, 1]


def test_every_member_has_its_curve(study):
    events = [event for event in read_events(study) if event["kind"] == "train"]
    assert {(e["member"], e["step"]) for e in events} >= {
        (m, s) for m in (0, 1) for s in (2, 4, 6, 8)
    }


def test_the_best_is_ready_to_train(study, folder):
    best = load_config(study / "best.yaml")
    assert (best.run.name, best.optimizer.lr) == ("tiny-study-best", 1e-2)
    assert jaxft.Study(study).best == best
    expected = load_config(folder / "c.yaml", ["optimizer.lr=1e-2", "run.name=tiny-study-best"])
    assert best == expected


def test_its_page_shows_it(study):
    page = (study / "index.html").read_text()
    for text in ("Best accuracy", "Drift by depth", "Training loss", "best.yaml", "diverged"):
        assert text in page
    drawn = page.split('id="figures">')[1].split("</script>")[0]
    by_id = {figure["id"]: figure for figure in json.loads(drawn)}
    assert by_id["best"]["series"][0]["x"] == [1e-2], "a setting that diverged is no point"
    assert by_id["best"]["series"][0]["above"][0] >= 0
    heat = by_id["drift"]
    assert (heat["x"], heat["y"]) == (["lr 0.01", "lr 1e+38"], ["0", "1", "2", "3"])
    assert heat["z"][0] == heat["z"][1] == [0, 0], "what is frozen does not drift"
    assert heat["z"][3][0] > 0


def test_resume_trains_what_is_missing_and_ends_alike(study, folder, capsys):
    before = pyarrow.parquet.read_table(study / "study.parquet")
    kept = (study / "parts" / "0.json").read_bytes()
    (study / "parts" / "1.json").unlink()
    assert main(["study", str(folder / "c.yaml"), *VARY, "--resume"]) == 0
    assert "1 of 2 programs are done" in capsys.readouterr().out
    assert (study / "parts" / "0.json").read_bytes() == kept
    after = pyarrow.parquet.read_table(study / "study.parquet")
    assert after == before
    trained = [(e["member"], e["step"]) for e in read_events(study) if e["kind"] == "train"]
    assert len(trained) == len(set(trained)), "no event is there twice"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (VARY, "runs/tiny-study already holds a study. Add --resume to continue it"),
        (
            [*VARY, "--resume", "--overwrite"],
            "--resume continues a study and --overwrite replaces it",
        ),
        ([*VARY[:2], "--resume"], "A study cannot be resumed with a different --vary."),
        ([*VARY, "--resume", "train.length=9"], "resumed with a different train.length."),
        ([], "A study needs a key to vary. Add --vary optimizer.lr=1e-5,3e-5,1e-4."),
        (["--vary", "optimizer.lr"], "--vary must be KEY=A,B,C, not 'optimizer.lr'."),
        (["--vary", "optimizer.lr=[1"], "--vary optimizer.lr is not YAML"),
        (
            ["--vary", "optimiser.lr=1e-3", "--name", "x"],
            "unknown key 'optimiser'. Did you mean 'optimizer'?",
        ),
        (["--vary", "optimizer.lr=1e-3,fast"], "'optimizer.lr' must be a number, not the text"),
        (["--vary", "run.dir=a,b"], "--vary run.dir: a study has one for all of its members."),
        (["--lr-range", "--resume"], "--lr-range is a short run that cannot be resumed."),
        (["--lr-range", "phases=lp_ft"], "--lr-range does not support phases."),
        (["--lr-range", "--vary", "optimizer.lr=1e-3"], "--lr-range sets the rates itself."),
    ],
)
def test_what_is_wrong_is_one_sentence(study, folder, capsys, words, sentence):
    before = content(folder / "runs")
    assert main(["study", str(folder / "c.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxft: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert content(folder / "runs") == before


def test_a_folder_of_something_else_is_left_alone(folder, capsys):
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "notes.txt").write_text("mine")
    words = ["study", str(folder / "c.yaml"), *VARY, "--name", "mine", "--overwrite"]
    assert main(words) == 2
    assert "is not empty and holds no study" in capsys.readouterr().err


@pytest.mark.parametrize("half", ["study.lock.owner", "study.json"])
def test_a_kill_before_the_study_was_made_is_in_no_starts_way(tmp_path, half):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.lock").write_text("")
    with files.written_aside(tmp_path / half) as aside:
        aside.write_text("{")
    (tmp_path / half).rename(tmp_path / "mine" / aside.name)
    assert not check_study("mine", tmp_path, resume=True, overwrite=False)


def test_values_are_read_as_yaml():
    assert parse_vary(["a.b=1e-5,2", "phases=lp_ft,[]", "seed={init: 1},{init: 2}"]) == {
        "a.b": [1e-5, 2],
        "phases": ["lp_ft", []],
        "seed": [{"init": 1}, {"init": 2}],
    }
    with pytest.raises(UserError, match="--vary a appears twice"):
        parse_vary(["a=1", "a=2"])


# ------------------------------------------------------------------------------- the range of rates
def test_a_range_begins_where_the_loss_falls_and_ends_before_it_rises():
    rates = rising_rates()
    place = np.log10(rates)
    losses = np.where(place < -5, 1.0, 1.0 - 0.3 * (place + 5))
    losses = np.where(place > -3, 0.4 + 3 * (place + 3), losses)
    losses[-5:] = np.nan
    found = range_of(rates, losses)
    assert 1e-5 < found["low"] < 1e-4
    assert 3e-4 < found["high"] < 1e-3
    assert len(found["smoothed"]) < len(losses), "the curve ends where it blew up"
    assert found["losses"][-1] is None
    flat = range_of(rates, np.ones(len(rates)))
    assert (flat["low"], flat["high"]) == (None, None)


def test_lr_range_writes_its_curve(folder, monkeypatch, capsys):
    monkeypatch.setattr(study_range, "STEPS", 24)
    assert main(["study", str(folder / "c.yaml"), "--lr-range"]) == 0
    assert "optimizer.lr from" in capsys.readouterr().out
    found = about(folder / "runs" / "tiny-lr-range")
    (curve,) = found["ranges"]
    np.testing.assert_allclose(curve["rates"][:2], [1e-7, 1e-7 * 10 ** (6 / 23)])
    (figure,) = figures(found, [], [])
    assert figure["id"] == "range"
    assert len(figure["series"]) == 2
    assert (
        "Loss as the learning rate rises" in (folder / "runs/tiny-lr-range/index.html").read_text()
    )
    assert jax.device_count() == 8, "on a mesh of eight"
