"""Queries with candidates: losses and ranking scores, a run, its predictions and its export."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sklearn.metrics import average_precision_score, ndcg_score

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.sources.open import given_rows
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.predict import predict, predict_rows
from jaxft.metrics.ranking import ranking_scores
from jaxft.models import load as registry
from jaxft.report.page.page import write_page
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.reranking.activation import read_activation
from jaxft.tasks.reranking.section import RerankingSection as Section
from jaxft.tasks.reranking.task import make
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval

pytestmark = pytest.mark.usefixtures("cache")
LISTS = {"kind": "reranking", "positive": "positive", "negatives": "negatives"}
ROWS = [
    {"query": "warm film", "positive": "a warm cast", "negatives": ["dull", "stale plot"]},
    {"query": "dull", "positive": ["the dull plot", "dull"], "negatives": ["bright"]},
    {"query": "cold", "positive": "cold story", "negatives": ["a fine cast", "grim", "flat", "a"]},
]


def write_lists(path, count, seed=0):
    """Queries whose right passage has their rare word."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        word, other = [*GOOD, *BAD][number % 10], [*BAD, *GOOD][number % 10]
        rows.append(
            {
                "query": f"{draw.choice(PLAIN)} {word}",
                "positive": f"{word} {draw.choice(PLAIN)}",
                "negatives": [f"{other} {draw.choice(PLAIN)}", str(draw.choice(PLAIN))],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranking")
    write_lists(folder / "train.jsonl", 80)
    write_lists(folder / "eval.jsonl", 20, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(folder, cache):  # noqa: F811 the fixture above
    config = tiny_config(
        folder,
        task={**LISTS, "loss": "softmax", "candidates": 3},
        data={**train_and_eval(folder, "jsonl"), "batch_size": 16, "max_length": 24},
        optimizer={"lr": 3e-3},
        groups=[{"name": "trunk", "depth": [0, 0], "freeze": True}],
        train={"length": "20 steps", "evaluate_every": "10 steps"},
        report={"tensorboard": False, "before": True},
    )
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tiny_checkpoint(tmp_path_factory.mktemp("bert")))
    return registry.load(folder, task="text_classification", labels=("LABEL_0",))


def examples_of(rows, model, labelled=True, length=None, **section):
    task = make(Section(**{**LISTS, **section})).bind(Tools(model, length, None), ())
    return task, task.examples(given_rows(rows), labelled=labelled)


def logits_of(model, pairs):
    """The model's scores of pairs, each alone and without packing, by one program."""
    words = Tools(model, None, None).tokenizer
    encoded = words.encode([query for query, _ in pairs], [passage for _, passage in pairs])
    names = ("input_ids", "token_type_ids", "attention_mask")
    scores = []
    for ids, types in zip(encoded.ids, encoded.type_ids, strict=True):
        rows = [np.pad(row, (0, 16 - len(ids)))[None] for row in (ids, types, np.ones_like(ids))]
        scores.append(float(model(**dict(zip(names, rows, strict=True)))["logits"][0, 0]))
    return np.array(scores)


def test_other_labels_put_other_pairs_beside_each_other_and_share_no_trunk(model):
    """A trunk's output is stored by the examples' fingerprint."""
    rows = [
        {"query": "a", "passage": passage, "first": first, "last": last}
        for passage, first, last in (("b", 1, 0), ("c", 0, 0), ("d", 0, 1))
    ]
    shared = {"negatives": None, "positive": None, "passage": "passage", "loss": "softmax"}
    first, second = (
        examples_of(rows, model, label=label, **shared)[1] for label in ("first", "last")
    )
    assert first.numbers.tolist() != second.numbers.tolist()
    assert first.fingerprint != second.fingerprint


# --------------------------------------------------------------------------- scores


def test_ranking_scores_are_those_of_scikit_learn_query_by_query():
    draw = np.random.default_rng(0)
    queries = np.repeat(np.arange(6), [12, 3, 30, 4, 2, 5])
    relevance = draw.integers(0, 2, len(queries)).astype(float)
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    relevance[starts], relevance[starts + 1] = 0, 1
    relevance[queries == 3] = 0  # no right candidate, and in the next one no wrong one
    relevance[queries == 4] = 1
    scores = draw.normal(size=len(queries))
    found = ranking_scores(scores, relevance, queries)
    gains, precisions, ranks = [], [], []
    for query in (0, 1, 2, 5):
        own = queries == query
        gains.append(ndcg_score(relevance[own][None], scores[own][None], k=10))
        precisions.append(average_precision_score(relevance[own], scores[own]))
        first = int(np.argmax(relevance[own][np.argsort(-scores[own])] > 0)) + 1
        ranks.append(1 / first if first <= 10 else 0)
    assert found["ndcg_at_10"] == pytest.approx(np.mean(gains), rel=1e-9)
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions), rel=1e-9)
    assert found["mrr_at_10"] == pytest.approx(np.mean(ranks), rel=1e-9)
    graded = np.array([0.0, 2.0, 1.0])
    two = ranking_scores(np.array([3.0, 2.0, 1.0]), graded, np.zeros(3, int))
    assert two["ndcg_at_10"] == pytest.approx(ndcg_score(graded[None], [[3.0, 2.0, 1.0]]))


