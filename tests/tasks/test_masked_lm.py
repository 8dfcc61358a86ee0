"""Hidden words: what is hidden and when, losses and scores, a run, its page and its predictions."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

import jaxft
from jaxft.cli.main import main
from jaxft.data.batching.loader import batches
from jaxft.data.batching.plans import TrainPlan
from jaxft.data.random import EpochRandom
from jaxft.data.sources.open import given_rows
from jaxft.data.text.masking import UNSCORED, choose_tokens, mask_tokens, most_masked
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.report.events import read_events
from jaxft.report.page.page import write_page
from jaxft.tasks.masked_lm.section import MaskedLmSection as Section
from jaxft.tasks.masked_lm.task import make
from jaxft.tasks.parts.tools import Tools
from tests.support.laid_out import LAYOUTS, goes_on_to_the_same_bits, scores
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import VOCABULARY, tiny_checkpoint, tiny_config

pytestmark = pytest.mark.usefixtures("cache")
TASK = {"kind": "masked_lm"}
MASK = len(VOCABULARY)
TEXTS = ["a fine film with a warm plot", "dull", "the coldly grimness of this stale cast scenes"]


def masked_checkpoint(folder):
    """The tiny BERT with a mask token in its tokenizer."""
    tiny_checkpoint(folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.add_special_tokens(["[MASK]"])
    words.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    masked_checkpoint(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return tiny_config(
        folder,
        task=TASK,
        optimizer={"lr": 5e-3},
        train={"length": "60 steps", "evaluate_every": "30 steps"},
        checkpoint={"every": "10 steps", "keep": 9},
        report={"tensorboard": False, "before": True},
    )


@pytest.fixture(scope="module")
def run(config, cache):  # noqa: F811 the fixture above
    return jaxft.train(config, quiet=True)


@pytest.fixture(scope="module")
def model(folder):
    return registry.load(str(folder / "checkpoint"), task="masked_lm")


def examples_of(texts, model, length=None, names=(), **section):
    task = make(Section(**TASK, **section)).bind(Tools(model, length, None), names or ())
    source = given_rows([{"text": text} for text in texts])
    return task, task.examples(source, labelled=names is not None)


# ------------------------------------------------------------------------------- what is hidden


def test_what_is_drawn_belongs_to_seed_epoch_and_example():
    def numbers(seed, epoch, example):
        return EpochRandom(seed, epoch).of(example).uniform(4).tolist()

    assert numbers(3, 1, 2) == numbers(3, 1, 2)
    different = {tuple(numbers(*told)) for told in ((3, 1, 2), (4, 1, 2), (3, 2, 2), (3, 1, 3))}
    assert len(different) == 4
    many = EpochRandom(0, 0).of(0).uniform(20_000)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)
    assert sorted(EpochRandom(0, 0).of(0).order(9).tolist()) == list(range(9))


def test_a_share_of_the_tokens_is_chosen_and_never_a_special_one():
    words = np.array([-1, 0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, -1])
    often = np.zeros(len(words))
    for number in range(2000):
        chosen = choose_tokens(words, 0.25, False, EpochRandom(0, 0).of(number))
        assert len(set(chosen)) == len(chosen) == 3  # of 12, rounded
        often[chosen] += 1
    assert often[[0, -1]].tolist() == [0, 0]
    np.testing.assert_allclose(often[1:-1] / 2000, 0.25, atol=0.04)
    assert len(choose_tokens(np.array([-1, 0, -1]), 0.15, False, EpochRandom(0, 0).of(0))) == 1


def test_whole_words_are_chosen_with_all_of_their_tokens():
    words = np.array([-1, 0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, -1])
    seen = set()
    for number in range(200):
        chosen = choose_tokens(words, 0.25, True, EpochRandom(0, 0).of(number))
        names = set(words[chosen].tolist())
        assert np.flatnonzero(np.isin(words, list(names))).tolist() == chosen.tolist()
        assert len(chosen) <= 3
        seen |= names
    assert seen == set(range(9))
    # A word with more tokens than may be hidden stays.
    assert len(choose_tokens(np.array([-1, 0, 0, 0, -1]), 0.15, True, EpochRandom(0, 0).of(0))) == 0


def test_of_the_chosen_80_percent_are_masked_10_are_others_and_10_stay():
    ids = np.full(40_000, 7)
    found = mask_tokens(ids, np.arange(len(ids)), 99, 50, EpochRandom(0, 0).of(0))
    assert (found.targets == 7).all()
    masked, same = (found.ids == 99).mean(), (found.ids == 7).mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / 50, abs=0.01)
    assert set(found.ids.tolist()) == {99, *range(50)}


def test_a_row_has_room_for_all_that_is_hidden_in_it():
    draw = np.random.default_rng(0)
    for _ in range(300):
        lengths = draw.integers(1, 30, draw.integers(1, 6))
        share = draw.uniform(0.05, 0.9)
        counts = [
            len(choose_tokens(np.r_[-1, np.arange(n), -1], share, False, EpochRandom(0, 0).of(0)))
            for n in lengths.tolist()
        ]
        assert sum(counts) <= most_masked(share, int(lengths.sum()) + 2 * len(lengths), len(counts))


def test_packed_rows_hide_what_rows_alone_hide(model):
    _, examples = examples_of(TEXTS, model, mask=0.4)
    draw = EpochRandom(5, 2)
    packed = examples.collate(np.array([[2, 1], [0, -1]]), 24, draw)
    alone = examples.collate(np.array([[0], [1], [2]]), 16, draw)
    for place, number in enumerate((2, 1, 0)):
        row, segment = divmod(place, 2)
        begin, length = packed["read_positions"][row, segment], examples.lengths[number]
        np.testing.assert_array_equal(
            packed["input_ids"][row, begin : begin + length], alone["input_ids"][number, :length]
        )
    assert (packed["targets"] >= 0).sum() == (alone["targets"] >= 0).sum() == 3 + 1 + 4
    whole = examples.tokens[0]["input_ids"]
    own = alone["targets"][0] != UNSCORED
    places = alone["masked_positions"][0][own]
    assert alone["targets"][0][own].tolist() == whole[places].tolist()
    again = examples.collate(np.array([[0], [1], [2]]), 16, EpochRandom(5, 3))
    assert not np.array_equal(again["masked_positions"], alone["masked_positions"])


def test_a_batch_is_the_same_wherever_a_run_begins_and_another_in_each_epoch(model):
    _, examples = examples_of(TEXTS * 4, model)
    plan = TrainPlan(examples.lengths, 3, 2, 32, 4)
    steps = plan.steps_per_epoch * 2

    def made(start):
        return [
            one["input_ids"] for one in batches(plan, examples.collate, start, steps, augment=True)
        ]

    whole, late = made(0), made(steps - 2)
    np.testing.assert_array_equal(whole[-2:], late)

    def hidden(ids):
        return [int((one == MASK).sum()) for one in ids]

    assert min(hidden(whole)) > 0
    first, second = (
        examples.collate(np.array([[0]]), 16, plan.epoch_random(s)) for s in (0, steps - 1)
    )
    assert not np.array_equal(first["masked_positions"], second["masked_positions"])


# ---------------------------------------------------------------------------- losses and scores


def test_the_loss_is_that_of_transformers(tiny_mlm):
    model = registry.load(str(tiny_mlm), task="masked_lm")
    task, examples = examples_of(["the movie was gorgeous .", "an hour too long ."], model)
    batch = examples.collate(np.array([[0], [1]]), 12, EpochRandom(1, 0))
    total, weight = task.loss(model(**batch), batch)
    labels = np.full(batch["input_ids"].shape, -100)
    for row in range(2):
        own = batch["targets"][row] != UNSCORED
        labels[row, batch["masked_positions"][row][own]] = batch["targets"][row][own]
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tiny_mlm).eval()
    with torch.no_grad():
        loss = theirs(
            input_ids=torch.tensor(batch["input_ids"]),
            attention_mask=torch.tensor(batch["segment_ids"]),
            labels=torch.tensor(labels),
        ).loss
    assert float(weight) == (labels >= 0).sum() > 1
    assert float(total / weight) == pytest.approx(float(loss), rel=1e-5)


def test_pseudo_perplexity_is_that_of_one_token_hidden_at_a_time(tiny_mlm):
    """Salazar et al. (2020), token by token in PyTorch."""
    model = registry.load(str(tiny_mlm), task="masked_lm")
    texts = ["the movie was gorgeous .", "an hour too long"]
    task, examples = examples_of(texts, model)
    scored = examples.scored()
    assert len(scored) == 5 + 4
    index = np.full((3, 3), -1)
    index.reshape(-1)[:9] = np.random.default_rng(0).permutation(9)
    batch = scored.collate(index, 32)
    outcomes = {
        n: np.asarray(v).reshape(9, -1) for n, v in task.outcomes(model(**batch), batch).items()
    }
    order = np.argsort(index.reshape(-1))
    outcomes = {name: value[order] for name, value in outcomes.items()}
    outcomes |= {name: outcomes[name][:, 0] for name in ("loss", "scored")}
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tiny_mlm).eval()
    words = transformers.AutoTokenizer.from_pretrained(tiny_mlm)
    losses = []
    for text in texts:
        ids = words(text, return_tensors="pt").input_ids
        for place in range(1, ids.shape[1] - 1):
            hidden = ids.clone()
            hidden[0, place] = words.mask_token_id
            with torch.no_grad():
                share = theirs(hidden).logits[0, place].log_softmax(-1)[ids[0, place]]
            losses.append(-float(share))
    np.testing.assert_allclose(outcomes["loss"], losses, rtol=1e-4)
    found = task.summarise(outcomes, scored)["pseudo_perplexity"]
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    said = list(task.describe(given_rows([{"text": t} for t in texts]), outcomes, scored))
    assert [one["text"] for one in said] == ["the movie was [MASK] .", "an hour too [MASK]"]
    assert [one["hidden"] for one in said] == ["gorgeous", "long"]
    assert said[1]["loss"] == pytest.approx(np.mean(losses[5:]), rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 3, 50])
def test_every_token_is_hidden_once_where_texts_are_scored(model, at_once):
    _, examples = examples_of(TEXTS, model, scored_at_once=at_once)
    scored = examples.scored()
    hidden = [[] for _ in TEXTS]
    for number in range(len(scored)):
        batch = scored.collate(np.array([[number]]), 16)
        own = batch["targets"][0] != UNSCORED
        assert 1 <= own.sum() <= at_once
        places = batch["masked_positions"][0][own]
        assert (batch["input_ids"][0][places] == MASK).all()
        hidden[scored.texts[number]] += places.tolist()
    for text, places in enumerate(hidden):
        assert sorted(places) == list(range(1, examples.lengths[text] - 1))


def test_long_texts_become_several_examples_without_a_token_lost(model):
    _, whole = examples_of(TEXTS, model)
    _, pieces = examples_of(TEXTS, model, length=5)
    assert pieces.lengths.max() == 5
    inner = [
        np.concatenate([one.tokens[n]["input_ids"][1:-1] for n in range(len(one))]).tolist()
        for one in (whole, pieces)
    ]
    assert inner[0] == inner[1]
    assert pieces.rows.tolist() == pieces.tokens.meta["rows"]
    assert pieces.rows.tolist()[:4] == [0, 0, 0, 1]
    assert pieces.rows.max() == len(TEXTS) - 1 < len(pieces) - 1
    scored = pieces.scored()
    assert scored.rows.tolist() == pieces.rows[scored.texts].tolist()
    with pytest.raises(UserError, match="leaves no room for text"):
        examples_of(TEXTS, model, length=2)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_a_row_without_a_text(text, model):
    with pytest.raises(UserError, match=r"row 2 has (no text|7 in text, which is not a text)\."):
        examples_of(["fine", text], model)


def test_a_tokenizer_without_a_mask_token(tmp_path):
    plain = registry.describe(
        str(tiny_checkpoint(tmp_path)), registry.LoadOptions(task="masked_lm")
    )
    with pytest.raises(UserError, match="has no mask token"):
        examples_of(TEXTS, plain)


def test_a_column_that_is_not_there(config, folder, capsys):
    path = folder / "bad.yaml"
    path.write_text(jaxft.config.load.to_yaml(config.dump()))
    assert main(["train", str(path), "task.text=txet"]) == 2
    assert "there is no column 'txet'" in capsys.readouterr().err
    assert (
        main(
            [
                "train",
                str(path),
                "train.trunk_cache=on",
                "groups=[{name: low, depth: [0, 1], freeze: true}]",
            ]
        )
        == 2
    )
    assert "examples change each time" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "alone"])
def test_layouts_change_no_score(config, layout):
    alone = scores(config, "alone")
    assert scores(config, layout) == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
def test_a_run_learns_and_goes_on_to_the_same_bits(run, config, tmp_path):
    told = {
        e["split"]: e for e in read_events(run.folder) if e["kind"] == "eval" and e["step"] == 0
    }
    assert set(told) == {"before"}
    assert run.metrics["pseudo_perplexity"] < 0.75 * told["before"]["pseudo_perplexity"]
    assert run.metrics["loss"] == pytest.approx(np.log(run.metrics["pseudo_perplexity"]))
    goes_on_to_the_same_bits(run, config, 40, tmp_path)


def test_blanks_of_packed_rows_are_filled_as_those_of_rows_alone(model):
    texts = ["a [MASK] film", "[MASK] [MASK] and a warm [MASK]", "dull [MASK]", "the [MASK]"]
    task, examples = examples_of(texts, model, names=None)

    def outcomes(index, row_length):
        batch = examples.collate(index, row_length)
        return task.outcomes(model.apply(model.params, batch, None), batch)

    packed = outcomes(np.array([[2, 1], [0, 3], [-1, -1]]), 24)
    alone = outcomes(np.arange(4)[:, None], 16)
    for place, number in enumerate((2, 1, 0, 3)):
        blanks = len(examples.positions(number))
        for name, tolerance in (("fills", 0), ("shares", 1e-6)):
            np.testing.assert_allclose(
                packed[name].reshape(-1, *packed[name].shape[2:])[place, :blanks],
                alone[name][number, 0, :blanks],
                atol=tolerance,
            )


def test_blanks_are_filled_as_by_the_export_in_transformers(run, capsys):
    texts = ["a [MASK] film with a [MASK]", "[MASK]"]
    assert main(["predict", str(run.folder), *texts]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    folder = export(run.folder)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for text, one in zip(texts, said, strict=True):
        encoded = words(text, return_tensors="pt")
        with torch.no_grad():
            shares = theirs(**encoded).logits[0].softmax(-1)
        places = (encoded.input_ids[0] == words.mask_token_id).nonzero()[:, 0]
        assert len(one["fills"]) == len(places)
        for place, fills in zip(places, one["fills"], strict=True):
            best = shares[place].topk(5)
            assert [f["token"] for f in fills] == words.convert_ids_to_tokens(best.indices.tolist())
            assert [f["probability"] for f in fills] == pytest.approx(
                best.values.tolist(), abs=1e-5
            )
    assert main(["predict", str(run.folder), "a film"]) == 2
    assert "'a film' has no [MASK] among its first 40 tokens." in capsys.readouterr().err


def test_a_page_shows_blanks_before_and_after(run):
    lines = [
        json.loads(x) for x in (run.folder / "predictions-eval.jsonl").read_text().splitlines()
    ]
    earlier = (run.folder / "predictions-before.jsonl").read_text().splitlines()
    assert len(lines) == len(earlier) == 15
    lines[0] |= {"text": "<b>[MASK]</b>", "blank": [3, 9], "hidden": "a&b"}
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "digests.json").unlink()
    (run.folder / "predictions-eval.jsonl").write_text(whole)
    page = write_page([run.folder]).read_text()
    assert "Missing data" not in page
    assert "&lt;b&gt;<mark>a&amp;b</mark>&lt;/b&gt;" in page
    assert page.count("<small>before</small>") == 15
    assert "before the first step in" in page
    (run.folder / "predictions-eval.jsonl").write_text(
        '{"id": 0, "text": "a", "blank": [0, 1], "hidden": "a", "fills": [1], "loss": 1}\n'
    )
    page = write_page([run.folder]).read_text()
    assert "The page leaves out the predictions on eval." in page
    lines[0] |= {"blank": [3]}
    (run.folder / "predictions-eval.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "not a start and an end" in write_page([run.folder]).read_text()
