"""What must hold of every task: layouts change no score, and a run goes on to the same bits."""

import shutil
from pathlib import Path

import jax
import numpy as np

import jaxft
from jaxft.config.load import Config, parse_config
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build
from jaxft.engine.trained import open_trained

# Sections that change how a batch lies, and on how many devices.
LAYOUTS = {
    "alone": ({"data": {"pack": False}}, 1),
    "packed": ({"data": {"pack": True}}, 1),
    "padded": ({"data": {"pack": False, "row_length": 40}}, 1),
    "eight": ({"mesh": {"data": 8}}, 8),
    "cut": ({"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}, 8),
}


def with_sections(config: Config, sections: dict) -> Config:
    """The config with keys of some sections replaced."""
    written = config.dump()
    for name, values in sections.items():
        written[name] = {**written[name], **values}
    return parse_config(written)


def scores(config: Config, layout: str) -> dict[str, float]:
    """The scores of the eval rows before training, in a layout."""
    sections, devices = LAYOUTS[layout]
    changed = with_sections(config, sections)
    built = build(changed, devices=jax.devices()[:devices])
    params = load_params(built).params
    return evaluate(built, build_eval_step(built), params, built.splits["eval"]).scores


def goes_on_to_the_same_bits(run: jaxft.Run, config: Config, step: int, to: Path) -> None:
    """A run that was stopped at `step`, in the middle of an epoch, ends as the one that was not.

    Args:
        run: it has ended, and kept the checkpoint of `step`.
        config: its config.
        step: where the copy goes on.
        to: where the copy goes.
    """
    shutil.copytree(run.folder, to / config.run.name)
    (to / config.run.name / "result.json").unlink()
    for saved in (to / config.run.name / "checkpoints").iterdir():
        if saved.name.isdigit() and int(saved.name) > step:
            shutil.rmtree(saved)
    again = jaxft.train(with_sections(config, {"run": {"dir": str(to)}}), resume=True, quiet=True)
    first, second = (open_trained(one.folder, "last").model.params for one in (run, again))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