def test_equal_scores_rank_nothing_well():
    same = ranking_scores(np.zeros(11), np.eye(11)[0], np.zeros(11, int))
    assert same["mrr_at_10"] == same["ndcg_at_10"] == 0
    assert same["mean_average_precision"] == pytest.approx(1 / 11)
    assert ranking_scores(np.zeros(2), np.zeros(2), np.arange(2)) == {}


# --------------------------------------------------------------------------- losses


def test_the_list_wise_loss_is_the_cross_entropy_over_a_querys_candidates(model):
    task, examples = examples_of(ROWS, model, loss="softmax", candidates=4)
    batch = examples.collate(np.array([[1, 0], [2, -1]]), 40)
    assert batch["read_positions"].shape == (2, 8)
    outputs = model(**batch)
    losses = []
    for row in ROWS:
        right = row["positive"] if isinstance(row["positive"], list) else [row["positive"]]
        passages = [*right, *row["negatives"]][:4]
        scores = torch.tensor(logits_of(model, [(row["query"], one) for one in passages]))
        shares = torch.tensor([1 / len(right)] * len(right) + [0.0] * (len(passages) - len(right)))
        losses.append(float(torch.nn.functional.cross_entropy(scores, shares.double())))
    total, weight = jax.jit(task.loss)(outputs, batch)
    assert float(weight) == pytest.approx(3)
    assert float(total) == pytest.approx(sum(losses), rel=1e-5)


def test_an_evaluation_has_every_candidate_and_its_loss_is_over_all_of_a_query(model):
    task, examples = examples_of(ROWS, model, loss="softmax", candidates=2)
    assert examples.numbers.shape == (3, 2)
    alone = examples.scored()
    assert len(alone) == 11
    assert alone.rows.tolist() == [0] * 3 + [1] * 3 + [2] * 5
    pairs = [
        (row["query"], passage)
        for row in ROWS
        for right in [row["positive"] if isinstance(row["positive"], list) else [row["positive"]]]
        for passage in [*right, *row["negatives"]]
    ]
    scores = logits_of(model, pairs)
    summary = task.summarise({"scores": scores[:, None]}, alone)
    shares = np.array([1, 0, 0, 0.5, 0.5, 0, 1, 0, 0, 0, 0])
    parts = [
        torch.nn.functional.cross_entropy(torch.tensor(scores[own]), torch.tensor(shares[own]))
        for own in (slice(0, 3), slice(3, 6), slice(6, 11))
    ]
    assert summary["loss"] == pytest.approx(float(sum(parts)) / 3, rel=1e-6)
    assert {"mrr_at_10", "ndcg_at_10", "mean_average_precision"} < set(summary)


def test_pairs_are_learned_by_label_or_by_score(model):
    rows = [
        {"query": "warm", "passage": "a film", "label": 1, "score": 3.5},
        {"query": "warm", "passage": "dull", "label": 0.25, "score": -2.0},
        {"query": "cold", "passage": "the plot", "label": "0", "score": "1e-1"},
    ]
    scores = torch.tensor(logits_of(model, [(row["query"], row["passage"]) for row in rows]))
    labels, taught = torch.tensor([1.0, 0.25, 0.0]), torch.tensor([3.5, -2.0, 0.1])
    pairs = {"positive": None, "negatives": None}
    expected = {
        "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits(
            scores, labels.double()
        ),
        "mse": torch.nn.functional.mse_loss(scores, taught.double()),
    }
    for loss, theirs in expected.items():
        score = "score" if loss == "mse" else None
        task, examples = examples_of(rows, model, loss=loss, score=score, **pairs)
        batch = examples.collate(np.array([[0, 2], [1, -1]]), 40)
        total, weight = jax.jit(task.loss)(model(**batch), batch)
        assert float(total / weight) == pytest.approx(float(theirs), rel=1e-5)
    assert examples.table.queries.tolist() == [0, 0, 1]
    summary = task.summarise({"scores": np.array([[3.0], [-1.0], [0.0]])}, examples)
    assert summary["spearman"] == pytest.approx(1)
    assert task.task.primary == "spearman"


