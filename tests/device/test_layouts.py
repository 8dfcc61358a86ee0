"""Layouts change no score and runs go on to the same bits, for tasks whose own tests lack it."""

import csv
import json

import numpy as np
import pytest

import jaxft
from tests.models.test_decoders import make_checkpoint
from tests.support.laid_out import goes_on_to_the_same_bits, scores, with_sections
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval
from tests.support.tiny_images import tiny_image_config, tiny_pictures, tiny_vit
from tests.tasks.test_causal_lm import CHAT, ROWS, TEMPLATE

pytestmark = pytest.mark.usefixtures("cache")


def talks(folder):
    make_checkpoint(folder / "llama", "llama")
    (folder / "llama" / "chat_template.jinja").write_text(TEMPLATE)
    for name, rows in (("train", ROWS * 2), ("eval", ROWS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    data = train_and_eval(folder, "jsonl")
    return tiny_config(folder, model={"checkpoint": str(folder / "llama")}, task=CHAT, data=data)


def pairs(folder):
    tiny_vit(folder / "vision")
    tiny_checkpoint(folder / "text")
    pictures = sorted(tiny_pictures(folder / "pictures", each=8).rglob("*.png"))
    with (folder / "train.csv").open("w", newline="") as file:
        draw = np.random.default_rng(0)
        texts = [" ".join(draw.choice([*GOOD, *BAD, *PLAIN], 6)) for _ in pictures]  # no two alike
        rows = [
            [str(one.relative_to(folder)), text] for one, text in zip(pictures, texts, strict=True)
        ]
        csv.writer(file).writerows([["image", "text"], *rows])
    towers = {"vision": str(folder / "vision"), "text": str(folder / "text")}
    rows = f"csv:{folder}/train.csv"
    data = {"train": rows, "eval": f"{rows}[:21]", "test": None}
    return tiny_config(
        folder, model={"checkpoint": towers}, task={"kind": "contrastive"}, data=data
    )


KINDS = {
    "text_classification": (tiny_config, ("packed", "padded", "eight", "cut")),
    "causal_lm": (talks, ("packed", "padded", "eight", "cut")),
    "image_classification": (tiny_image_config, ("eight", "cut")),
    "contrastive": (pairs, ("eight", "cut")),
}
QUICK = (("image_classification", "eight"), ("causal_lm", "packed"))
CASES = [
    pytest.param(kind, layout, marks=() if (kind, layout) in QUICK else pytest.mark.full)
    for kind, (_, layouts) in KINDS.items()
    for layout in layouts
]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Of each kind that was asked for its config, and its scores alone on one device."""
    found = {}

    def of(kind):
        if kind not in found:
            config = KINDS[kind][0](tmp_path_factory.mktemp(kind))
            found[kind] = config, scores(config, "alone")
        return found[kind]

    return of


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_layouts_change_no_score(kind, layout, known):
    config, alone = known(kind)
    assert {"loss"} < alone.keys()
    assert scores(config, layout) == pytest.approx(alone, rel=1e-6, abs=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["causal_lm", "contrastive"])
def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(kind, known, tmp_path):
    config, _ = known(kind)
    train = {"length": "4 steps", "evaluate_every": "4 steps"}
    often = {"train": train, "checkpoint": {"every": "1 steps", "keep": 9}}
    config = with_sections(config, often)
    run = jaxft.train(config, quiet=True)
    goes_on_to_the_same_bits(run, config, 1, tmp_path)
