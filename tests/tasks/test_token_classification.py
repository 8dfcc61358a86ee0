"""Entities in texts: words and tags, first tokens, scores, a run, its page and its predictions."""

import io
import json
from contextlib import redirect_stdout

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
import torch
import transformers
from rich.text import Text

import jaxft
from jaxft.cli.main import main
from jaxft.cli.parts.tagged import marked
from jaxft.data.sources.open import given_rows, open_source
from jaxft.data.text.tags import fault_of, join_words, to_iob2, words_of
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.demo.ner import tweets
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.metrics.entities import entities, entity_scores
from jaxft.models import load as registry
from jaxft.report.page.page import write_page
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.token_classification.section import TokenClassificationSection as Section
from jaxft.tasks.token_classification.task import make
from tests.support.laid_out import LAYOUTS, goes_on_to_the_same_bits, scores
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import BAD, GOOD, PLAIN, tiny_checkpoint, tiny_config, train_and_eval

pytestmark = pytest.mark.usefixtures("cache")
NAMES = ("O", "B-bad", "I-bad", "B-good", "I-good")
TASK = {"kind": "token_classification"}


def write_sentences(path, count, seed=0):
    """Sentences in which good and bad words are entities, of one word or two."""
    draw = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(count):
            for _ in range(draw.integers(1, 4)):
                kind, words = [("good", GOOD), ("bad", BAD)][draw.integers(2)]
                told = draw.choice(words, draw.integers(1, 3))
                pairs = [(word, "BI"[i > 0] + "-" + kind) for i, word in enumerate(told)]
                pairs += [(word, "O") for word in draw.choice(PLAIN, draw.integers(1, 4))]
                file.writelines(f"{word}s\t{tag}\n" for word, tag in pairs)
            file.write("\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ner")
    write_sentences(folder / "train.conll", 64)
    write_sentences(folder / "eval.conll", 16, seed=1)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return tiny_config(
        folder,
        task=TASK,
        data=train_and_eval(folder, "conll"),
        optimizer={"lr": 5e-3},
        train={"length": "60 steps", "evaluate_every": "30 steps"},
        checkpoint={"every": "10 steps", "keep": 9},
    )


@pytest.fixture(scope="module")
def run(config, cache):  # noqa: F811 the fixture above
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("bert"))
    return registry.load(str(folder), task="token_classification", labels=NAMES)


def examples_of(rows, model, names=NAMES, length=None, **section):
    task = make(Section(**TASK, **section)).bind(Tools(model, length, None), names or ())
    return task, task.examples(given_rows(rows), labelled=names is not None)


# ---------------------------------------------------------------------------------- words and tags


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I'm at St. John's.", ["I", "'m", "at", "St", ".", "John", "'s", "."]),
        ("@paul http://a.b/c?d=1 (3.5%)", ["@paul", "http://a.b/c?d=1", "(", "3.5", "%", ")"]),
        ("O'Brien's AT&T", ["O'Brien", "'s", "AT&T"]),
        ("東京へ go", ["東", "京", "へ", "go"]),
        (" \n", []),
    ],
)
def test_a_text_is_cut_into_words(text, words):
    assert [text[start:end] for start, end in words_of(text)] == words


def test_words_are_joined_and_found_again():
    text, spans = join_words(["New", "York", "!"])
    assert text == "New York !"
    assert [text[start:end] for start, end in spans] == ["New", "York", "!"]


def test_iob1_becomes_iob2():
    tags = ["I-a", "I-a", "B-a", "I-b", "O", "I-b", "I-b"]
    assert list(to_iob2(tags)) == ["B-a", "I-a", "B-a", "B-b", "O", "B-b", "I-b"]
    assert list(to_iob2(to_iob2(tags))) == list(to_iob2(tags))
    assert fault_of(tags, "iob1") is None
    assert fault_of(tags, "iob2").word == 0
    assert fault_of(["B-a", "I-b"], "iob2").word == 1
    assert fault_of(["B-a", "I-a", "O"], "iob2") is None


