"""Metadata of a run before it trains: the warning of an update rule."""

import pytest

from jaxft.cli.parts.terminal import console
from jaxft.engine.remat import phase_setups, widest
from jaxft.engine.setup import build
from jaxft.planning.plan import plan
from jaxft.report.page import views
from jaxft.report.page.run import Run
from jaxft.training.metadata import optimizer_warnings
from tests.support.tiny import tiny_config


def warnings_of(folder, **sections):
    setup = build(tiny_config(folder, **sections))
    return optimizer_warnings(setup, widest(phase_setups(setup)))


@pytest.mark.parametrize(
    ("sections", "count"),
    [
        ({"optimizer": {"name": "muon"}}, 1),
        ({"groups": [{"name": "top", "depth": [2, 2], "optimizer": "muon"}]}, 1),
        ({"optimizer": {"name": "adamw"}}, 0),
        ({"optimizer": {"name": "muon"}, "adapter": {"kind": "lora"}}, 0),
        ({"optimizer": {"name": "muon"}, "model": {"reinit": 2}}, 0),
    ],
)
def test_muon_on_pretrained_matrices_is_a_warning(tmp_path, sections, count):
    assert len(warnings_of(tmp_path, **sections)) == count


def test_a_plan_and_a_page_show_it(tmp_path, capsys):
    made = plan(tiny_config(tmp_path, optimizer={"name": "muon"}))
    console().print(made.render())
    assert "AdamW pretrained them" in " ".join(capsys.readouterr().out.split())
    (line,) = views._warnings(Run("run", tmp_path, {}, table=made.table))
    assert line.startswith("optimizer muon trains pretrained matrices")
    assert line.endswith(".")
