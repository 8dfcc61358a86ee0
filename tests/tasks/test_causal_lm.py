"""Next tokens as a task: from rows to batches, loss and scores, and a run handed back."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from jaxft.cli.main import main
from jaxft.data.sources.open import given_rows
from jaxft.data.text.answers import Exchange
from jaxft.data.text.chat import ChatTemplate
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.report.page.page import write_page
from jaxft.tasks.causal_lm.conversations import talk_of
from jaxft.tasks.causal_lm.section import CausalLmSection as Section
from jaxft.tasks.causal_lm.task import make
from jaxft.tasks.parts.tools import Tools
from jaxft.training.story import train
from tests.models.test_decoders import END, make_checkpoint
from tests.support.tiny import BAD, GOOD, tiny_config

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ROWS = [{"prompt": f"the film was {word}", "answer": "good"} for word in GOOD]
ROWS += [{"prompt": f"the film was {word}", "answer": "not so good"} for word in BAD]
CHAT = {"kind": "causal_lm", "prompt": "prompt", "answer": "answer"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama of random weights, with a chat template."""
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint(folder, "llama")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return registry.load(str(checkpoint), task="causal_lm")


def examples_of(task: dict, rows: list[dict], model, length: int | None = None):
    made = make(Section(**task)).bind(Tools(model, length, None), ())
    return made, made.examples(given_rows(rows))


def test_packed_rows_are_scored_as_rows_alone(model):
    """Targets stay inside their example, and so do the outcomes."""
    task, examples = examples_of(CHAT, ROWS[:3], model)
    packed = examples.collate(np.array([[2, 0], [1, -1]]), 96)
    alone = examples.collate(np.array([[0], [1], [2]]), 96)
    assert packed["targets"].shape == packed["input_ids"].shape
    ends = [packed["segment_ids"][0].tolist().count(1) - 1, examples.lengths[[2, 0]].sum() - 1]
    assert packed["targets"][0, ends].tolist() == [-1, -1]
    scored = packed["targets"] != -1
    places = np.argwhere(scored)
    following = packed["input_ids"][places[:, 0], places[:, 1] + 1]
    np.testing.assert_array_equal(packed["targets"][scored], following)

    outcomes = [task.outcomes(model(**batch), batch) for batch in (packed, alone)]
    for name in ("loss", "scored"):
        together, single = (np.asarray(one[name]) for one in outcomes)
        np.testing.assert_allclose(together.ravel()[[1, 2, 0]], single[:, 0], rtol=1e-5)
        assert together[1, 1] == 0
    sums = [task.loss(model(**batch), batch) for batch in (packed, alone)]
    np.testing.assert_allclose(*sums, rtol=1e-5)
    assert float(sums[0][1]) == examples.counts["scored"] == scored.sum()


def test_scores_are_per_token_whatever_the_length_of_an_example():
    task = make(Section(kind="causal_lm", text="text")).bind(None, ())
    outputs = {
        "losses": np.array([[1.0, 2.0, 0.0, 3.0]], np.float32),
        "hits": np.array([[True, False, False, True]]),
    }
    batch = {
        "targets": np.array([[7, 8, -1, 9]]),
        "segment_ids": np.array([[1, 1, 1, 2]]),
        "weights": np.ones((1, 2), np.float32),
    }
    outcomes = {name: np.asarray(v) for name, v in task.outcomes(outputs, batch).items()}
    assert outcomes["loss"].tolist() == [[3.0, 3.0]]
    assert outcomes["scored"].tolist() == [[2.0, 1.0]]
    assert [float(x) for x in task.loss(outputs, batch)] == [6.0, 3.0]
    assert [float(x) for x in task.metrics(outputs, batch)["accuracy"]] == [2.0, 3.0]
    examples = SimpleNamespace(tokens=SimpleNamespace(meta={"bytes": 12}))
    kept = {name: value.ravel() for name, value in outcomes.items()}
    scores = task.summarise(kept, examples)
    assert scores.keys() | {"loss", "accuracy"} == set(task.task.metrics)
    np.testing.assert_allclose(scores["perplexity"], math.exp(2.0))
    np.testing.assert_allclose(scores["bits_per_byte"], 6.0 / math.log(2) / 12)


