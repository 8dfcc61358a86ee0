"""Answers in contexts: scores, windows, spans, a run, its predictions and its export."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

import jaxft
from jaxft.cli.main import main
from jaxft.data.sources.open import given_rows, open_source
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.metrics.answers import answer_scores, exact_match, f1, normalized
from jaxft.models import load as registry
from jaxft.report.page.page import write_page
from jaxft.tasks.parts.labels import BadValue
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.question_answering.answers import Answer, Question, read_question
from jaxft.tasks.question_answering.section import QuestionAnsweringSection as Section
from jaxft.tasks.question_answering.spans import answers_of, best_spans
from jaxft.tasks.question_answering.task import make
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval

pytestmark = pytest.mark.usefixtures("cache")
TASK = {"kind": "question_answering", "doc_stride": 3}
CONTEXT = "the film in a plot of grim and stale scenes with a lovely cast in the story of the film"
ROWS = [
    {
        "question": "which cast",
        "context": CONTEXT,
        "answers": {"text": ["lovely"], "answer_start": [51]},
    },
    {"question": "bright", "context": "a bright, warm film", "answers": "bright"},
    {"question": "dull", "context": "the plot", "answers": {"text": [], "answer_start": []}},
]


def write_questions(path, count, seed=0):
    """Contexts with a good word and a bad one, and questions for either."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = [*map(str, draw.choice(PLAIN, 6))]
        words[1], words[4] = str(draw.choice(GOOD)), str(draw.choice(BAD))
        word = words[1 if number % 2 else 4]
        answers = {"text": [word], "answer_start": [" ".join(words).index(word)]}
        question = "the lovely" if number % 2 else "the grim"
        rows.append({"question": question, "context": " ".join(words), "answers": answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811 the fixture above
    folder = tmp_path_factory.mktemp("answers")
    write_questions(folder / "train.jsonl", 64)
    write_questions(folder / "eval.jsonl", 16, seed=1)
    config = tiny_config(
        folder,
        task={**TASK, "max_answer_length": 2},
        data={**train_and_eval(folder, "jsonl"), "batch_size": 16, "max_length": 11},
        optimizer={"lr": 3e-3},
        groups=[{"name": "trunk", "depth": [0, 0], "freeze": True}],
        train={"length": "8 steps", "evaluate_every": "8 steps"},
        report={"tensorboard": False, "before": True},
    )
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("bert"))
    return registry.load(str(folder), task="question_answering")


def examples_of(rows, model, length=14, labelled=True, **section):
    task = make(Section(**{**TASK, "no_answer": True, **section})).bind(
        Tools(model, length, None), ()
    )
    return task, task.examples(given_rows(rows), labelled=labelled)


# --------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("answer", "true", "same", "overlap"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("in the U.S.", "us", 0, 2 / 3),  # of two words one: P 1/2, R 1
        ("cat cat dog", "cat dog dog", 0, 2 / 3),  # two of three shared, by number
        ("theatre", "the atre", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),  # nothing is left of either
        ("", "a word", 0, 0),
        ("10,000", "10000", 1, 1),
    ],
)
def test_exact_match_and_f1_as_squad_defines_them(answer, true, same, overlap):
    assert exact_match(answer, true) == same
    assert f1(answer, true) == pytest.approx(overlap)


def test_an_answer_is_held_against_the_true_one_that_suits_it_best():
    assert normalized(" A  Man, the   plan ") == "man plan"
    answers = ["old man", "", "dog", ""]
    true = [["man", "an old man"], [], [], ["cat"]]
    scores = answer_scores(answers, true, no_answer=True)
    assert scores == {"exact_match": 0.5, "f1": 0.5, "has_answer_f1": 0.5, "no_answer_f1": 0.5}
    assert answer_scores(["a"], [["b c"]], no_answer=False) == {"exact_match": 0, "f1": 0}


# --------------------------------------------------------------------------- windows


