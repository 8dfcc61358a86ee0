"""Successive halving, and a study that goes on inside a program."""

import jax
import pyarrow.parquet
import pytest
from packaging.version import Version

from jaxft.cli.main import main
from jaxft.config.load import override_config, to_yaml
from jaxft.errors import UserError
from jaxft.report.events import read_events
from jaxft.studies import part as part_module
from jaxft.studies.halving import Rungs, rung_ends, survivors
from jaxft.studies.members import make_members
from jaxft.studies.study import study
from tests.support.tiny import tiny_config

RATES = [1e-2, 3e-3, 1e-4, 1e-5]
STEPS = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """8 steps of a frozen trunk, scored at every second."""
    return tiny_config(
        tmp_path_factory.mktemp("halving"),
        groups=[{"name": "trunk", "depth": [0, 1], "freeze": True}],
        data={"batch_size": 16},
        train={"length": STEPS, "evaluate_every": 2, "log_every": 1},
    )


@pytest.fixture(scope="module")
def whole(config):
    """The study that trains all to the end."""
    return study(config, {"optimizer.lr": RATES}, name="whole", quiet=True)


@pytest.fixture(scope="module")
def halved(config):
    """The best 1 in 2 go on after steps 2 and 4."""
    return study(config, {"optimizer.lr": RATES}, name="halved", halve=2, quiet=True)


def table(study):
    return pyarrow.parquet.read_table(study.folder / "study.parquet").to_pylist()


@pytest.mark.parametrize(
    ("settings", "factor", "shares"),
    [
        (8, None, [1]),
        (8, 2, [1 / 8, 1 / 4, 1 / 2, 1]),
        (9, 3, [1 / 9, 1 / 3, 1]),
        (8, 3, [1 / 3, 1]),
    ],
)
def test_rungs_end_a_factor_apart(settings, factor, shares):
    assert rung_ends(settings, factor) == pytest.approx(shares)


def result(scores, diverged=()):
    rows = [
        {"member": member, "bucket": 0, "step": 1, "scores": {"accuracy": score}}
        for member, score in scores.items()
    ]
    return {"rows": rows, "diverged": {str(member): 1 for member in diverged}}


def test_all_seeds_of_the_best_settings_go_on(config):
    members = make_members(config, {"optimizer.lr": [1e-3, 1e-2, 1e-1], "run.seed.init": [0, 1]})
    scores = {0: 0.1, 1: 0.9, 2: 0.6, 3: 0.6, 4: 0.9, 5: 0.9}
    rungs = Rungs([0.5, 1], 2, "accuracy", lower_is_better=False)
    going_on = survivors(members, [result(scores, diverged=[5])], rungs)
    assert [one.index for one in going_on] == [0, 1, 2, 3], "two of three, and none that diverged"
    rungs = Rungs([0.5, 1], 3, "accuracy", lower_is_better=True)
    assert [one.index for one in survivors(members, [result(scores)], rungs)] == [0, 1]


@pytest.mark.slow
def test_each_rung_trains_the_best_half_of_the_one_before(whole, halved):
    parts = halved.about["parts"]
    assert [(one["first"], one["steps"], len(one["members"])) for one in parts] == [
        (0, 2, 4), (2, 2, 2), (4, 4, 1)
    ]  # fmt: skip
    assert [entry["trained"] for entry in halved.ranking] == [1, 0.5, 0.25, 0.25]
    assert halved.ranking[0]["test"]["mean"] is not None
    assert halved.ranking[1]["test"]["mean"] is None, "it was not trained to the end"
    winner = halved.ranking[0]["members"]
    own = [row for row in table(halved) if row["member"] in winner]
    beside_others = [row for row in table(whole) if row["member"] in winner]
    # jax 0.12 compiles a program of one member otherwise than that of four: a last bit may differ.
    most = 0 if Version(jax.__version__) < Version("0.12") else 1e-6
    assert own == [pytest.approx(row, rel=most, abs=0) for row in beside_others]
    page = (halved.folder / "index.html").read_text()
    assert ">trained<" in page
    assert "25%" in page
    notes = [one["text"] for one in read_events(halved.folder) if one["kind"] == "note"]
    assert notes[0] == "After 25% of the steps 2 of 4 members go on."
    assert not [one for one in (halved.folder / "parts").iterdir() if one.is_dir()]