def test_documents_fill_rows_and_say_how_many_bytes_they_are(model):
    rows = [{"text": "a film of the cast " * 9}, {"text": "dull"}, {"text": ""}]
    task, examples = examples_of({"kind": "causal_lm", "text": "text"}, rows, model, 16)
    assert examples.lengths.max() == 16
    assert examples.rows[-1] == 1
    assert examples.counts["left_out"] == 1  # the empty one
    assert examples.tokens.meta["bytes"] == sum(len(row["text"]) for row in rows)
    count = len(examples)
    outcomes = {"loss": np.full(count, 8.0), "scored": np.full(count, 4.0)}
    said = list(task.describe(given_rows(rows), outcomes, examples))
    assert said[-1] == {"text": "dull", "tokens": 4, "loss": 2.0}
    assert len(said) == count


def test_what_cannot_be_learned_from_is_a_sentence(model, tmp_path):
    with pytest.raises(UserError, match="no row has a token to learn within 8 tokens"):
        examples_of(CHAT, ROWS, model, 8)
    with pytest.raises(UserError, match=r"input: row 1 is not a conversation"):
        examples_of({"kind": "causal_lm", "messages": "m"}, [{"m": "hello"}], model)
    bare = tmp_path / "bare"
    make_checkpoint(bare, "gpt2")
    with pytest.raises(UserError, match="has no chat template, and the task reads conversations"):
        examples_of(CHAT, ROWS, registry.load(str(bare)))


