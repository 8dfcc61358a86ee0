"""`jaxft layers` on a tiny BERT: values by independent formulas, tables, page and groups."""

import io
import json
import re

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console

import jaxft
from jaxft.analysis.layer_criteria import residual_norms
from jaxft.analysis.layer_criteria.measure import measured_setup
from jaxft.analysis.layer_criteria.program import gradient_sums, training_batches
from jaxft.analysis.layer_criteria.residual_norms import passes
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.engine.initial_state import load_params
from jaxft.engine.recipe import make_table
from jaxft.engine.setup import objective_of
from jaxft.layerwise.criteria.choose import CRITERIA
from jaxft.models.tower.observe import observe
from jaxft.models.tower.run import run_streams
from jaxft.models.tower.tower import PLAIN
from jaxft.report.terminal.criteria import criteria_tables
from tests.support.families import make_pair
from tests.support.tiny import tiny_config

BATCHES = 3
QUERY, DOWN = "blocks/1/attention/query/kernel", "blocks/0/mlp/down/kernel"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Its groups freeze the trunk, which the criteria do not look at."""
    frozen = [{"name": "trunk", "depth": [0, 1], "freeze": True}]
    return tiny_config(tmp_path_factory.mktemp("layers"), groups=frozen)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """What one command wrote: its config, its JSON, its page and its groups."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.dump()))
    with pytest.MonkeyPatch.context() as patch, (folder / "out.json").open("w") as out:
        patch.setattr("sys.stdout", out)
        arguments = ["--batches", str(BATCHES), "--json", "--out", str(folder / "page.html")]
        chosen = ["--write", str(folder / "groups.yaml"), "--by", "fisher", "--train", "50%"]
        assert main(["layers", str(folder / "config.yaml"), *arguments, *chosen]) == 0
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def rows(content):
    return {row["name"]: row for row in content["matrices"]}


@pytest.fixture(scope="module")
def measured(config):
    """The setup, its parameters and the same batches, for formulas of this file's own."""
    setup = measured_setup(config)
    return setup, load_params(setup).params, list(training_batches(setup, BATCHES))


@pytest.mark.slow
def test_every_matrix_has_every_criterion(content, rows):
    assert len(rows) == 12
    assert set(content["criteria"]) == set(CRITERIA)
    assert all(row[name] is not None for row in rows.values() for name in CRITERIA)
    assert [rows[name]["kind"] for name in (QUERY, DOWN)] == ["attention/query", "mlp/down"]


def test_spectra_by_numpy(rows, measured):
    kernel = np.asarray(measured[1][DOWN], np.float64)
    values = np.sort(np.linalg.eigvalsh(kernel.T @ kernel))[::-1]
    half = len(values) // 2
    hill = 1 + half / np.log(values[:half] / values[half]).sum()
    assert rows[DOWN]["hill"] == pytest.approx(hill, rel=1e-4)
    low, high = rows[DOWN]["alpha_interval"]
    tail = (values >= rows[DOWN]["alpha_xmin"] * (1 - 1e-6)).sum()
    alpha = 1 + tail / np.log(values[:tail] / rows[DOWN]["alpha_xmin"]).sum()
    assert rows[DOWN]["alpha"] == pytest.approx(alpha, rel=1e-4)
    assert (high - low) / 2 == pytest.approx(1.96 * (alpha - 1) / np.sqrt(tail), rel=1e-4)


def test_gradients_by_numpy(rows, measured):
    setup, params, batches = measured
    objective = objective_of(setup, setup.compute)

    @jax.jit
    def gradient(kernel, batch):
        def loss(kernel):
            total, weight = objective({**params, DOWN: kernel}, batch, None)["loss"]
            return total / weight

        return jax.grad(loss)(kernel)

    each = np.stack([np.asarray(gradient(params[DOWN], batch), np.float64) for batch in batches])
    mean, weight = each.mean(0), np.linalg.norm(np.asarray(params[DOWN], np.float64))
    row = rows[DOWN]
    assert row["relative_gradient"] == pytest.approx(np.linalg.norm(mean) / weight, rel=1e-4)
    assert row["fisher"] == pytest.approx((each**2).sum((1, 2)).mean(), rel=1e-4)
    signal = (mean**2).sum() / each.var(0, ddof=1).sum()
    assert row["gradient_signal"] == pytest.approx(signal, rel=1e-3)