class KilledError(Exception):
    """What ends a study in the middle."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("halve", "killed_at", "again"),
    [(None, 5, [5, 6, 7, 8]), (2, 3, [3, 4, 5, 6, 7, 8]), (2, 7, [7, 8])],
)
def test_a_killed_study_goes_on_inside_a_program(
    config, whole, halved, monkeypatch, halve, killed_at, again
):
    """From the states of the last evaluation, or of the rung before; nothing differs at the end."""
    trained = []
    advance = part_module._Training.advance

    def until_killed(training, batch):
        trained.append(training.step + 1)
        if len(trained) == killed_at:
            raise KilledError
        advance(training, batch)

    monkeypatch.setattr(part_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(part_module._Training, "advance", until_killed)
    name, vary = f"killed-{halve}-{killed_at}", {"optimizer.lr": RATES}
    with pytest.raises(KilledError):
        study(config, vary, name=name, halve=halve, quiet=True)
    trained.clear()
    trained.extend([0] * 100)  # no second kill
    resumed = study(config, vary, name=name, halve=halve, quiet=True, resume=True)
    assert trained[100:] == again
    reference = whole if halve is None else halved
    assert table(resumed) == table(reference)
    assert resumed.ranking == reference.ranking

    def losses(of):
        events = [one for one in read_events(of.folder) if one["kind"] == "train"]
        return sorted((one["member"], one["step"], one["loss"]) for one in events)

    assert losses(resumed) == losses(reference)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--halve", "1"], "--halve is 1. Give 2 or more"),
        (["--halve", "3"], "--halve 3 stops none of 2 settings. Vary more values, at least 3"),
        (["--halve", "2", "train.length=1"], "would stop after 50.0% of 1 steps. Train longer"),
        (["--halve", "2", "--lr-range"], "--lr-range trains no setting to the end. Remove --halve"),
    ],
)
def test_what_cannot_be_halved(config, tmp_path, capsys, words, sentence):
    (tmp_path / "c.yaml").write_text(to_yaml(config.dump()))
    varied = ["--vary", "run.seed.init=0,1,2", "--vary", "optimizer.weight_decay=0.1,0.2"]
    code = main(["study", str(tmp_path / "c.yaml"), *varied, f"run.dir={tmp_path}", *words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert sentence in error
    assert not (tmp_path / "tiny-study").exists()


@pytest.mark.slow
def test_a_rung_in_which_every_member_diverges_is_the_last(config, tmp_path):
    config = override_config(config, [f"run.dir={tmp_path}", "train.max_bad_steps=1"])
    ended = study(config, {"optimizer.lr": [1e36, 2e36, 3e36, 4e36]}, halve=2, quiet=True)
    assert [entry["diverged"] for entry in ended.ranking] == [1, 1, 1, 1]
    assert [part["first"] for part in ended.about["parts"]] == [0]


def test_another_factor_is_another_study(config, halved):
    with pytest.raises(UserError, match="resumed with a different --halve"):
        study(config, {"optimizer.lr": RATES}, name="halved", halve=4, resume=True, quiet=True)


@pytest.mark.full
def test_halving_finds_the_best_rate(tmp_path):
    """In at least 9 of 10 seeds the rate with the lowest loss at the end is among the survivors."""
    config = tiny_config(
        tmp_path,
        groups=[{"name": "trunk", "depth": [0, 1], "freeze": True}],
        data={"batch_size": 16},
        train={"length": 81, "evaluate_every": 9, "log_every": 81},
        schedule={"kind": "constant"},
    )
    vary = {"optimizer.lr": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], "run.seed.init": list(range(10))}
    rows, hits = table(study(config, vary, name="toy", quiet=True)), 0
    rungs = Rungs(rung_ends(5, 3), 3, "loss", lower_is_better=True)
    for seed in vary["run.seed.init"]:
        own = [one for one in make_members(config, vary) if one.values["run.seed.init"] == seed]
        scored = [row for row in rows if own[0].index % 10 == row["member"] % 10]
        first = [{**row, "scores": {"loss": row["loss"]}} for row in scored if row["step"] <= 27]
        going_on = survivors(own, [{"rows": first, "diverged": {}}], rungs)
        best = min(scored, key=lambda row: row["loss"])["member"]
        hits += best in [one.index for one in going_on]
    assert hits >= 9
