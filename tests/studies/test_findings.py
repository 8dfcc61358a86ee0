"""What limits a study's ranking is said in a sentence."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxft.studies.findings import findings

VARY = {"layer_decay.rate": [1.0, 0.8], "optimizer.lr": [3e-5, 1e-4, 3e-4]}


def setup(total=25, labels=None):
    labels = np.array([0, 0, 0, 1], np.int32) if labels is None else labels
    return SimpleNamespace(
        length=SimpleNamespace(total_steps=total, steps_per_epoch=25),
        splits={"eval": SimpleNamespace(examples=SimpleNamespace(labels=labels))},
        label_names=("ham", "spam"),
    )


def ranked(value=0.9, lr=1e-4):
    values = {"layer_decay.rate": 1.0, "optimizer.lr": lr}
    return [{"values": values, "best": {"mean": value}}]


def rows(best_is_last=False):
    return [
        {"last": False, "best": not best_is_last},
        {"last": True, "best": best_is_last},
    ]


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        ((ranked(), rows(), VARY, "accuracy", setup()), []),
        (
            (ranked(), rows(), VARY, "accuracy", setup(total=2)),
            ["Each member trains 2 of the 25 steps of an epoch"],
        ),
        (
            (ranked(0.75), rows(), VARY, "accuracy", setup()),
            ["No setting beats the accuracy 0.7500 of always predicting 'ham'"],
        ),
        (
            (ranked(-0.1), rows(), VARY, "r2", setup(labels=np.array([1.0, 2.0]))),
            ["No setting beats always predicting the mean"],
        ),
        (
            (ranked(lr=3e-4), rows(), VARY, "accuracy", setup()),
            ["The best optimizer.lr, 3e-4, is the highest tried: try higher ones too."],
        ),
        (
            (ranked(lr=3e-5), rows(), VARY, "f1", setup()),
            ["The best optimizer.lr, 3e-5, is the lowest tried: try lower ones too."],
        ),
        (
            (ranked(), rows(best_is_last=True), VARY, "accuracy", setup()),
            ["Every member is best at its last step: train longer."],
        ),
    ],
)
def test_each_limit_is_a_sentence(arguments, sentences):
    found = findings(*arguments)
    assert len(found) == len(sentences)
    assert all(part in whole for part, whole in zip(sentences, found, strict=True))