def test_residual_norm_by_numpy(rows, measured):
    """The query's input is the stream, which is centered on nothing: read from the run itself."""
    setup, params, batches = measured
    objective = objective_of(setup, setup.compute)
    (tower,) = setup.model.towers.values()

    @jax.jit
    def of(kernel, batch):
        def loss(kernel):
            total, weight = objective({**params, QUERY: kernel}, batch, None)["loss"]
            return total / weight

        return jax.grad(loss)(kernel), run_streams(tower, params, batch, setup.compute)[1]

    products, gradient, positions = 0.0, 0.0, 0
    for batch in batches:
        mine, stream = (np.asarray(one, np.float64) for one in of(params[QUERY], batch))
        x = stream[np.asarray(batch["segment_ids"]) > 0]
        products, positions = products + x.T @ x, positions + len(x)
        gradient = gradient + mine / BATCHES
    products = products / positions
    damped = products + 1e-3 * np.trace(products) / len(products) * np.eye(len(products))
    expected = np.sqrt(np.trace(gradient.T @ np.linalg.inv(damped) @ gradient))
    assert rows[QUERY]["layer_card"] == pytest.approx(expected, rel=1e-3)


def test_covariances_are_divided_into_passes():
    inputs = {"a": 10, "b": 10, "c": 30, "d": 10}
    assert passes(inputs, 4 * 200) == [["a", "b"], ["c"], ["d"]]
    assert passes(inputs) == [list(inputs)]


def test_passes_give_the_same_norms(rows, measured, monkeypatch):
    setup, params, _ = measured
    names = (QUERY, DOWN)
    monkeypatch.setattr(residual_norms.passes, "__defaults__", (1,))
    _, mean = gradient_sums(setup, params, names, BATCHES, lambda: None)
    calls = []
    norms = residual_norms.residual_norms(setup, params, mean, BATCHES, lambda: calls.append(1))
    assert len(calls) == 2 * BATCHES
    assert [norms[name] for name in names] == pytest.approx(
        [rows[name]["layer_card"] for name in names], rel=1e-4
    )


def test_states_by_numpy(rows, measured):
    setup, params, batches = measured
    (tower,) = setup.model.towers.values()
    streams_of = jax.jit(lambda batch: run_streams(tower, params, batch, setup.compute))
    residual, cosine, outliers, summary = [], [], [], []
    for batch in batches:
        tokens = np.asarray(batch["segment_ids"]) > 0
        streams = [np.asarray(one, np.float64) for one in streams_of(batch)]
        _, before, after = (one[tokens] for one in streams)
        first = np.asarray(batch["position_ids"])[tokens] == 0
        ends = [one[tokens][first] for one in streams[1:]]
        units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in ends]
        summary.append((units[0] * units[1]).sum(1).mean())
        sizes = [np.linalg.norm(one, axis=1) for one in (before, after)]
        residual.append((np.linalg.norm(after - before, axis=1) / sizes[0]).mean())
        cosine.append(((before * after).sum(1) / sizes[0] / sizes[1]).mean())
        scores = np.abs(np.asarray(params[QUERY])) * np.linalg.norm(before, axis=0)[:, None]
        outliers.append((scores > 5 * scores.mean()).mean())
    assert rows[QUERY]["residual"] == pytest.approx(np.mean(residual), rel=1e-4)
    assert rows[QUERY]["cosine"] == pytest.approx(np.mean(cosine), rel=1e-4)
    assert rows[QUERY]["cls_cosine"] == pytest.approx(np.mean(summary), rel=1e-4)
    assert rows[QUERY]["outliers"] == pytest.approx(np.mean(outliers), abs=1e-6)


