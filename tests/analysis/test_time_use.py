"""Use of a run's time: shares, FLOP/s and what to change first."""

import json
from concurrent.futures import Future

import pytest

from jaxft.analysis.time_use import changes, paragraph, time_use
from jaxft.cli.main import main
from jaxft.training.log import idle_seconds
from jaxft.training.meter import Ended

SECONDS = {"steps": 60.0, "input": 20.0, "compile": 4.0, "evaluate": 12.0, "save": 2.0}
FACTS = {"steps": 100, "flops": 6e14, "peak": 2e14}


def use(seconds=SECONDS, dtype="bfloat16", padding=0.0, **facts):
    layout, compute = {"padding": padding}, {"dtype": dtype}
    spent = {**FACTS, "seconds": {"set_up": 2.0, "trunk": 0.0} | seconds, **facts}
    return time_use({"time": spent, "layout": layout, "compute": compute})


def test_shares_and_rates():
    text = paragraph(use())
    assert text.startswith("Where the time went (1:40): steps 60%, waiting for batches 20%, ")
    assert "frozen trunk" not in text
    assert "The steps ran at 10.0 TFLOP/s, 5% of the chips' peak." in text


def test_the_changes_that_save_most_come_first_and_small_ones_are_left_out():
    first, second, third = changes(use())
    assert "raise data.batch_size" in first
    assert "raise data.workers" in second
    assert "train.evaluate_every" in third
    assert changes(use({"steps": 1000.0}, flops=1e17)) == []


def test_padding_and_precision():
    assert any("30% of the positions" in one for one in changes(use(padding=0.3)))
    assert "train.precision" in changes(use(dtype="float32"))[0]
    assert not any("precision" in one for one in changes(use(dtype="float32", peak=None)))


def test_a_run_without_steps_has_no_rate():
    text = paragraph(use({"steps": 0.0}, steps=0, flops=0))
    assert "FLOP/s" not in text


@pytest.mark.parametrize(
    ("walls", "expected"),
    [([], 3.0), ([6.0, 9.0], 1.0), ([6.0, None], 0.0), ([1.0], 2.0)],
)
def test_devices_are_idle_from_the_end_of_the_last_step_on(walls, expected):
    ends = []
    for wall in walls:
        ends.append(Future())
        if wall is not None:
            ends[-1].set_result(Ended(0.0, wall))
    last = 7.0 if not walls else 0.0
    assert idle_seconds(ends, last, since=8.0 if walls else 0.0, now=10.0) == expected


def test_doctor_of_a_run_that_has_not_finished(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"name": "run"}))
    assert main(["doctor", str(tmp_path / "run")]) == 2
    assert "does not say where its time went" in capsys.readouterr().err
    (tmp_path / "run/run.json").write_text(json.dumps({"time": {"seconds": {"steps": "x"}}}))
    assert main(["doctor", str(tmp_path / "run")]) == 2
    assert "time.seconds.steps" in capsys.readouterr().err
    spent = {**FACTS, "seconds": SECONDS}
    (tmp_path / "run/run.json").write_text(json.dumps({"time": spent}))
    assert main(["doctor", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["utilization"] == 0.05