def test_entities_of_tags_and_their_scores_are_as_counted_by_hand():
    assert entities(["O", "B-a", "I-a", "B-a", "I-b", "O"]) == [
        ("a", 1, 2),
        ("a", 3, 3),
        ("b", 4, 4),
    ]
    true = [["B-a", "I-a", "O", "B-b"], ["B-a", "O"], ["O"], ["B-b", "I-b"]]
    said = [["B-a", "I-a", "O", "B-a"], ["B-a", "I-a"], ["B-b"], ["B-b", "I-b"]]
    # Right: the first, and the last sentence's; said are 5, there are 4.
    assert entity_scores(true, said) == pytest.approx(
        {
            "f1": 2 * 2 / 9,
            "precision": 2 / 5,
            "recall": 2 / 4,
            "f1/a": 2 * 1 / (2 + 3),
            "f1/b": 2 * 1 / (2 + 2),
        }
    )
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0


def test_first_tokens_are_those_of_transformers(minilm):
    """On every tweet: the same tokens, and the same ones begin a word."""
    rows = open_source(f"conll:{tweets()}/test.conll:ordered").rows(range(260))
    described = registry.describe(
        str(minilm), registry.LoadOptions(task="token_classification", labels=NAMES)
    )
    _, examples = examples_of(rows, described, names=None)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    encoded = theirs([row["tokens"] for row in rows], is_split_into_words=True)
    assert examples.counts["words"] == sum(len(row["tokens"]) for row in rows)
    for number in range(len(rows)):
        ours, words = examples.tokens[number], encoded.word_ids(number)
        assert ours["input_ids"].tolist() == encoded["input_ids"][number]
        first = [w if w is not None and w != words[i - 1] else -1 for i, w in enumerate(words)]
        assert ours["words"].tolist() == first


# ------------------------------------------------------------------------------------- the examples

ROWS = [
    {"tokens": ["the", "warmly", "films"], "tags": ["O", "B-good", "I-good"]},
    {"tokens": ["dull"], "tags": ["B-bad"]},
    {"tokens": ["a", "cold", "cast", "of", "stale", "plots"], "tags": [0, 1, "O", "O", 1, 2]},
]


def test_only_the_first_token_of_a_word_is_scored(model):
    _, examples = examples_of(ROWS, model)
    batch = examples.collate(np.array([[1, 0], [2, -1]]), 16)
    pieces = load_tokenizer(model.source.folder)
    assert len(pieces.encode(["warmly"]).ids[0]) == 4  # it has two tokens beside the special ones
    assert batch["targets"].tolist() == [
        [-1, 1, -1, -1, 0, 3, -1, 4, -1, -1, *[-1] * 6],
        [-1, 0, 1, 0, 0, 1, 2, -1, -1, *[-1] * 7],
    ]


def test_packed_rows_are_scored_as_rows_alone(model):
    task, examples = examples_of(ROWS, model)
    packed = examples.collate(np.array([[2, 0], [1, -1]]), 24)
    alone = examples.collate(np.array([[0], [1], [2]]), 16)
    outcomes = [task.outcomes(model(**batch), batch) for batch in (packed, alone)]
    together, single = ({n: np.asarray(v) for n, v in one.items()} for one in outcomes)
    for place, number in enumerate((2, 0, 1)):
        length = examples.lengths[number]
        one = (place // 2, place % 2)
        for name in ("loss", "scored"):
            np.testing.assert_allclose(together[name][one], single[name][number, 0], rtol=1e-5)
        for name in ("tags", "sure"):
            np.testing.assert_allclose(
                together[name][one][:length], single[name][number, 0, :length], rtol=1e-5
            )
    assert together["scored"][1, 1] == 0
    sums = [task.loss(model(**batch), batch) for batch in (packed, alone)]
    np.testing.assert_allclose(*sums, rtol=1e-5)
    assert float(sums[0][1]) == 10  # words
    assert float(task.metrics(model(**packed), packed)["accuracy"][1]) == 10


def test_a_word_without_a_token_is_outside_and_counted(model):
    rows = [{"tokens": ["a", "film", "of", "cast"], "tags": ["O", "O", "O", "B-good"]}]
    task, examples = examples_of(rows, model, length=5)
    assert examples.counts["words_without_a_token"] == 1
    assert examples.remarks == {0: {"cut": 1}}
    outcomes = {
        "tags": np.full((1, 8), 3),
        "sure": np.full((1, 8), 0.5),
        "loss": np.array([6.0]),
        "scored": np.array([3]),
    }
    (said,) = task.describe(given_rows(rows), outcomes, examples)
    assert [one["text"] for one in said["entities"]] == ["a", "film", "of"]
    assert said["gold"] == [{"type": "good", "text": "cast", "start": 10, "end": 14}]
    assert said["loss"] == 2.0
    assert task.summarise(outcomes, examples)["recall"] == 0.0


def test_loss_is_the_cross_entropy_of_first_tokens():
    task = make(Section(**TASK)).bind(None, ())
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 5, 3)).astype(np.float32)
    targets = np.array([[-1, 2, -1, 0, -1], [1, 1, -1, -1, -1]])
    total, weight = task.loss({"logits": jnp.asarray(logits)}, {"targets": jnp.asarray(targets)})
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, 3), torch.tensor(targets).reshape(-1), ignore_index=-1
    )
    assert float(weight) == 4
    assert float(total / weight) == pytest.approx(float(theirs), rel=1e-6)