@pytest.mark.slow
def test_a_run_learns_to_answer_and_is_handed_back(checkpoint, tmp_path, capsys):
    for name, rows in (("train", ROWS * 3), ("test", ROWS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    config = tiny_config(
        tmp_path,
        model={"checkpoint": str(checkpoint)},
        task=CHAT,
        data={
            "train": f"jsonl:{tmp_path}/train.jsonl",
            "eval": f"jsonl:{tmp_path}/test.jsonl",
            "test": f"jsonl:{tmp_path}/test.jsonl",
        },
        optimizer={"lr": 3e-2},
        train={"length": "40 steps"},
        mesh={"data": 8},
        report={"tensorboard": False, "before": True},
    )
    run = train(config, quiet=True)
    result = json.loads((run.folder / "result.json").read_text())
    scores = result["metrics"]
    np.testing.assert_allclose(scores["perplexity"], math.exp(scores["loss"]), rtol=1e-5)
    assert scores["loss"] < 3.0  # ln 300 is 5.7

    theirs = transformers.AutoModelForCausalLM.from_pretrained(export(run.folder)).eval()
    words = transformers.AutoTokenizer.from_pretrained(checkpoint)
    total = count = 0.0
    for row in ROWS:
        before = f"user: {row['prompt']}{END}assistant: "
        prompt, whole = (words(t)["input_ids"] for t in (before, before + row["answer"] + END))
        assert whole[: len(prompt)] == prompt
        ids = torch.tensor([whole])
        with torch.no_grad():
            logits = theirs(ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
        count += len(whole) - len(prompt)
    np.testing.assert_allclose(scores["loss"], float(total) / count, rtol=1e-4)

    assert main(["predict", str(run.folder), ROWS[0]["prompt"], "--max-new-tokens", "8"]) == 0
    answer = json.loads(capsys.readouterr().out)
    chat = words.apply_chat_template(
        [{"role": "user", "content": ROWS[0]["prompt"]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = theirs.generate(**chat, max_new_tokens=8, do_sample=False, pad_token_id=0)
    new = written[0, chat["input_ids"].shape[1] :]
    assert answer["text"] == words.decode(new, skip_special_tokens=True)

    first, last = (
        json.loads((run.folder / f"answers-{when}.json").read_text())
        for when in ("before", "after")
    )
    wanted = {row["prompt"]: row["answer"] for row in ROWS}
    assert len(last) == 8
    assert {one["source"]: one["target"] for one in last}.items() <= wanted.items()
    assert main(["predict", str(run.folder), last[0]["source"], "--max-new-tokens", "4"]) == 0
    assert last[0]["written"].startswith(json.loads(capsys.readouterr().out)["text"])
    assert first != last
    page = write_page([run.folder]).read_text()
    assert "Generated texts" in page
    assert page.count("<small>before</small>") == page.count("<small>after</small>") == 8
    assert "Missing data" not in page


def test_a_conversation_is_asked_up_to_its_last_answer(model):
    said = [
        {"role": "user", "content": "good film"},
        {"role": "assistant", "content": "so good"},
        {"role": "user", "content": "why"},
    ]
    task, examples = examples_of(
        {"kind": "causal_lm", "messages": "messages"}, [{"messages": said}], model
    )
    asked = list(task.exchanges(given_rows([{"messages": said}]), examples, 8))
    assert asked == [Exchange(said[:1], "so good")]
    task, examples = examples_of({"kind": "causal_lm", "text": "text"}, [{"text": "a film"}], model)
    assert list(task.exchanges(given_rows([{"text": "a film"}]), examples, 8)) == []


TOOL = {"type": "function", "function": {"name": "rate", "description": None}}
TALK = [
    {"role": "user", "content": "good film"},
    {"role": "assistant", "content": "so good"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "fine"},
]


def test_what_is_scored_of_a_conversation_is_the_configs_choice(model):
    task = {"kind": "causal_lm", "messages": "m"}
    counts = [
        examples_of({**task, "train_on": on}, [{"m": TALK}], model)[1].counts
        for on in ("all", "last")
    ]
    assert counts[0]["tokens"] == counts[1]["tokens"]
    assert counts[0]["scored"] > counts[1]["scored"] > 1


def test_a_row_has_a_system_message_and_tools():
    section = Section(**CHAT, system="system", tools="tools")
    row = {**ROWS[0], "system": "Be brief.", "tools": json.dumps([TOOL])}
    talk = talk_of(section, row)
    assert [one["role"] for one in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[0]["content"] == "Be brief."
    assert talk.tools == [{"type": "function", "function": {"name": "rate"}}]
    talk = talk_of(section, {**row, "system": None, "tools": []})
    assert [one["role"] for one in talk.messages] == ["user", "assistant"]
    assert talk.tools is None
    calls = [{"function": {"name": "rate", "arguments": {"a": 1, "b": None}}}]
    own = Section(kind="causal_lm", messages="m")
    said = talk_of(own, {"m": [{"role": "assistant", "content": None, "tool_calls": calls}]})
    assert said.messages[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert said.messages[0]["content"] is None


def test_sharegpt_messages_are_conversations(model):
    turns = [("system", "system", "be brief"), ("human", "user", "the film was good")]
    turns += [("gpt", "assistant", "not so good")]
    theirs = [{"from": speaker, "value": text} for speaker, _, text in turns]
    ours = [{"role": role, "content": text} for _, role, text in turns]
    own = Section(kind="causal_lm", messages="m")
    assert talk_of(own, {"m": theirs}).messages == ours
    task = {"kind": "causal_lm", "messages": "m"}
    for speaker, written in (("observation", "observation"), ([1], r"\[1\]")):
        odd = [*theirs, {"from": speaker, "value": "7"}]
        with pytest.raises(UserError, match=rf"input: row 1 has a message from '{written}'"):
            examples_of(task, [{"m": odd}], model)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[{", "has no tools: tools is not JSON"),
        ({"name": "rate"}, "has no list of tools in tools"),
        (["rate"], "has no list of tools in tools"),
        (7, "has no list of tools in tools"),
    ],
)
def test_tools_that_are_no_list_are_a_sentence(model, cell, said):
    with pytest.raises(UserError, match=rf"input: row 1 {said}"):
        examples_of({**CHAT, "tools": "tools"}, [{**ROWS[0], "tools": cell}], model)


def test_keys_of_conversations_do_not_go_with_documents():
    for key in ({"tools": "tools"}, {"train_on": "last"}, {"ignore_empty_think": True}):
        with pytest.raises(ValidationError, match="belong to conversations"):
            Section(kind="causal_lm", text="text", **key)
    with pytest.raises(ValidationError, match="system belongs to prompt and answer"):
        Section(kind="causal_lm", messages="m", system="system")


def test_what_a_template_rewrites_is_a_warning_of_the_examples(model):
    tools = Tools(model, None, None)
    thought = "('hm ' if loop.last and m.role == 'assistant' else '')"
    thinking = TEMPLATE.replace("m.content", f"{thought} + m.content")
    vars(tools)["chat_template"] = ChatTemplate(
        model.tokenizer_folder, thinking, {"eos_token": END}
    )
    task = make(Section(kind="causal_lm", messages="m")).bind(tools, ())
    examples = task.examples(given_rows([{"m": TALK}, {"m": TALK[:2]}]))
    assert examples.rows.tolist() == [0, 0, 1]
    (said,) = examples.warnings
    assert "earlier answers of 1 of 2 conversations once they go on" in said
    assert examples.counts["left_out"] == 0
