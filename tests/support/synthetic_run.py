"""A run folder as a real run leaves one, without training: MiniLM on film reviews, in small.

`python tests/support/synthetic_run.py FOLDER` writes two of them to look at.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import yaml

from jaxft.config.load import parse_config
from jaxft.report.events import EventLog, read_events

WIDTH, INNER, WORDS = 384, 1536, 30522
STEPS, EPOCH = 480, 240
OPENINGS = (
    "a warm and wounded",
    "an airless, overlong",
    "the rare sequel that earns its",
    "not quite the disaster promised, but a",
    "as slight as it is charming, a",
    "loud, proud and finally hollow: a",
)
MIDDLES = (
    "portrait of two brothers who never say what they mean",
    "thriller whose twist arrives an hour after the audience does",
    "comedy that trusts its cast more than its jokes",
    "fable about a town and the river that leaves it",
    "documentary with more patience than insight",
    "love story told entirely in missed trains",
)
ENDINGS = (
    "and i would happily sit through it again .",
    "which is a pity, because the first act is superb .",
    "though the score does most of the work .",
    "-- see it for the performances, stay for the silence .",
    "and it is never once surprised by itself .",
    "and somehow that is enough .",
)


def parameters():
    """Name -> (shape, depth) of a six-block BERT with a classification head."""
    shapes = {
        "embeddings/position/embedding": ((512, WIDTH), 0),
        "embeddings/token_type/embedding": ((2, WIDTH), 0),
        "embeddings/word/embedding": ((WORDS, WIDTH), 0),
        "embeddings/norm/bias": ((WIDTH,), 0),
        "embeddings/norm/scale": ((WIDTH,), 0),
    }
    for block in range(6):
        linears = {f"attention/{name}": (WIDTH, WIDTH) for name in ("key", "output", "query")}
        linears |= {"attention/value": (WIDTH, WIDTH)}
        linears |= {"mlp/down": (INNER, WIDTH), "mlp/up": (WIDTH, INNER)}
        for name, shape in linears.items():
            shapes[f"blocks/{block}/{name}/bias"] = ((shape[1],), block + 1)
            shapes[f"blocks/{block}/{name}/kernel"] = (shape, block + 1)
        for norm in ("attention/norm", "mlp/norm"):
            shapes[f"blocks/{block}/{norm}/bias"] = ((WIDTH,), block + 1)
            shapes[f"blocks/{block}/{norm}/scale"] = ((WIDTH,), block + 1)
    shapes["pooler/bias"], shapes["pooler/kernel"] = ((WIDTH,), 7), ((WIDTH, WIDTH), 7)
    shapes["head/bias"], shapes["head/kernel"] = ((2,), 7), ((WIDTH, 2), 7)
    return shapes


def make_config(name, lr):
    return parse_config(
        {
            "run": {"name": name},
            "model": {"checkpoint": "assets/minilm"},
            "task": {"kind": "text_classification"},
            "data": {
                "train": "csv:assets/reviews/train.csv[:90%]",
                "eval": "csv:assets/reviews/train.csv[90%:]",
                "test": "csv:assets/reviews/test.csv",
                "max_length": 128,
            },
            "optimizer": {"lr": lr},
            "schedule": {"kind": "linear", "warmup": "10%"},
            "layer_decay": {"rate": 0.9},
            "groups": [
                {"name": "head", "match": "(head|pooler)/.*", "lr_mult": 5},
                {"name": "trunk", "depth": [0, 2], "freeze": True},
            ],
            "train": {"length": "2 epochs", "evaluate_every": "0.5 epochs"},
        }
    )


def layer_table(lr):
    rows = []
    for name, (shape, depth) in parameters().items():
        group = "head" if depth == 7 else "trunk" if depth < 3 else "rest"
        trains, decays = group != "trunk", len(shape) > 1
        multiplier = 0.9 ** (7 - depth) * (5 if group == "head" else 1)
        rows.append(
            {
                "name": name,
                "shape": list(shape),
                "dtype": "float32",
                "group": group,
                "depth": depth,
                "trainable": trains,
                "multiplier": multiplier if trains else 0.0,
                "peak_rate": lr * multiplier if trains else 0.0,
                "weight_decay": 0.01 if trains and decays else 0.0,
                "parameters": math.prod(shape),
            }
        )
    groups = []
    for name in ("head", "trunk", "rest"):
        owned = [row for row in rows if row["group"] == name]
        trains, number = name != "trunk", sum(row["parameters"] for row in owned)
        groups.append(
            {
                "name": name,
                "leaves": len(owned),
                "parameters": number,
                "trainable": trains,
                "peak_rate": lr * (5 if name == "head" else 1) if trains else 0.0,
                "schedule": "linear" if trains else None,
                "optimizer": "adamw" if trains else None,
                "weight_decay": 0.01 if trains else None,
                "optimizer_bytes": 8 * number if trains else 0,
            }
        )
    return {"groups": groups, "rows": rows, "flops": {"step": 1.93e11, "full": 3.11e11}}


def predictions(random, count, accuracy):
    for index in range(count):
        label = int(random.random() < 0.5)
        right = random.random() < accuracy
        sure = 0.5 + 0.5 * random.beta(4, 1.2 if right else 2.5)
        predicted = label if right else 1 - label
        chance = sure if predicted == label else 1 - sure
        names = ("negative", "positive")
        text = " ".join(random.choice(part) for part in (OPENINGS, MIDDLES, ENDINGS))
        yield {
            "id": index,
            "text": text,
            "label": names[label],
            "predicted": names[predicted],
            "probabilities": {name: abs(chance - (name != names[label])) for name in names},
            "loss": -math.log(max(chance, 1e-9)),
        }


def schedule(step):
    return min(step / (0.1 * STEPS), (STEPS - step) / (0.9 * STEPS))


def layers(random, lr, step):
    """What the layers that train do in a step: more the higher they are, and less as time goes."""

    def of(most):
        fall = math.exp(-step / 300)
        return {
            str(depth): most * 2.0 ** (depth - 7) * fall * random.lognormal(0, 0.2)
            for depth in range(3, 8)
        }

    return {
        "clip": 0.5,
        "grad_norm": of(2.0),
        "relative_gradient": of(0.3),
        "update_ratio": of(1e-3),
        "signal": of(0.4),
        "rate": {name: 5 * lr * schedule(step) for name in of(1)},
        "not_finite": dict.fromkeys(of(1), 0),
    }


def write_events(folder, random, lr, reach):
    with EventLog(folder, tensorboard=False) as log:
        for step in range(10, STEPS + 1, 10):
            progress = 1 - math.exp(-step / 110)
            log.train(
                step,
                {
                    "epoch": step / EPOCH,
                    "loss": 0.69 - 0.47 * reach * progress + random.normal(0, 0.03),
                    "accuracy": 0.52 + 0.4 * reach * progress + random.normal(0, 0.025),
                    "grad_norm": 0.8 + 2.5 * progress + abs(random.normal(0, 0.5)),
                    "clip": 0.5,
                    "examples_per_second": 66 + random.normal(0, 1.5) - 9 * (step % 120 == 0),
                    "tokens_per_second": 1830 + random.normal(0, 40),
                    "rates": {"head": 5 * lr * schedule(step), "rest": lr * schedule(step)},
                },
            )
            if step % 40 == 0:
                log.of_kind("layers", step, layers(random, lr, step))
            if step % 120 == 0:
                far = {str(depth): 0.02 * 1.6 ** (depth - 7) * progress for depth in range(3, 8)}
                log.of_kind("drift", step, {"drift": far})
                loss = 0.66 - 0.28 * reach * progress + 0.04 * (step > EPOCH)
                score = 0.56 + 0.27 * reach * progress - 0.02 * (step == STEPS)
                log.eval(step, "eval", {"loss": loss, "accuracy": score, "f1": score - 0.006})
        log.note(360, "the step was not finite (gradient norm inf); the state was kept")


def spread_times(folder):
    """Give the events the times of a real run: half a second a step."""
    events = read_events(folder)
    lines = [json.dumps({**event, "time": 1.77e9 + 0.52 * event["step"]}) for event in events]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_run(folder, name="sentiment", lr=1e-4, seed=0, reach=1.0):
    """Write the run `name` into `folder`; returns its path."""
    random = np.random.default_rng(seed)
    run = Path(folder) / name
    run.mkdir(parents=True)
    config = make_config(name, lr)
    (run / "config.yaml").write_text(yaml.safe_dump(config.dump(), sort_keys=False))
    write_events(run, random, lr, reach)
    spread_times(run)
    steps = list(range(0, STEPS + 1, 4))
    rates = [[5 * lr * schedule(step), lr * schedule(step)] for step in steps]
    table = {"groups": ["head", "rest"], "steps": steps, "rates": rates, "depths": [3, 4, 5, 6, 7]}
    table["by_depth"] = [
        [*(0.9 ** (7 - d) * rest for d in range(3, 7)), head] for head, rest in rates
    ]
    write_json(run / "rates.json", table)
    write_json(run / "table.json", layer_table(lr))
    for split, count in (("eval", 768), ("test", 853)):
        lines = map(json.dumps, predictions(random, count, 0.83 * (0.9 + 0.1 * reach)))
        (run / f"predictions-{split}.jsonl").write_text("\n".join(lines) + "\n")
    for when, apart in (("before", 0.4), ("after", 2.2)):
        write_json(run / f"embeddings-{when}.json", embeddings(random, apart))
    metrics = {"accuracy": 0.8312 * (0.9 + 0.1 * reach), "f1": 0.829, "loss": 0.4127}
    result = {"split": "test", "step": 360, "checkpoint": "best", "examples": 853}
    baselines = {
        "logistic regression on frozen features": 0.7022,
        "the same recipe in PyTorch": 0.8265,
    }
    write_json(run / "result.json", {**result, "metrics": metrics, "baselines": baselines})
    write_json(run / "run.json", facts(name))
    return run


def embeddings(random, apart):
    """200 rows of two classes whose middles lie `apart`."""
    labels = random.random(200) < 0.5
    points = random.normal(0, 1, (200, 2)) + np.where(labels, apart, -apart)[:, None]
    return {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "labels": [("negative", "positive")[int(one)] for one in labels],
        "explained": [0.31, 0.12],
        "alike": 0.61,
        "guessing": 0.5,
    }


def facts(name):
    return {
        "name": name,
        "state": "finished",
        "started": "2026-03-02T09:12:44Z",
        "replaces": None,
        "command": ["jaxft", "train", "configs/sentiment.yaml", f"run.name={name}"],
        "versions": {"jaxft": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "python": "3.11.9"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "host": "laptop",
        "system": "Linux-6.8-x86_64",
        "checkpoint": {"asked": "assets/minilm", "commit": None, "sha256": "b9a0018dff090c14" * 4},
        "data": [
            {"split": "train", "examples": 6909, "fingerprint": "5f1c" * 16},
            {"split": "test", "examples": 853, "fingerprint": "0d4e" * 16},
        ],
        "best_metric": "accuracy",
    }


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    write_run(sys.argv[1])
    write_run(sys.argv[1], "higher-rate", lr=3e-4, seed=1, reach=0.93)
    write_run(sys.argv[1], "lower-rate", lr=2e-5, seed=2, reach=0.8)