# ----------------------------------------------------------------------------------------- the data


def test_the_tweets_of_the_demo():
    train, test = (
        open_source(f"conll:{tweets()}/{name}.conll:ordered") for name in ("train", "test")
    )
    assert (len(train), len(test)) == (2035, 260)
    words = [
        {" ".join(row["tokens"]) for row in one.rows(range(len(one)))} for one in (train, test)
    ]
    assert [len(one) for one in words] == [2035, 260]
    assert not words[0] & words[1]
    assert len(make(Section(**TASK)).label_names(train)) == 21


def test_conll_files_with_tabs_with_spaces_and_with_documents(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nNew York\tB-LOC\r\n, \tO"
    )
    rows = open_source(f"conll:{path}:ordered").rows(range(2))
    assert rows == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["New York", ","], "tags": ["B-LOC", "O"]},
    ]


class Conll2003(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The schema of TFDS' conll2003: tags are lists of class labels."""

    NER = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

    def __init__(self, home):
        self.name = "conll2003"
        self.VERSION = tfds.core.Version("1.0.0")
        super().__init__(data_dir=home, file_format="array_record")

    def _info(self):
        labels = tfds.features.Sequence(tfds.features.ClassLabel(names=list(self.NER)))
        other = tfds.features.Sequence(tfds.features.ClassLabel(names=["A", "B"]))
        features = {"tokens": tfds.features.Sequence(tfds.features.Text())}
        features |= {"pos": other, "chunks": other, "ner": labels}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(8), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            words = ["the", "warm", "cast", "of", "scene"][: 3 + number % 3]
            tags = ["O", "B-PER", "I-PER", "O", "B-LOC"][: len(words)]
            other = ["A"] * len(words)
            yield number, {"tokens": words, "pos": other, "chunks": other, "ner": tags}


def test_a_set_with_the_schema_of_conll2003(tmp_path, model):
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):
        Conll2003(str(tmp_path)).download_and_prepare()
    source = open_source(f"tfds:{tmp_path}/conll2003/1.0.0:train:ordered")
    task = make(Section(**TASK, tags="ner"))
    names = task.label_names(source)
    assert names == Conll2003.NER
    examples = task.bind(Tools(model, None, None), names).examples(source)
    assert [tags.tolist() for tags in examples.tags[:3]] == [
        [0, 1, 2],
        [0, 1, 2, 0],
        [0, 1, 2, 0, 5],
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"tokens": ["a"], "tags": ["I-bad"]},
            "word 1 ('a') has the tag 'I-bad' after 'O': in IOB2",
        ),
        ({"tokens": ["a"], "tags": ["NOUN"]}, "neither O nor B-TYPE nor I-TYPE"),
        ({"tokens": ["a"], "tags": ["B-other"]}, "'B-other', which is not among the train set's"),
        ({"tokens": ["a"], "tags": [9]}, "has the tag '9'"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 words and 1 tags."),
        ({"tokens": [], "tags": []}, "has no words."),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "word 2 is empty."),
        ({"tokens": "a film", "tags": ["O", "O"]}, "has tokens that are not a list of words"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "has tokens that are not a list of words"),
        ({"tokens": ["a"], "tags": "O"}, "has tags that are not a list"),
    ],
)
def test_a_row_that_is_not_as_it_has_to_be(row, said, model):
    with pytest.raises(UserError) as refused:
        examples_of([ROWS[0], row], model)
    assert refused.value.message.startswith("input: row 2")
    assert said in refused.value.message