def test_costs_by_hand(rows, measured):
    layout = measured[0].layout
    positions = layout.rows * layout.row_length
    assert rows[DOWN]["flops"] == 3 * 2 * positions * 64 * 32
    assert rows[DOWN]["optimizer_bytes"] == 2 * 4 * 64 * 32  # AdamW: two moments in float32


def test_written_groups_train_the_chosen_half(folder, rows, config, measured):
    written = yaml.safe_load((folder / "groups.yaml").read_text())
    changed = parse_config({**config.dump(), **written})
    trainable = set(make_table(changed, measured[0].model).trainable)
    expected = set()
    for kind in {row["kind"] for row in rows.values()}:
        own = [name for name in rows if rows[name]["kind"] == kind]
        expected.add(max(own, key=lambda name: rows[name]["fisher"]))
    biases = {name.replace("kernel", "bias") for name in expected}
    assert trainable == expected | biases | {
        "pooler/kernel", "pooler/bias", "head/kernel", "head/bias"
    }  # fmt: skip


def test_train_accepts_the_written_groups(folder, config):
    written = yaml.safe_load((folder / "groups.yaml").read_text())
    short = {"length": "2 steps", "evaluate_every": "2 steps"}
    run = jaxft.train(parse_config({**config.dump(), **written, "train": short}), quiet=True)
    rows = json.loads((run.folder / "table.json").read_text())["rows"]
    trained = {row["name"] for row in rows if row["group"] == "chosen" and row["trainable"]}
    assert re.escape(min(trained)).replace("bias", ".*") in written["groups"][0]["match"]
    assert len(trained) == 2 * len(written["groups"][0]["match"]) == 12


def test_page_has_a_heat_map_per_criterion(folder, content):
    page = (folder / "page.html").read_text()
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert [one["id"] for one in figures] == [
        *(f"criterion-{name}" for name in content["criteria"]),
        "agreement",
    ]
    fisher = next(one for one in figures if one["id"] == "criterion-fisher")
    assert (len(fisher["y"]), len(fisher["x"])) == (2, 6)
    shown = fisher["z"][1][fisher["x"].index("attention/query")]
    assert shown == next(r for r in content["matrices"] if r["name"] == QUERY)["fisher"]
    assert all(f'id="figure-{one["id"]}"' in page for one in figures)


def test_tables_fit_a_terminal(content):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(criteria_tables(content))
    text = console.export_text()
    assert text.count("attention/output") == 8
    assert "…" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "fisher"], "--by and --train are for --write. Add --write groups.yaml."),
        (["--write", "g.yaml", "--by", "fischer"], "there is no criterion 'fischer'. Did you mean"),
        (["--write", "g.yaml", "--train", "150%"], "at most 100%, not '150%'."),
        (["--write", "g.yaml", "--train", "half"], "at most 100%, not 'half'."),
        (["--write", "config.yaml"], "--write: config.yaml exists and was not written by jaxft."),
        (["--out", "config.yaml"], "--out: config.yaml exists and was not written by jaxft."),
        (["--batches", "0"], "Invalid value for '--batches'"),
    ],
)
def test_bad_arguments_are_one_sentence(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    assert main(["layers", "config.yaml", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().splitlines()[-1].startswith("jaxft: ")


def test_a_causal_model_is_summed_up_by_the_last_token(tmp_path):
    ours = make_pair("gpt2", None, 0, tmp_path).ours
    (tower,) = ours.towers.values()
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    batch = {
        "input_ids": np.full_like(segments, 3),
        "segment_ids": segments,
        "position_ids": np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]], np.int32),
    }
    states = observe(tower, ours.params, batch, PLAIN)
    assert states[0].summary.tolist() == [[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