def test_half_of_a_training_lists_candidates_are_wrong_where_there_are_enough(model):
    row = {"query": "warm", "positive": ["a", "in", "of", "the"], "negatives": ["dull", "flat"]}
    for most, chosen in ((4, [0, 1, 4, 5]), (5, [0, 1, 2, 4, 5]), (2, [0, 4])):
        _, examples = examples_of([row], model, loss="softmax", candidates=most)
        assert examples.numbers.tolist() == [chosen]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loss": "mse"}, "loss: mse and score belong together"),
        ({"score": "score"}, "loss: mse and score belong together"),
        ({"positive": "positive"}, "positive and negatives belong together"),
        ({"positive": "p", "negatives": "n", "label": "l"}, "replace label and score"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(section, message):
    data = {"train": "csv:a.csv", "eval": "csv:b.csv"}
    given = {"run": {"name": "t"}, "model": {"checkpoint": "none"}, "data": data}
    with pytest.raises(UserError, match=message):
        parse_config({**given, "task": {"kind": "reranking", **section}})


def test_rows_that_rank_nothing_are_one_sentence(model):
    rows = [
        {"query": "warm", "passage": "a", "label": 1},
        {"query": "b", "passage": "a", "label": 0},
    ]
    pairs = {"positive": None, "negatives": None}
    with pytest.raises(UserError, match="no query has both a relevant candidate and another one"):
        examples_of(rows, model, loss="softmax", **pairs)
    rows[0]["label"] = 2
    with pytest.raises(UserError, match="has 2 in label, which is not from 0 to 1"):
        examples_of(rows, model, **pairs)


# --------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_run_learns_and_its_lines_are_of_queries(run):
    written = (run.folder / "predictions-eval.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert len(lines) == 20
    assert run.metrics["ndcg_at_10"] > 0.8
    first = sum(line["before"] == 0 for line in lines) / len(lines)
    assert run.metrics["mrr_at_10"] >= first
    assert set(lines[0]) == {"id", "text", "positive", "before", "found"}
    page = write_page([run.folder]).read_text()
    assert lines[0]["found"][0]["text"] in page


def test_the_export_scores_as_a_cross_encoder(run, tmp_path):
    folder = export(run.folder)
    lines = [
        "a warm\twarm film",
        "dull in\tthe story of the plot, the cast and the scene in it",
        "a\tb",
    ]
    ours = [line["score"] for line in predict(run.folder, lines)]
    theirs = CrossEncoder(str(folder))
    assert isinstance(theirs.activation_fn, torch.nn.Sigmoid)
    np.testing.assert_allclose(
        theirs.predict([line.split("\t") for line in lines]), ours, atol=1e-5
    )
    assert "text-ranking" in (folder / "README.md").read_text()
    theirs.activation_fn = torch.nn.Identity()
    theirs.save_pretrained(str(tmp_path / "saved"))  # as the hub has them
    saved = registry.describe(str(tmp_path / "saved"), registry.LoadOptions(labels=("LABEL_0",)))
    assert saved.report.new == ()
    task = make(Section(kind="reranking", positive="a", negatives="b"))
    assert task.fit(None, saved) == {"activation": "identity"}
    shutil.rmtree(folder)


def test_an_activation_is_read_from_each_place_and_an_unknown_one_refused(tmp_path):
    identity = "torch.nn.modules.linear.Identity"
    assert read_activation(tmp_path, {}) is None
    old = {"sbert_ce_default_activation_function": identity}
    assert read_activation(tmp_path, old) == "identity"
    assert read_activation(tmp_path, {"sentence_transformers": {"activation_fn": identity}})
    with pytest.raises(UserError, match="GELU, is not supported"):
        read_activation(tmp_path, {"sentence_transformers": {"activation_fn": "torch.nn.GELU"}})


def test_several_passages_are_ranked_and_tables_are_read(run, capsys, tmp_path):
    assert main(["predict", str(run.folder), "a warm\tflat\twarm film", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert [one["passage"] for one in line["ranking"]] == ["warm film", "flat"]
    assert line["ranking"][0]["score"] > line["ranking"][1]["score"]
    assert main(["predict", str(run.folder), "no tab here"]) == 2
    assert "Put a tab after the query" in capsys.readouterr().err
    write_lists(tmp_path / "rows.jsonl", 2)
    rows = list(predict_rows(run.folder, f"jsonl:{tmp_path}/rows.jsonl:ordered"))
    assert [len(row["ranking"]) for row in rows] == [3, 3]