def test_tags_that_cannot_be_learned(model, tmp_path):
    task = make(Section(**TASK))
    with pytest.raises(UserError, match="every word is tagged O"):
        task.label_names(given_rows([{"tokens": ["a"], "tags": ["O"]}]))
    with pytest.raises(
        UserError, match=r"row 2: word 1 \('b'\) has the tag 'film', which is neither"
    ):
        task.label_names(
            given_rows([{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["film"]}])
        )
    with pytest.raises(UserError, match="row 1 has numbers for tags, which have no names"):
        task.label_names(given_rows([{"tokens": ["a"], "tags": [1]}]))
    with pytest.raises(UserError, match="the list of tags lacks O"):
        make(Section(**TASK, labels=["B-a", "I-a"])).label_names(given_rows(ROWS))
    path = tmp_path / "bad.conll"
    path.write_text("a O\n\nfilm\n")
    with pytest.raises(UserError, match=r"bad.conll: row 2 \(line 3\) has no tag"):
        open_source(f"conll:{path}")
    path.write_text("b O\n\n\na I-x\n")
    source = open_source(f"conll:{path}", seed=1)  # a row is told by its place in the file
    with pytest.raises(UserError, match=r"bad.conll: row 2: word 1 \('a'\) has the tag 'I-x'"):
        task.bind(Tools(model, None, None), ("O", "B-x", "I-x")).examples(source)


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "alone"])
def test_layouts_change_no_score(config, layout):
    alone = scores(config, "alone")
    assert alone["f1"] >= 0
    assert scores(config, layout) == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
def test_a_run_learns_and_goes_on_to_the_same_bits(run, config, tmp_path):
    assert run.metrics["f1"] > 0.6  # where every word is outside, it is 0
    assert {"loss", "accuracy", "precision", "recall", "f1/good", "f1/bad"} < set(run.metrics)
    goes_on_to_the_same_bits(run, config, 50, tmp_path)


def test_predictions_are_those_of_the_export_in_transformers(run, capsys):
    text = "the warms films of stales , colds casts !"
    assert main(["predict", str(run.folder), text, ""]) == 0
    said, nothing = map(json.loads, capsys.readouterr().out.splitlines())
    assert nothing == {"text": "", "entities": []}
    folder = export(run.folder)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words(text.split(), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        shares = theirs(**encoded).logits[0].softmax(-1)
    numbers = encoded.word_ids(0)
    first = [i for i, w in enumerate(numbers) if w is not None and w != numbers[i - 1]]
    tags = [theirs.config.id2label[int(shares[place].argmax())] for place in first]
    _, spans = join_words(text.split())
    expected = [
        {
            "type": kind,
            "start": spans[begin][0],
            "end": spans[end][1],
            "text": text[spans[begin][0] : spans[end][1]],
            "score": pytest.approx(
                float(np.mean([shares[first[w]].max() for w in range(begin, end + 1)])), abs=1e-5
            ),
        }
        for kind, begin, end in entities(tags)
    ]
    assert said == {"text": text, "entities": expected}
    assert {"stales", "colds"} <= {one["text"] for one in said["entities"]}


def test_a_page_shows_what_was_tagged_and_what_was_found(run):
    path = run.folder / "predictions-test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    odd = {"text": "<b>a</b> & films", "entities": [], "loss": 9.0}
    odd["gold"] = [{"type": "good", "text": "a", "start": 3, "end": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, odd]))
    (run.folder / "digests.json").unlink()  # the predictions are changed on purpose
    page = write_page([run.folder]).read_text()
    assert "Missing data" not in page
    assert "Entities by type" in page
    assert '&lt;b&gt;<mark style="--k: var(--c1)">a <small>good</small></mark>&lt;/b&gt;' in page
    path.write_text('{"text": "a", "entities": [3], "gold": [], "loss": 1}\n')
    page = write_page([run.folder]).read_text()
    assert "The page leaves out the predictions on test." in page


def test_entities_are_marked_in_a_terminal():
    colours = {}
    line = {
        "text": "in York .",
        "entities": [{"type": "place", "start": 3, "end": 7, "score": 0.98}],
    }
    shown = marked(line, colours)
    assert isinstance(shown, Text)
    assert shown.plain == "in York [place 0.98] ."
    assert [str(span.style) for span in shown.spans] == ["bold cyan", "cyan"]
