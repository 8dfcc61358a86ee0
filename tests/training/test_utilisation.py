"""What a run tells of its pace: model FLOPs, their share of the chips' peak, and a trace."""

import numpy as np
import pytest

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.device.chips import Chip
from jaxft.engine.cost import batch_shapes, gradient_flops, trunk_shapes
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.report.page.figures import figures
from jaxft.report.page.run import read_run
from jaxft.report.page.views import view
from jaxft.training import batches as train_batches
from jaxft.training import utilisation
from jaxft.training.meter import Meter
from jaxft.training.profile import parse_steps
from tests.support.launch import events, write_config
from tests.support.tiny import tiny_config

TOY = Chip("toy", ("cpu",), 3e9, 1, 1, 1, "", devices=2)
PHASES = [{"until": 3, "unfreeze": ["head/.*"]}, {"until": "100%", "unfreeze": "all"}]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run of two phases, the first with its trunk kept; and in what order its input came."""
    folder, order = tmp_path_factory.mktemp("told"), []
    config = tiny_config(
        folder,
        data={"pack": False},
        train={
            "length": "6 steps",
            "evaluate_every": "6 steps",
            "log_every": 1,
            "trunk_cache": "on",
        },
        checkpoint={"every": 6},
    )
    config = parse_config(config.dump() | {"phases": PHASES})
    place, add = train_batches.place_batch, Meter.add

    def placing(*arguments):
        order.append("placed")
        return place(*arguments)

    def adding(meter, phase, step, metrics, ended):
        order.append(f"read {step}")
        return add(meter, phase, step, metrics, ended)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_batches, "place_batch", placing)
        patch.setattr(Meter, "add", adding)
        patch.setattr(utilisation, "find_chip", lambda kind: TOY if kind == "cpu" else None)
        file = write_config(config, folder / "tiny.yaml")
        assert main(["train", file, "--profile", "2:3", "--quiet"]) == 0
    return folder / "runs" / "tiny", build(config), order


@pytest.mark.slow
def test_model_flops_are_those_of_the_phase_and_mfu_their_share_of_all_chips(told):
    run, built, _ = told
    batch = batch_shapes(built)
    probing, tuning = phase_setups(built)
    names = probing.table.trainable
    trunk = trunk_shapes(built.model, probing.compute, batch)
    cached = gradient_flops(built, names, batch | trunk)
    whole = gradient_flops(built, tuning.table.trainable, batch)
    assert cached < gradient_flops(built, names, batch) < whole
    steps = events(run, "train")
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    for event in steps:
        if event["step"] in (1, 4):  # compiled: the first step of each phase is not timed
            assert not [name for name in event if name.endswith("per_second") or name == "mfu"]
            continue
        examples = np.sum(built.plan.batch(event["step"] - 1) >= 0)
        an_example = event["flops_per_second"] / event["examples_per_second"]
        wanted = cached if event["step"] <= 3 else whole
        assert an_example * examples == pytest.approx(wanted, rel=1e-9), event["step"]
        assert event["mfu"] == pytest.approx(event["flops_per_second"] / (8 * 1.5e9), rel=1e-9)


def test_the_page_tells_it_too(told):
    run = read_run(told[0], "tiny")
    tiles = dict(view(run, 0)["tiles"])
    assert tiles["model FLOPs per second"].endswith("FLOP")
    assert tiles["model FLOPs utilization (MFU)"].endswith("%")
    assert "tokens per second" in tiles
    assert "Model FLOPs utilization" in [figure["title"] for figure in figures([run])]


@pytest.mark.slow
def test_a_batch_is_on_its_way_before_the_step_before_it_is_waited_for(told):
    order = told[2]
    steps = [n for n, what in enumerate(order) if what == "placed"]
    # The phase ends at step 3: what is under way is read before the next begins.
    for step in (1, 2, 4, 5):
        assert steps[step] < order.index(f"read {step}"), order


def test_the_traced_steps_are_in_the_run_folder(told):
    (trace,) = (told[0] / "profile").rglob("*.xplane.pb")
    assert b"PjitFunction(step)" in trace.read_bytes()


@pytest.mark.parametrize("text", ["", "10", "0:3", "5:4", "a:b", "1:2:3"])
def test_steps_that_make_no_sense_are_one_sentence(text):
    with pytest.raises(UserError, match=f"--profile: '{text}' is not a first and a last step"):
        parse_steps(text)


def test_a_trace_behind_the_last_step_is_one_sentence(tmp_path):
    config = tiny_config(tmp_path, train={"length": 2})
    with pytest.raises(UserError, match="--profile: the run ends at step 2, before step 10"):
        jaxft.train(config, profile=(10, 20), quiet=True)
    assert not (tmp_path / "runs" / config.run.name).exists(), "nothing was written"


def test_a_chip_that_no_table_has_tells_no_share(tmp_path):
    built = build(tiny_config(tmp_path))
    phases = phase_setups(built)
    work = utilisation.work_of(built, phases, phases[0], False, {"step": 7, "cached": 5})
    assert (work.flops, work.peak) == (7, None)
