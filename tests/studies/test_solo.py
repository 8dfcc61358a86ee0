"""Members of a study that train as runs of their own: sampled layers and their kin."""

import json

import pytest

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import override_config, to_yaml
from jaxft.report.events import read_events
from jaxft.runs.folder import RunFolder
from jaxft.studies import solo
from jaxft.training import preflight
from tests.support.launch import cache, content  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")
RATES = {"optimizer.lr": [1e-3, 1e38]}
LISA = {"method": "lisa", "blocks": 1, "every": 2}
METHODS = {"sampling": [{}, LISA], **RATES}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """8 steps, scored twice, two blocks of which one is sampled."""
    return tiny_config(
        tmp_path_factory.mktemp("solo"),
        groups=[],
        data={"batch_size": 16},
        train={"length": 8, "evaluate_every": 4, "log_every": 2},
        report={"layers_every": 4},
    )


@pytest.fixture(scope="module")
def study(config):
    """Two members of one program, and two of sampled layers; the high rate diverges."""
    return jaxft.study(config, METHODS, quiet=True)


@pytest.mark.slow
def test_a_sampled_member_is_ranked_beside_those_of_a_program(study):
    about = study.about
    assert [part["members"] for part in about["parts"]] == [[0, 1], [2], [3]]
    assert {json.dumps(entry["values"]) for entry in study.ranking[:2]} == {
        json.dumps({"sampling": sampling, "optimizer.lr": 1e-3}) for sampling in ({}, LISA)
    }
    assert [entry["diverged"] for entry in study.ranking] == [0, 0, 1, 1]
    (entry,) = [one for one in study.ranking if one["members"] == [2]]
    assert entry["best"]["mean"] is not None
    assert 0 <= entry["test"]["mean"] <= 1
    parts = study.folder / "parts"
    assert sorted(one.name for one in parts.iterdir()) == ["0.json", "1.json", "2.json"]
    drift = json.loads((parts / "1.json").read_text())["drift"]
    assert sorted(drift) == ["0", "1", "2", "3"]
    page = (study.folder / "index.html").read_text()
    assert "lisa" in page


def test_a_sampled_member_has_the_losses_of_its_run(study, config):
    run = jaxft.train(
        override_config(config, [f"sampling={json.dumps(LISA)}", "optimizer.lr=1e-3"]), quiet=True
    )
    assert losses(read_events(study.folder), member=2) == losses(read_events(run.folder))
    ours = [one for one in study.ranking if one["members"] == [2]]
    assert ours[0]["test"]["mean"] == run.metrics["accuracy"]


def losses(events, **of):
    """The training losses and eval scores of a run, or of a member."""
    own = [e for e in events if e["kind"] in ("train", "eval") and of.items() <= e.items()]
    return [(e["kind"], e["step"], e["loss"]) for e in own]


@pytest.mark.slow
def test_a_killed_member_goes_on_from_its_own_checkpoint(study, config, monkeypatch):
    vary, started = {"sampling": [LISA]}, []
    config = override_config(config, ["optimizer.lr=1e-3"])

    def killed(of, **flags):
        run = solo_train(override_config(of, ["train.length=4"]), **flags)
        started.append(run.folder)
        raise KeyboardInterrupt

    solo_train = solo.train
    monkeypatch.setattr(solo, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        jaxft.study(config, vary, name="killed", quiet=True)
    assert (started[0] / "checkpoints" / "4").is_dir()

    def resumed(of, **flags):
        started.append(max(int(one.name) for one in (started[0] / "checkpoints").glob("[0-9]*")))
        return solo_train(of, **flags)

    monkeypatch.setattr(solo, "train", resumed)
    again = jaxft.study(config, vary, name="killed", resume=True, quiet=True)
    assert started[1] == 4
    assert losses(read_events(again.folder), member=0)[-1][1] == 8
    assert not started[0].exists(), "a study keeps no checkpoints"


def test_a_member_does_not_log_to_trackers(config, tmp_path, monkeypatch):
    trackers = []

    def stopped(of, **flags):
        trackers.append(of.run.trackers)
        raise KeyboardInterrupt

    monkeypatch.setattr(solo, "train", stopped)
    monkeypatch.setattr(preflight, "check_trackers", lambda names: None)  # it is an extra
    config = override_config(config, ["run.trackers=[trackio]", f"run.dir={tmp_path}"])
    with pytest.raises(KeyboardInterrupt):
        jaxft.study(config, {"sampling": [LISA]}, quiet=True)
    assert trackers == [[]]


def test_what_else_is_wrong_with_a_member_ends_the_study(config, monkeypatch):
    def fails(of, **flags):
        run = RunFolder(solo_train(override_config(of, ["train.length=4"]), **flags).folder)
        run.update(state="failed")  # as a run notes of whatever ends it
        raise jaxft.UserError("the disk is full.")

    solo_train = solo.train
    monkeypatch.setattr(solo, "train", fails)
    config = override_config(config, ["optimizer.lr=1e-3"])
    with pytest.raises(jaxft.UserError, match="the disk is full"):
        jaxft.study(config, {"sampling": [LISA]}, name="full", quiet=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--halve", "2"], "--halve 2: a member with sampling trains as a run of its own"),
        (["--mesh-members", "2"], "--mesh-members 2: a member with sampling trains as a run of"),
        (["--lr-range"], "--lr-range: a run with sampling decides something while it trains."),
    ],
)
def test_what_a_run_of_its_own_cannot_do_is_one_sentence(config, tmp_path, capsys, words, sentence):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config.dump()))
    before = content(tmp_path)
    vary = [] if "--lr-range" in words else ["--vary", "optimizer.lr=1e-3,1e-2"]
    assert (
        main(
            [
                "study",
                str(file),
                *vary,
                *words,
                "sampling={method: lisa, blocks: 1}",
                "--name",
                "no",
            ]
        )
        == 2
    )
    assert sentence in capsys.readouterr().err
    assert content(tmp_path) == before
