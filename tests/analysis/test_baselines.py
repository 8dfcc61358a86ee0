"""Baselines and warnings of a run: what simple models score, and what is wrong in sentences."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxft
from jaxft.analysis.baselines import CLASS, LINEAR, MEAN, baselines
from jaxft.analysis.data_warnings import text_warnings
from jaxft.data.sources.open import given_rows
from jaxft.engine.trained import open_trained
from jaxft.export.export import export
from jaxft.report.page.page import write_page
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

WORDS = ("good warm film", "bad cold film")


class Labelled(list):
    """Examples with labels."""

    @property
    def labels(self):
        return np.asarray(self[:])


def split_of(labels, texts):
    rows = given_rows([{"text": text} for text in texts])
    return SimpleNamespace(source=rows, examples=Labelled(labels))


def bound_of(texts=True):
    read = (lambda row: (row["text"],)) if texts else (lambda row: ())
    return SimpleNamespace(task=SimpleNamespace(input_columns=("text",), row_texts=read))


def test_the_most_frequent_class_and_a_linear_model_of_words():
    labels = np.array([0, 0, 0, 1, 1] * 4, np.int32)
    train = split_of(labels, [WORDS[label] for label in labels])
    scored = split_of(np.array([1, 1, 0]), [WORDS[1], WORDS[1], WORDS[0]])
    assert baselines(bound_of(), train, scored) == {
        CLASS: pytest.approx(1 / 3, abs=1e-6),
        LINEAR["i"]: 1.0,
    }
    assert set(baselines(bound_of(texts=False), train, scored)) == {CLASS}
    wordless = split_of(labels, ["?"] * 20)
    assert set(baselines(bound_of(), wordless, scored)) == {CLASS}


def test_the_mean_of_a_number_and_several_labels():
    numbers = np.array([1.0, 3.0] * 10, np.float32)
    train = split_of(numbers, [WORDS[int(number > 2)] for number in numbers])
    found = baselines(bound_of(), train, train)
    assert found[MEAN] == 0
    assert found[LINEAR["f"]] > 0.5
    flags = split_of(np.zeros((20, 2), np.float32), [WORDS[0]] * 20)
    assert baselines(bound_of(), flags, flags) == {}


def facts(**counts):
    none = {"examples": 100, "tokens": 1000, "truncated": 0, "truncated_tokens": 0, "unknown": 0}
    return none | counts


def tools(length, most):
    return SimpleNamespace(max_length=length, model=SimpleNamespace(max_positions=most))


@pytest.mark.parametrize(
    ("counts", "lengths", "sentences"),
    [
        ({}, (128, 512), []),
        (
            {"truncated": 86, "truncated_tokens": 3545},
            (128, 512),
            [
                "86.0% of the texts are longer than 128 tokens and lose 78.0% of all tokens: "
                "data.max_length can be up to 512"
            ],
        ),
        (
            {"truncated": 2, "truncated_tokens": 100},
            (512, 512),
            [
                "2.0% of the texts are longer than 512 tokens and lose 9.1% of all tokens: shorten "
                "the texts to the relevant part, or use a checkpoint with more positions"
            ],
        ),
        (
            {"unknown": 980},
            (128, 512),
            [
                "98.0% of the tokens are unknown to the tokenizer: check that it is the "
                "checkpoint's own (vocabulary, do_lower_case), or use a checkpoint for these texts"
            ],
        ),
    ],
)
def test_truncated_and_unknown_tokens_are_warnings_with_a_mend(counts, lengths, sentences):
    assert text_warnings(facts(**counts), tools(*lengths)) == sentences


@pytest.fixture(scope="module")
def regression(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A run on raw targets of mean 150 and deviation 80, in rows of 4 tokens."""
    folder = tmp_path_factory.mktemp("regression")
    config = tiny_config(folder)
    lines = (folder / "reviews.csv").read_text().splitlines()
    raw = [f"{line[:-1]}{150 + 80 * (2 * int(line[-1]) - 1)}" for line in lines[1:]]
    (folder / "reviews.csv").write_text("\n".join([lines[0], *raw]) + "\n")
    config = tiny_config(
        folder,
        task={"problem": "regression"},
        data={"max_length": 4},
        train={"length": "3 epochs"},
    )
    return jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_raw_targets_are_standardized_and_given_back(regression):
    """The loss is in deviations, the RMSE and predictions in the data's units."""
    about = open_trained(regression.folder).run.read_json("run.json")
    assert about["fitted"]["mean"] == pytest.approx(150, abs=20)
    assert about["fitted"]["deviation"] == pytest.approx(80, abs=1)
    assert about["best_metric"] == "r2"
    metrics = regression.metrics
    assert metrics["rmse"] == pytest.approx(
        about["fitted"]["deviation"] * metrics["loss"] ** 0.5, rel=1e-4
    )
    assert metrics["rmse"] < 100
    assert MEAN in regression.result["baselines"]


def test_an_export_predicts_in_the_units_of_the_data(regression, tmp_path):
    trained = open_trained(regression.folder)
    batch = {"input_ids": np.array([[2, 4, 9, 3]]), "attention_mask": np.ones((1, 4), int)}
    standardized = float(trained.model(**batch)["logits"][0, 0])
    exported = jaxft.load(export(regression.folder, tmp_path / "out"))
    logits = float(jax.device_get(exported(**batch)["logits"])[0, 0])
    facts_ = trained.task.facts
    assert logits == pytest.approx(standardized * facts_["deviation"] + facts_["mean"], rel=1e-5)
    assert float(regression.model()(**batch)["logits"][0, 0]) == pytest.approx(logits, rel=1e-6)


def test_warnings_are_in_the_record_and_on_the_page(regression):
    about = open_trained(regression.folder).run.read_json("run.json")
    (warning,) = [line for line in about["data"][0]["warnings"] if "longer than 4 tokens" in line]
    assert "data.max_length can be up to 40" in warning
    page = write_page([regression.folder]).read_text()
    assert warning in page
    assert "mean of the training rows" in page
