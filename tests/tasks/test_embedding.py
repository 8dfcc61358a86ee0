"""Texts as vectors: pooling, losses and scores, a run, its page, its predictions and its export."""

import json
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import jaxft
from jaxft.cli.main import main
from jaxft.data.sources.open import given_rows
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.metrics.retrieval import pair_scores, ranking_loss, wrong_before
from jaxft.models import load as registry
from jaxft.models.tower.tower import PLAIN as PLAIN_COMPUTE
from jaxft.report.page.page import write_page
from jaxft.tasks.embedding.pooling import pooling_config
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.task import make
from jaxft.tasks.embedding.text_tuples import numbered
from jaxft.tasks.parts.tools import Tools
from tests.support.families import make_pair
from tests.support.laid_out import LAYOUTS, goes_on_to_the_same_bits, scores
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval

pytestmark = pytest.mark.usefixtures("cache")
TASK = {"kind": "embedding"}
ROWS = [
    {"anchor": "warm film", "positive": "a fine cast"},
    {"anchor": "dull", "positive": "the stale plot of the story"},
    {"anchor": "warm film", "positive": "bright"},
    {"anchor": "cold", "positive": "a fine cast"},
]


def write_pairs(path, count, seed=0):
    """Pairs whose texts share a rare word each."""
    draw = np.random.default_rng(seed)
    words = [f"{one}{end}" for one in (*GOOD, *BAD) for end in ("", "s", "ly", "ness")]
    rows = []
    for number in range(count):
        told = words[number % len(words)]
        first, second = (" ".join([*draw.choice(PLAIN, 2), told]) for _ in range(2))
        rows.append({"anchor": first, "positive": second, "score": float(number % 6)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedding")
    write_pairs(folder / "train.jsonl", 80)
    write_pairs(folder / "eval.jsonl", 40, seed=1)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return tiny_config(
        folder,
        task=TASK,
        data={**train_and_eval(folder, "jsonl"), "batch_size": 16},
        optimizer={"lr": 3e-3},
        groups=[{"name": "pooler", "match": "pooler/.*", "freeze": True}],
        train={"length": "30 steps", "evaluate_every": "15 steps"},
        checkpoint={"every": "8 steps", "keep": 9},
        report={"tensorboard": False, "before": True},
    )


@pytest.fixture(scope="module")
def run(config, cache):  # noqa: F811 the fixture above
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return registry.load(str(tiny_checkpoint(tmp_path_factory.mktemp("bert"))), task="embedding")


def examples_of(rows, model, names=(), length=None, **section):
    task = make(Section(**TASK, **section)).bind(Tools(model, length, None), names or ())
    return task, task.examples(given_rows(rows), labelled=names is not None)


def read(task, model, batch):
    """The outputs as the task reads them."""
    represent = jax.jit(partial(task.represent, compute=PLAIN_COMPUTE))
    return represent(model.params, model(**batch), batch)


def vectors_of(task, model, batch):
    return np.asarray(task.outcomes(read(task, model, batch), batch)["vectors"])


def theirs(folder, texts):
    """The vectors that sentence-transformers gives: mean of the tokens, length 1."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = words(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        stream = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((stream * mask).sum(1) / mask.sum(1)).numpy()


# --------------------------------------------------------------------------- vectors and losses


def test_vectors_are_those_of_mean_pooling_in_pytorch_packed_or_not(model):
    task, examples = examples_of(ROWS, model)
    packed = examples.collate(np.array([[2, 0], [1, -1], [3, -1]]), 40)
    assert packed["read_positions"].shape == packed["weights"].shape == (3, 2)
    vectors = vectors_of(task, model, packed)
    for number, place in ((2, (0, 0)), (0, (0, 1)), (1, (1, 0)), (3, (2, 0))):
        texts = [ROWS[number][column] for column in ("anchor", "positive")]
        np.testing.assert_allclose(vectors[place], theirs(model.source.folder, texts), atol=2e-6)


def test_the_loss_is_that_of_multiple_negatives_ranking(model):
    """cross_entropy(cosines * 20, diagonal), as sentence-transformers has it; texts all differ."""
    rows = [ROWS[1], ROWS[2], {"anchor": "cold", "positive": "a scene"}]
    task, examples = examples_of(rows, model)
    batch = examples.collate(np.array([[0, 1], [2, -1]]), 40)
    total, weight = jax.jit(task.loss)(read(task, model, batch), batch)
    first, second = (
        torch.tensor(theirs(model.source.folder, [row[c] for row in rows]))
        for c in ("anchor", "positive")
    )
    loss = torch.nn.functional.cross_entropy(first @ second.T * 20, torch.arange(3))
    assert float(weight) == 3
    assert float(total / weight) == pytest.approx(float(loss), rel=1e-5)


def test_what_is_right_too_is_no_wrong_answer_and_a_hard_negative_is(model):
    rows = [
        {"anchor": "warm film", "positive": "a fine cast", "negative": "dull"},
        {"anchor": "warm film", "positive": "bright", "negative": "stale"},
        {"anchor": "cold", "positive": "a fine cast", "negative": "grim"},
    ]
    task, examples = examples_of(rows, model, negative="negative", temperature=0.5)
    batch = examples.collate(np.array([[0], [1], [2], [-1]]), 40)
    vectors = vectors_of(task, model, batch)[:3, 0]
    anchors, items = vectors[:, 0], np.concatenate([vectors[:, 1], vectors[:, 2]])
    # Of each anchor the positives that are its own or no right answer; and every negative.
    candidates = [[0, 3, 4, 5], [1, 3, 4, 5], [2, 1, 3, 4, 5]]
    losses = []
    for number, chosen in enumerate(candidates):
        numbers = items[chosen] @ anchors[number] / 0.5
        losses.append(np.log(np.exp(numbers).sum()) - numbers[0])
    # The third one's own positive is the first's: theirs are the same text, told once.
    total, _ = jax.jit(task.loss)(read(task, model, batch), batch)
    assert float(total) == pytest.approx(sum(losses), rel=1e-5)


def test_scores_teach_the_cosine(model):
    rows = [dict(row, score=score) for row, score in zip(ROWS, (0, 5, 2.5, 1), strict=True)]
    task, examples = examples_of(rows, model, score="score", score_range=[0.0, 5.0])
    assert examples.scores.tolist() == pytest.approx([0, 1, 0.5, 0.2])
    batch = examples.collate(np.array([[0, 1], [2, 3], [-1, -1]]), 40)
    total, weight = jax.jit(task.loss)(read(task, model, batch), batch)
    vectors = vectors_of(task, model, batch)[:2].reshape(4, 2, -1)
    alike = (vectors[:, 0] * vectors[:, 1]).sum(-1)
    assert float(total) == pytest.approx(float(((alike - examples.scores) ** 2).sum()), rel=1e-5)
    assert float(weight) == 4
    found = task.summarise({"vectors": vectors}, examples)
    assert found["spearman"] == pytest.approx(spearmanr(alike, examples.scores).statistic)
    assert task.task.primary == "spearman"


def test_scores_of_a_cross_encoder_teach_the_order_of_candidates(model):
    rows = [
        {"anchor": f"red {n}", "positive": "blue", "negative": "green", "right": n, "wrong": 2.0}
        for n in range(3)
    ]
    columns = ["right", "wrong"]
    task, examples = examples_of(rows, model, negative="negative", teacher_scores=columns)
    assert task.task.columns == ("anchor", "positive", "negative", *columns)
    batch = examples.collate(np.array([[2, 0], [-1, 1]]), 40)
    scores = batch["teacher_scores"]
    np.testing.assert_array_equal(scores, [[[2, 2], [0, 2]], [[0, 0], [1, 2]]])
    outputs = read(task, model, batch)
    vectors = np.asarray(outputs["vectors"])
    loss, weight = jax.jit(task.loss)(outputs, batch)
    cosines = np.einsum("rskd,rsd->rsk", vectors[:, :, 1:], vectors[:, :, 0]) / 0.05
    errors = (cosines[..., 0] - cosines[..., 1] - (scores[..., 0] - scores[..., 1])) ** 2
    assert float(weight) == 3
    assert float(loss) == pytest.approx(np.sum(errors * batch["weights"]), rel=1e-4)
    rows[1]["wrong"] = "low"
    with pytest.raises(UserError, match="row 2 has 'low' in wrong, which is not a number"):
        examples_of(rows, model, negative="negative", teacher_scores=columns)


@pytest.mark.slow
def test_the_texts_of_eval_pairs_lie_nearer_after_training(run):
    before, after = (
        json.loads((run.folder / f"embeddings-{when}.json").read_text())
        for when in ("before", "after")
    )
    assert before["labels"] == ["anchor", "positive"] * 40
    assert len(after["x"]) == 80
    assert not np.allclose(before["x"], after["x"])
    page = write_page([run.folder]).read_text()
    assert "Embeddings of the eval rows" in page


def test_what_is_found_is_as_counted_by_hand():
    anchors = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    numbers = numbered([("a", "x"), ("a", "y"), ("b", "z"), ("c", "x")])
    assert numbers.tolist() == [[0, 1], [0, 2], [3, 4], [5, 1]]
    # x lies by b, y by a, z between b and c.
    items = np.array([[0, 1, 0], [1, 0, 0], [0, 0.6, 0.8], [0, 1, 0]], np.float32)
    told = numbers[:, 1]
    # a finds y first; b finds x (wrong) and then z; c finds z (wrong), then x and y alike.
    assert wrong_before(anchors, items, numbers, told).tolist() == [0, 0, 1, 2]
    assert pair_scores(anchors, items, numbers, told) == pytest.approx(
        {"recall_at_1": 1 / 3, "recall_at_10": 1.0, "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 3) / 3}
    )
    by_hand = [
        np.log(np.exp(0) + np.exp(0)) - 0,  # a with x: y is right too, z is wrong
        np.log(np.exp(1) + np.exp(0)) - 1,
        np.log(np.exp(1) + np.exp(0) + np.exp(0.6)) - 0.6,
        np.log(np.exp(0) + np.exp(0) + np.exp(0.8)) - 0,
    ]
    loss = ranking_loss(anchors, items, numbers, told, 1.0)
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-6)
    nothing = np.full_like(anchors, np.nan)
    assert wrong_before(nothing, items, numbers, told).min() > 0


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("row", "section", "said"),
    [
        ({"anchor": "", "positive": "a"}, {}, "input: row 2 has no anchor."),
        ({"anchor": "a", "positive": None}, {}, "input: row 2 has no positive."),
        (
            {"anchor": "a", "positive": 3},
            {},
            "input: row 2 has 3 in positive, which is not a text.",
        ),
        (
            {"anchor": "a", "positive": "b", "score": 7},
            {"score": "score"},
            "input: row 2 has 7 in score, which is not from 0 to 1.",
        ),
        ({"anchor": "a", "positive": "b", "score": ""}, {"score": "score"}, "has no score"),
    ],
)
def test_a_row_that_is_not_as_it_has_to_be(row, section, said, model):
    with pytest.raises(UserError) as refused:
        examples_of([{"score": 1, **ROWS[0]}, row], model, **section)
    assert said in refused.value.message


def test_one_pair_teaches_nothing(model):
    with pytest.raises(UserError, match="a single pair has no negatives"):
        examples_of(ROWS[:1], model)


def test_an_encoder_decoder_has_no_vector_of_a_text_alone(tmp_path):
    folder = make_pair("t5", None, 0, tmp_path).folder
    with pytest.raises(UserError, match="is a t5, whose states are of"):
        fitted(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.positive=psitive"], "there is no column 'psitive'. Did you mean 'positive'?"),
        (
            ["task.score=score", "task.negative=positive"],
            "so that it does not combine with negative",
        ),
        (["task.score_range=[5.0, 0.0]"], "score_range has the lower score first"),
    ],
)
def test_a_config_that_cannot_be(words, said, config, folder, capsys):
    path = folder / "bad.yaml"
    path.write_text(jaxft.config.load.to_yaml(config.dump()))
    assert main(["train", str(path), "run.name=bad", *words]) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert said in told


# ----------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("alone", "padded")])
def test_layouts_change_no_score(config, layout):
    alone = scores(config, "alone")
    assert set(alone) == {"loss", "recall_at_1", "recall_at_10", "mean_reciprocal_rank"}
    assert scores(config, layout) == pytest.approx(alone, rel=1e-6)


def test_a_run_learns_and_goes_on_to_the_same_bits(run, config, tmp_path):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    (before,) = (e for e in map(json.loads, lines) if e.get("split") == "before")
    assert run.metrics["mean_reciprocal_rank"] > before["mean_reciprocal_rank"]
    assert run.metrics["loss"] < before["loss"]
    goes_on_to_the_same_bits(run, config, 16, tmp_path)


def test_vectors_are_those_of_the_export(run, capsys):
    texts = ["a warm film", "dull"]
    assert main(["predict", str(run.folder), *texts]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    folder = export(run.folder)
    told = [one["type"].split(".")[-1] for one in json.loads((folder / "modules.json").read_text())]
    assert told == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens"]
    expected = theirs(folder, texts)
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert loaded.max_seq_length == 40
    encoded = loaded.encode(texts, show_progress_bar=False)
    for one, text, vector, other in zip(said, texts, expected, encoded, strict=True):
        assert one["text"] == text
        np.testing.assert_allclose(one["vector"], vector, atol=2e-5)
        np.testing.assert_allclose(one["vector"], other, atol=2e-5)


# ------------------------------------------------------------------------------------- pooling

POOLINGS = {  # ours -> sentence-transformers' own name
    "mean": "mean",
    "cls": "cls",
    "last": "lasttoken",
    "max": "max",
    "weighted_mean": "weightedmean",
}
MODULES = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")


def write_modules(folder, pooling, modules=MODULES):
    """The files in which a checkpoint of sentence-transformers says how it pools."""
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def fitted(folder, **section):
    """The task on a checkpoint, as a run begins with it."""
    model = registry.load(str(folder), task="embedding")
    task = make(Section(**TASK, **section))
    return task.fitted(task.fit(None, model)).bind(Tools(model, None, None), ())


@pytest.mark.parametrize("written", ["one key", "a key each"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_checkpoint_pools_as_its_own_files_say(tmp_path, pooling, written):
    folder = tiny_checkpoint(tmp_path / "bert")
    width = {"word_embedding_dimension": 32}
    one_key = {"embedding_dimension": 32, "pooling_mode": POOLINGS[pooling]}
    write_modules(folder, one_key if written == "one key" else pooling_config(pooling, 32) | width)
    task = fitted(folder)
    assert task.task.pooling == pooling
    assert task.task.notes == ()
    examples = task.examples(given_rows(ROWS))
    batch = examples.collate(np.array([[2, 0], [1, -1], [3, -1]]), 40)
    vectors = vectors_of(task, task.tools.model, batch)
    encoder = SentenceTransformer(str(folder), device="cpu")
    for number, place in ((2, (0, 0)), (0, (0, 1)), (1, (1, 0))):
        texts = [ROWS[number][column] for column in ("anchor", "positive")]
        expected = encoder.encode(texts, show_progress_bar=False)
        np.testing.assert_allclose(vectors[place], expected, atol=1e-5)


def test_where_no_file_says_how_to_pool_that_is_said(tmp_path):
    folder = tiny_checkpoint(tmp_path / "bert")
    task = fitted(folder).task
    assert task.pooling == "mean"
    assert "has no modules.json" in task.notes[0]
    chosen = fitted(folder, pooling="cls").task
    assert (chosen.pooling, chosen.notes) == ("cls", ())


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode": "cls"}, MODULES, "task.pooling is mean, and the .* says cls"),
        ({"pooling_mode": ["cls", "mean"]}, MODULES, "the pooling .* is not supported"),
        ({"pooling_mode": "sum"}, MODULES, "the pooling .* is not supported"),
        ({"pooling_mode": {}}, MODULES, "the pooling .* is not supported"),
        ({}, (*MODULES[:2], ("2_CNN", "CNN")), "the module CNN changes the vectors"),
        ({}, (MODULES[0], ("pool", "Pooling")), r"the pooling is in \['pool'\], not in 1_Pooling"),
        ({}, (*MODULES, ("3_Dense", "Dense")), "the order Pooling, Normalize, Dense is not"),
        ({}, (*MODULES[:2], ("../x", "Normalize")), "'../x' is not a folder of the checkpoint"),
        ([], MODULES, "not a JSON object"),
    ],
)
def test_a_pooling_that_is_wrong_or_not_known_is_refused(tmp_path, pooling, modules, message):
    folder = tiny_checkpoint(tmp_path / "bert")
    write_modules(folder, pooling, modules)
    with pytest.raises(UserError, match=message):
        fitted(folder, pooling="mean")
    (folder / "modules.json").write_text("[3]")
    with pytest.raises(UserError, match=r"modules\.json is not a list of modules"):
        fitted(folder)


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "mean"])
def test_an_export_pools_as_the_run_did(run, tmp_path, capsys, pooling):
    copy = shutil.copytree(run.folder, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    assert facts["fitted"] == {"pooling": "mean"}
    (copy / "run.json").write_text(json.dumps(facts | {"fitted": {"pooling": pooling}}))
    (copy / "digests.json").unlink()
    texts = ["a warm film", "dull"]
    assert main(["predict", str(copy), *texts]) == 0
    vectors = [json.loads(line)["vector"] for line in capsys.readouterr().out.splitlines()]
    folder = export(copy)
    encoder = SentenceTransformer(str(folder), device="cpu")
    expected = encoder.encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(code.replace("Your text.", texts[0]).replace('"."', repr(str(folder))), names)
    np.testing.assert_allclose(names["vector"].detach().numpy(), expected[0], atol=1e-5)


def test_a_page_shows_what_lies_nearest(run):
    page = write_page([run.folder]).read_text()
    assert "Missing data" not in page
    assert "Nearest texts" in page
    assert page.count("<small>correct match</small>") >= 24


def test_no_slope_is_lost_in_rows_without_an_example(model):
    task, examples = examples_of(ROWS, model)
    batch = {n: jnp.asarray(v) for n, v in examples.collate(np.array([[0], [-1]]), 16).items()}

    def loss(stream):
        outputs = task.represent(model.params, {"last_hidden_state": stream}, batch, PLAIN_COMPUTE)
        return task.loss(outputs, batch)[0]

    slope = jax.jit(jax.grad(loss))(model(**batch)["last_hidden_state"])
    assert np.isfinite(slope).all()


def test_the_nearest_lines_of_a_file_are_found(run, tmp_path, capsys):
    file = tmp_path / "lines.txt"
    texts = "the dull plot\n\nwarm film\na cold scene\n"
    file.write_text(texts, encoding="utf-8-sig")  # as Windows writes it
    command = ["search", str(run.folder), "warm film", "--texts", str(file)]
    assert main([*command, "--json", "--best", "2"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["line"], first["text"]) == (3, "warm film")
    assert first["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert second["similarity"] < 0.999
    assert main([*command, "--json"]) == 0
    every = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert set(every) == set(texts.splitlines()) - {""}
    assert main(command) == 0
    assert "warm film" in capsys.readouterr().out
    for words, said in (
        ([*command, "--image", "a.png"], "--texts needs a query in words"),
        (["search", str(run.folder), "a"], "jaxft search needs something to search"),
        (["search", str(run.folder), "a", "--texts", str(tmp_path)], "Cannot read"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    table = tmp_path / "rows.jsonl"
    rows = [{"anchor": "a", "positive": text} for text in ("the plot", "warm film", "warm film")]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command_on_rows = ["search", str(run.folder), "warm film", "--texts", str(table), "--json"]
    assert main(command_on_rows) == 0
    best, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(one["line"], one["text"]) for one in (best, other)] == [
        (2, "warm film"),
        (1, "the plot"),
    ]
    table.write_text('{"text": "a"}\n')
    assert main(command_on_rows) == 2
    assert "there is no column 'positive'" in capsys.readouterr().err
    file.write_text("\n")
    assert main(command) == 2
    assert "holds no text" in capsys.readouterr().err
