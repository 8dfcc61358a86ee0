"""Texts written from others: what is learned, what is scored, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tokenizers
from sacrebleu.metrics import CHRF
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.inference.generate import _encode, open_writer
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import Settings, read_settings
from jaxft.models.load import load
from jaxft.models.tower.tower import PLAIN
from jaxft.report.page.page import render
from jaxft.report.page.run import read_run
from jaxft.report.page.views import view
from jaxft.tasks.parts.written_texts import Writing, encode_targets
from jaxft.training.story import train
from tests.models.test_bart import write_small
from tests.support.small_assets import write_t5, write_verses

PREFIX = "translate : "


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A T5 of 2 + 2 blocks with a chat template, and sentences in two languages."""
    folder = tmp_path_factory.mktemp("seq2seq")
    write_t5(folder / "t5", blocks=2)
    (folder / "t5" / "chat_template.jinja").write_text("user : {{ messages[0].content }}")
    write_verses(folder / "verses")
    return folder


def config_of(folder: Path, **sections):
    return parse_config(
        {
            "run": {"name": "run", "dir": str(folder / "runs")},
            "model": {"checkpoint": str(folder / "t5"), "dropout": 0.0},
            "task": {"kind": "seq2seq", "source": "es", "target": "en", "prefix": PREFIX},
            "data": {
                "train": f"jsonl:{folder}/verses/train.jsonl",
                "eval": f"jsonl:{folder}/verses/test.jsonl[:5]",
                "batch_size": 8,
                "max_length": 24,
                "cache": str(folder / "cache"),
            },
            "optimizer": {"lr": 3e-2},
            "train": {"length": "30 steps", "evaluate_every": 15},
            "checkpoint": {"every": 30},
            "report": {"tensorboard": False, "before": True},
        }
        | sections
    )


@pytest.fixture(scope="module")
def run(folder):
    return train(config_of(folder), quiet=True)


def lines_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(run) -> list[dict]:
    return lines_in(run.folder / "predictions-eval.jsonl")


@pytest.mark.slow
def test_it_learns_to_translate(run):
    evals = [e for e in lines_in(run.folder / "metrics.jsonl") if e["kind"] == "eval"]
    first, last = evals[0], evals[-1]
    assert last["loss"] < first["loss"]
    assert {"bleu", "chrf", "exact_match", "accuracy"} <= last.keys()
    assert last["chrf"] > 30


def test_what_is_scored_is_what_the_model_writes(run, folder):
    """Five rows of eight, over eight devices: the texts are those of `Generator`, one by one."""
    lines = lines_of(run)
    assert len(lines) == 5
    model = run.model()
    tokenizer = build(config_of(folder)).splits["eval"].examples.writing.tokenizer
    sources = [tokenizer.encode([PREFIX + li["source"]]).ids[0].tolist() for li in lines]
    settings = Settings(max_new_tokens=10, eos_token_id=(1,))
    ours = [Generator(model).generate([source], settings)[0] for source in sources]
    assert [tokenizer.decode(ids) for ids in ours] == [line["written"] for line in lines]
    wanted = [line["target"] for line in lines]
    evals = lines_in(run.folder / "metrics.jsonl")
    best = max(e["chrf"] for e in evals if e.get("split") == "eval")  # not before it trains
    assert CHRF().corpus_score([li["written"] for li in lines], [wanted]).score == best


def test_the_run_writes_what_is_asked(run, capsys):
    """Behind the prefix that it has learned with, and no template; cut as in its training."""
    writer = open_writer(str(run.folder), None, {})
    for words, count in (("el", 4), ("el " * 40, 24)):
        ((ids,), _) = _encode(writer, [[{"role": "user", "content": words}]])
        assert len(ids) == count
    line = lines_of(run)[0]
    assert main(["predict", str(run.folder), line["source"], "--max-new-tokens", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == line["written"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"es": "el es", "en": " "}, "row 3 has no en."),
        ({"es": None, "en": "the"}, "row 3 has no es."),
        (
            {"es": "el", "en": "the red red red red red"},
            "row 3: its en has 7 tokens, and task.max_target_length is 5.",
        ),
    ],
    ids=["empty-target", "unpaired", "too-long"],
)
def test_a_bad_pair_is_named(folder, tmp_path, row, said):
    rows = [{"es": "el rojo", "en": "the red"}] * 2 + [row]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    config = config_of(folder)
    task = config.task.model_copy(update={"max_target_length": 5})
    data = config.data.model_copy(update={"train": f"jsonl:{file}:ordered"})
    with pytest.raises(UserError) as caught:
        build(config.model_copy(update={"task": task, "data": data}))
    assert caught.value.message == f"jsonl:{file}:ordered: {said}"


def test_a_target_that_is_too_long_is_left_out_where_bad_rows_are(folder, tmp_path):
    rows = [{"es": "el", "en": words} for words in ("the red", "the " * 9, "red")]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    config = config_of(folder)
    task = config.task.model_copy(update={"max_target_length": 5})
    data = {"train": f"jsonl:{file}:ordered", "on_bad_row": "skip"}
    data = config.data.model_copy(update=data)
    split = build(config.model_copy(update={"task": task, "data": data})).splits["train"]
    assert (len(split.examples), split.skipped) == (2, 1)