def test_windows_overlap_and_hold_the_whole_context_and_its_answer(model):
    _, examples = examples_of(ROWS, model)
    assert examples.rows.tolist() == [0] * (len(examples) - 2) + [1, 2]
    covered, last = set(), None
    for number in range(len(examples) - 2):
        window = examples.tokens[number]
        assert len(window["input_ids"]) <= 14
        own = {tuple(span) for span in window["spans"][window["inside"] > 0].tolist()}
        assert last is None or len(own & last) == 3
        covered, last = covered | own, own
        first, end = examples.targets[number]
        if first:
            text = CONTEXT[window["spans"][first, 0] : window["spans"][end, 1]]
            assert text == "lovely"
    words = "".join(CONTEXT[start:end] for start, end in sorted(covered))
    assert words == CONTEXT.replace(" ", "")
    assert (examples.targets[:-2, 0] > 0).any()
    assert (examples.targets[:-2] == 0).all(axis=1).any()  # a window without the answer
    assert examples.targets[-1].tolist() == [0, 0]
    assert examples.counts["questions"] == 3


def test_long_questions_are_cut_and_a_window_without_room_is_one_sentence(model):
    rows = [{**ROWS[1], "question": "the plot of the film in the story"}]
    _, examples = examples_of(rows, model, max_query_length=2)
    assert examples.counts["truncated"] == 1
    assert examples.counts["truncated_tokens"] == 6
    assert examples.tokens[0]["inside"].tolist()[:4] == [0, 0, 0, 0]
    with pytest.raises(UserError, match="a window of 14 tokens has room for 3 of a context"):
        examples_of(rows, model)


def test_answers_may_have_squads_other_forms(model):
    starts = {"text": "warm", "answer_start": 10}
    for cell in (starts, [starts], {"text": ["warm"], "answer_start": [10]}, "warm"):
        _, examples = examples_of([{**ROWS[1], "answers": cell}], model)
        assert [(one.text, one.start) for one in examples.questions[0].answers] == [("warm", 10)]
    row = {**ROWS[1], "answers": "warm", "at": "10"}
    _, examples = examples_of([row], model, answer_start="at")
    assert examples.questions[0].answers[0].end == 14


# --------------------------------------------------------------------------- loss and spans


def test_the_loss_is_transformers_and_packing_changes_nothing(model):
    task, examples = examples_of(ROWS, model)
    folder, count = model.source.folder, len(examples)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    saved = {name: torch.tensor(np.asarray(value)) for name, value in model.params.items()}
    theirs.qa_outputs.weight.data = saved["head/kernel"].T.contiguous()
    theirs.qa_outputs.bias.data = saved["head/bias"]
    losses = []
    for number in range(count):
        window = examples.tokens[number]
        ids, types = (torch.tensor(window[n])[None].long() for n in ("input_ids", "token_type_ids"))
        first, last = (torch.tensor([int(one)]) for one in examples.targets[number])
        with torch.no_grad():
            out = theirs(
                input_ids=ids, token_type_ids=types, start_positions=first, end_positions=last
            )
        losses.append(float(out.loss))
    index = np.full((3, 3), -1)
    index.ravel()[:count] = range(count)
    batch = examples.collate(index, 42)
    outputs = model(**batch)
    total, weight = jax.jit(task.loss)(outputs, batch)
    assert float(weight) == count
    assert float(total) == pytest.approx(sum(losses), rel=1e-5)
    outcomes = jax.jit(task.outcomes)(outputs, batch)
    np.testing.assert_allclose(np.asarray(outcomes["loss"]).ravel()[:count], losses, rtol=1e-5)


def test_the_best_span_is_that_of_all_pairs_of_tokens(model):
    _, examples = examples_of(ROWS, model)
    index = np.array([[1, 0], [2, -1], [3, 4]])
    batch = examples.collate(index, 30)
    draw = np.random.default_rng(0)
    logits = {n: draw.normal(size=(3, 30)).astype("f4") for n in ("start_logits", "end_logits")}
    spans = jax.tree.map(np.asarray, best_spans(logits, batch, 4))
    for row, segment in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1)):
        offset = batch["read_positions"][row, segment]
        window = examples.tokens[index[row, segment]]
        own = slice(offset, offset + len(window["input_ids"]))
        start, end = logits["start_logits"][row, own], logits["end_logits"][row, own]
        inside = np.flatnonzero(window["inside"])
        pairs = [(a, b) for a in inside for b in inside if a <= b < a + 4]
        best = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
        assert (spans["first"][row, segment], spans["last"][row, segment]) == best
        score = start[best[0]] + end[best[1]]
        total = np.log(np.exp(start).sum()) + np.log(np.exp(end).sum())
        assert spans["score"][row, segment] == pytest.approx(score, rel=1e-5)
        assert spans["probability"][row, segment] == pytest.approx(np.exp(score - total), rel=1e-4)
        assert spans["null_score"][row, segment] == pytest.approx(start[0] + end[0], rel=1e-5)


