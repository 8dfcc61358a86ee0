"""A study folder as one that trains leaves it: four members, of which a program is finished."""

import json

from jaxft.report.events import EventLog
from tests.support.synthetic_run import facts, make_config

RATES, DECAYS = (1e-5, 1e-4), (1.0, 0.8)
STEPS = 100


def write_study(folder, name="decay-study", state="running"):
    """Write the study `name` into `folder`; returns its path."""
    study = folder / name
    (study / "parts").mkdir(parents=True)
    values = [
        {"optimizer.lr": rate, "layer_decay.rate": decay} for decay in DECAYS for rate in RATES
    ]
    parts = [
        {"index": index, "members": [2 * index, 2 * index + 1], "steps": STEPS} for index in (0, 1)
    ]
    about = {
        **{key: value for key, value in facts(name).items() if key != "best_metric"},
        "state": state,
        "command": ["jaxft", "study", "configs/sentiment.yaml"],
        "metric": "accuracy",
        "lower_is_better": False,
        "vary": {"optimizer.lr": list(RATES), "layer_decay.rate": list(DECAYS)},
        "config": make_config("sentiment", 1e-4).dump(),
        "members": [{"index": index, "values": one} for index, one in enumerate(values)],
        "parts": parts,
    }
    (study / "study.json").write_text(json.dumps(about))
    part = {
        "members": [0, 1],
        "seconds": 40.0,
        "drift": {str(depth): [0.01 * depth, 0.02 * depth] for depth in range(8)},
        "diverged": {},
    }
    (study / "parts" / "0.json").write_text(json.dumps(part))
    with EventLog(study, tensorboard=False) as log:
        for member in range(4):
            for step in range(10, (STEPS if member < 2 else STEPS // 2) + 1, 10):
                log.train(step, {"member": member, "loss": 0.7 - 0.002 * step * (1 + member)})
                if step % 50 == 0:
                    score = 0.5 + 0.001 * step + 0.02 * member
                    log.eval(step, "eval", {"member": member, "loss": 0.5, "accuracy": score})
    return study