def test_a_long_source_is_cut_and_counted(folder):
    config = config_of(folder)
    data = config.data.model_copy(update={"max_length": 5})
    examples = build(config.model_copy(update={"data": data})).splits["train"].examples
    assert examples.counts["truncated"] == len(examples) == 100
    assert examples.collate(np.array([[0], [-1]]), 1)["input_ids"].shape == (2, 8)


def test_a_row_without_an_example_counts_for_nothing(folder):
    examples = build(config_of(folder)).splits["eval"].examples
    batch = examples.collate(np.array([[2], [-1]]), 1)
    assert (batch["targets"][1] == -1).all()
    assert batch["weights"].tolist() == [[1.0], [0.0]]
    own = batch["targets"][0]
    own = own[own >= 0]
    assert examples.writing.tokenizer.decode(own.tolist()) == examples.wanted[2]
    assert own[-1] == 1
    assert batch["decoder_input_ids"][0, : len(own)].tolist() == [0, *own[:-1].tolist()]


def test_what_was_written_before_is_beside_it(run):
    """In the folder, and on the page."""
    before, after = (lines_in(run.folder / f"predictions-{n}.jsonl") for n in ("before", "eval"))
    assert [line["source"] for line in before] == [line["source"] for line in after]
    assert [line["written"] for line in before] != [line["written"] for line in after]
    (shown,) = view(read_run(run.folder, "run"), 0)["written"]
    for line, earlier, one in zip(after, before, shown["texts"], strict=True):
        assert (one["source"], one["target"]) == (line["source"], line["target"])
        assert [made["written"] for made in one["predictions"]] == [
            earlier["written"],
            line["written"],
        ]
    assert shown["equal"] == sum(line["written"] == line["target"] for line in after)
    assert after[0]["source"] in render([read_run(run.folder, "run")])


LANGUAGES = {"<fr>": 3, "<de>": 4}
NLLB, MBART = "<fr> $A </s>", "$A </s> <fr>"


def written_targets(folder: Path, layout: str, forced: int | None, *texts: str) -> list[list[int]]:
    """Targets of a tokenizer that reads French, under a forced first token."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **LANGUAGES, "ein": 5, "Hund": 6}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.add_special_tokens([*LANGUAGES, "<s>", "</s>"])
    special = [(name, words[name]) for name in ("<s>", "</s>", "<fr>")]
    own.post_processor = TemplateProcessing(single=layout, special_tokens=special)
    folder.mkdir(exist_ok=True)
    own.save(str(folder / "tokenizer.json"))
    writing = Writing(load_tokenizer(folder), 2, 2, 9, forced)
    targets, counts = encode_targets(SimpleNamespace(place=str), texts, "de", writing)
    assert counts["target_tokens"] == sum(map(len, targets))
    return [one.tolist() for one in targets]


@pytest.mark.parametrize(
    ("layout", "forced", "wanted"),
    [
        (NLLB, 4, [4, 5, 6, 2]),
        (NLLB, 3, [3, 5, 6, 2]),
        (NLLB, None, [3, 5, 6, 2]),
        (MBART, None, [5, 6, 2]),
        (MBART, 4, [4, 5, 6, 2]),
        ("<s> $A </s>", 1, [1, 5, 6, 2]),
        ("$A </s>", 4, [4, 5, 6, 2]),
        ("$A", None, [5, 6, 2]),
    ],
)
def test_a_target_begins_with_the_token_that_is_forced(layout, forced, wanted, tmp_path):
    """Not with the language that the tokenizer reads, nor does it end in one."""
    assert written_targets(tmp_path, layout, forced, "ein Hund", "ein") == [
        wanted,
        [token for token in wanted if token != 6],
    ]


def test_an_evaluation_writes_under_the_checkpoints_rules(folder, tmp_path):
    """As `predict` does: a forced first token, and one that never comes."""
    own = PreTrainedTokenizerFast.from_pretrained(folder / "t5")
    tokens = {"vocab_size": len(own), "pad_token_id": 0, "eos_token_id": 1}
    source = tmp_path / "m2m"
    write_small(source, "m2m_100", **tokens, decoder_start_token_id=1)
    own.save_pretrained(source)
    rules = {"eos_token_id": 1, "forced_bos_token_id": 7, "bad_words_ids": [[9]]}
    (source / "generation_config.json").write_text(json.dumps(rules))
    (bound, batch), model = bound_batch(folder, source), load(str(source))
    assert (batch["decoder_input_ids"][:5, 1] == 7).all()
    # Without the rules each text repeats the word that never comes.
    name = "encoder/word/embedding"
    params = {**model.params, name: model.params[name].at[9].multiply(40.0)}
    run = jax.jit(lambda params, batch: bound.generated(params, batch, PLAIN))
    written = np.asarray(run(params, batch)["written"])
    assert (written[:, 0] == 7).all()
    assert (written != 9).all()
    settings, _ = read_settings(source, model.fields, {"max_new_tokens": written.shape[1]})
    sources = [row[row != 0].tolist() for row in batch["input_ids"][:2]]
    theirs = Generator(model.with_params(params)).generate(sources, settings)
    for row, text in zip(written, theirs, strict=False):
        assert row[: len(text)].tolist() == text


def bound_batch(folder: Path, source: Path):
    """The task on a checkpoint, and a batch of its evaluation."""
    model = {"checkpoint": str(source), "dropout": 0.0}
    setup = build(config_of(folder, model=model))
    return setup.bound, setup.splits["eval"].examples.collate(np.arange(5)[:, None], 1)