def test_no_answer_is_given_where_every_window_prefers_it(model):
    _, examples = examples_of(ROWS[:1], model)
    count = len(examples)
    inside = [int(np.flatnonzero(examples.tokens[number]["inside"])[0]) for number in range(count)]
    outcomes = {
        "first": np.array(inside),
        "last": np.array(inside),
        "score": np.arange(count, dtype=float),
        "probability": np.full(count, 0.5),
        "null_score": np.full(count, count + 1.0),
        "null_probability": np.full(count, 0.25),
    }
    best = outcomes["score"].max()

    def answer(threshold):
        ((only),) = answers_of(outcomes, examples, threshold)
        return only

    assert (answer(0.0).text, answer(0.0).score) == ("", 0.25)
    assert answer(count + 1 - best).text != ""  # not beyond the threshold
    assert answer(None).text == CONTEXT[answer(None).start : answer(None).end] != ""
    outcomes["null_score"][1] = best - 1  # one window is sure enough of its answer
    assert answer(0.0).score == 0.5


# --------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_runs_lines_are_of_questions_and_the_page_shows_them(run):
    written = (run.folder / "predictions-eval.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert len(lines) == 16
    same = np.mean([normalized(one["written"]) == normalized(one["target"]) for one in lines])
    assert run.metrics["exact_match"] == pytest.approx(same)
    assert run.metrics["f1"] >= run.metrics["exact_match"]
    assert "the lovely" in write_page([run.folder]).read_text()


def test_predictions_are_those_of_the_export_in_transformers(run, capsys):
    context = "a warm film of flat story"
    assert main(["predict", str(run.folder), f"the grim\t{context}", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["answer"] == context[line["start"] : line["end"]]
    folder = export(run.folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    inputs = words("the grim", context, return_offsets_mapping=True, return_tensors="pt")
    spans = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = theirs(**inputs)
    start, end = (outputs[name][0].softmax(-1).numpy() for name in ("start_logits", "end_logits"))
    shares = {
        (spans[a][0], spans[b][1]): start[a] * end[b]
        for a in range(4, len(start) - 1)
        for b in range(a, min(a + 2, len(start) - 1))
    }
    best = max(shares, key=shares.get)
    assert best == (line["start"], line["end"])
    assert line["score"] == pytest.approx(float(shares[best]), abs=1e-5)
    assert main(["predict", str(run.folder), "no tab"]) == 2
    assert "Put a tab after the question" in capsys.readouterr().err


def test_the_classes_of_another_head_are_not_those_of_answers(tmp_path):
    names = {str(number): f"class {number}" for number in range(3)}
    folder = tiny_checkpoint(tmp_path / "bert", id2label=names, label2id={})
    saved = registry.load(str(folder), task="question_answering").save(tmp_path / "saved")
    assert "id2label" not in json.loads((saved / "config.json").read_text())
    transformers.AutoModelForQuestionAnswering.from_pretrained(saved)


def test_squads_own_file_is_read_and_another_one_is_one_sentence(tmp_path):
    answer = {"text": "plot", "answer_start": 4}
    asked = {"id": "1", "question": "which", "answers": [answer]}
    none = {"id": "2", "question": "why", "answers": [answer], "is_impossible": True}
    paragraph = {"context": "the plot", "qas": [asked, none]}
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": [paragraph]}]}))
    source = open_source(f"squad:{path}:ordered")
    section = Section(**TASK, no_answer=True)
    first, second = (read_question(row, section) for row in source.rows([0, 1]))
    assert first == Question("which", "the plot", (Answer("plot", 4),))
    assert second == Question("why", "the plot")
    for bad in ("{}", '{"data": 1}', '{"data": "a"}', '{"data": [{"paragraphs": [{"qas": 3}]}]}'):
        path.write_text(bad)
        with pytest.raises(UserError, match="is not a SQuAD file"):
            open_source(f"squad:{path}")
    for wrong in ({"question": 3}, {"answers": None}, {"answers": [[]]}, {"answers": 7}):
        row = {**paragraph, "qas": [{**asked, **wrong}]}
        path.write_text(json.dumps({"data": [{"paragraphs": [row]}]}))
        with pytest.raises((UserError, BadValue)):
            read_question(open_source(f"squad:{path}").rows([0])[0], section)
