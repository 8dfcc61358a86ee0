"""Preference pairs as a task: sequences, TRL's losses, the reference, and a run handed back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from jaxft.data.sources.open import given_rows
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models import load as registry
from jaxft.tasks.dpo import task as dpo
from jaxft.tasks.dpo.pairs import sampled_answers
from jaxft.tasks.dpo.section import DpoSection as Section
from jaxft.tasks.parts import frozen_outputs
from jaxft.tasks.parts.tools import Tools
from jaxft.training.story import train
from tests.models.test_decoders import END, make_checkpoint
from tests.support.tiny import BAD, GOOD, tiny_config

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ROWS = [
    {"prompt": f"the film was {word}", "chosen": "good", "rejected": "not so good"} for word in GOOD
]
ROWS += [{"prompt": f"the film was {word}", "chosen": "cold", "rejected": "fine"} for word in BAD]
TALK = [
    {"role": "user", "content": "good film"},
    {"role": "assistant", "content": "so good"},
    {"role": "user", "content": "why"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama of random weights with a chat template, and the same with other weights."""
    made = []
    for name in ("initial", "policy"):
        folder = tmp_path_factory.mktemp(name)
        make_checkpoint(folder, "llama")
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        made.append(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made[1])
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.05 * torch.randn(value.shape))
    theirs.save_pretrained(made[1])
    return made


@pytest.fixture(scope="module")
def model(folders):
    return registry.load(str(folders[0]), task="causal_lm")


@pytest.fixture(scope="module")
def policy(folders):
    return registry.load(str(folders[1]), task="causal_lm")


def bound_of(model, cache=None, length=None, **section):
    return dpo.make(Section(kind="dpo", **section)).bind(Tools(model, length, cache), ())


def count_passes(monkeypatch):
    """A list that grows with each pass of the reference model over a split."""
    calls, run = [], frozen_outputs._rows
    monkeypatch.setattr(
        frozen_outputs, "_rows", lambda *args, **how: calls.append(args) or run(*args, **how)
    )
    return calls


def sequence_log_probs(folder, words, rows):
    """PyTorch's log-probabilities of each answer's tokens: sums and counts, `[rows, 2]`."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    sums, counts = torch.zeros(len(rows), 2), torch.zeros(len(rows), 2)
    for number, row in enumerate(rows):
        before = f"user: {row['prompt']}{END}assistant: "
        for which, column in enumerate(("chosen", "rejected")):
            prompt, whole = (words(t)["input_ids"] for t in (before, before + row[column] + END))
            ids = torch.tensor([whole])
            with torch.no_grad():
                log_probs = theirs(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            answer = ids[0, len(prompt) :]
            sums[number, which] = log_probs.gather(1, answer[:, None]).sum()
            counts[number, which] = len(answer)
    return sums, counts


def trl_loss(sums, counts, reference, section):
    """`DPOTrainer.dpo_loss` of TRL, written out."""
    kind, beta = section.get("loss", "sigmoid"), section.get("beta", 0.1)
    smoothing = section.get("label_smoothing", 0.0)
    if kind == "ipo":
        sums, reference = sums / counts, reference / counts
    logits = (sums[:, 0] - sums[:, 1]) - (reference[:, 0] - reference[:, 1])
    if kind == "ipo":
        return (logits - 1 / (2 * beta)) ** 2
    right, wrong = (torch.nn.functional.logsigmoid(s * beta * logits) for s in (1, -1))
    return -right * (1 - smoothing) - wrong * smoothing


@pytest.mark.parametrize(
    "section", [{}, {"beta": 0.7, "label_smoothing": 0.1}, {"beta": 0.3, "loss": "ipo"}]
)
def test_the_loss_is_trls(section, folders, model, policy):
    bound = bound_of(model, **section)
    examples = bound.examples(given_rows(ROWS[:4]))
    batch = examples.collate(np.array([[2, 0], [1, 3]]), 192)
    outputs = policy(**batch)
    words = transformers.AutoTokenizer.from_pretrained(folders[0])
    reference, counts = sequence_log_probs(folders[0], words, ROWS[:4])
    np.testing.assert_allclose(examples.reference, reference, atol=2e-5)
    sums, _ = sequence_log_probs(folders[1], words, ROWS[:4])
    expected = trl_loss(sums, counts, reference, section)
    outcomes = bound.outcomes(outputs, batch)
    np.testing.assert_allclose(outcomes["loss"].ravel(), expected[[2, 0, 1, 3]], atol=1e-5)
    total, weight = bound.loss(outputs, batch)
    np.testing.assert_allclose(total / weight, expected.mean(), atol=1e-5)
    scale = section.get("beta", 0.1)
    own = (sums - reference) / (counts if section.get("loss") == "ipo" else 1) * scale
    margins = own[:, 0] - own[:, 1]
    streams = {name: float(s / w) for name, (s, w) in bound.metrics(outputs, batch).items()}
    assert streams.keys() | {"loss"} == set(bound.task.metrics)
    np.testing.assert_allclose(streams["reward_margin"], margins.mean(), atol=1e-5)
    np.testing.assert_allclose(streams["reward_chosen"], own[:, 0].mean(), atol=1e-5)
    np.testing.assert_allclose(streams["reward_rejected"], own[:, 1].mean(), atol=1e-5)
    assert streams["preference_accuracy"] == float((margins > 0).float().mean())
    assert streams["likelihood_accuracy"] == float((sums[:, 0] > sums[:, 1]).float().mean())


def test_packing_and_padding_change_no_pair(model, policy):
    bound = bound_of(model)
    examples = bound.examples(given_rows(ROWS[:3]))
    packed = examples.collate(np.array([[2, 0], [1, -1]]), 192)
    alone = examples.collate(np.array([[0], [1], [2]]), 160)
    assert packed["segment_ids"].max() == 4
    outcomes = [bound.outcomes(policy(**batch), batch) for batch in (packed, alone)]
    for name in ("loss", "rewards"):
        together, single = (np.asarray(one[name]) for one in outcomes)
        together = together.reshape(4, *together.shape[2:])
        np.testing.assert_allclose(together[[1, 2, 0]], single[:, 0], atol=1e-5)
    sums = [bound.sums(policy(**batch), batch) for batch in (packed, alone)]
    for name, (total, weight) in sums[0].items():
        assert float(weight) == float(sums[1][name][1]) == 3
        np.testing.assert_allclose(total, sums[1][name][0], atol=1e-4)


def test_only_the_tokens_of_the_last_answer_count(model, folders):
    """Neither the prompt's tokens nor the answers in it, also where the rest is truncated."""
    row = {
        "prompt": TALK,
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": "not so good",
    }
    examples = bound_of(model).examples(given_rows([row]))
    words = transformers.AutoTokenizer.from_pretrained(folders[0])
    for number, answer in enumerate(("good", "not so good")):
        one = examples.tokens[number]
        scored = one["targets"][one["targets"] != -1]
        assert words.decode(scored) == answer + END
    prompt = sum(one["targets"].tolist().count(-1) for one in (examples.tokens[0],))
    with pytest.raises(UserError, match=f"no row has tokens of both answers within {prompt}"):
        bound_of(model, length=prompt).examples(given_rows([row]))
    cut = bound_of(model, length=prompt + 1).examples(given_rows([row]))
    assert cut.counts["scored"] == 2
    assert cut.counts["truncated"] == 2
    assert (
        cut.remarks[0]["cut"]
        == cut.counts["truncated_tokens"]
        == examples.lengths[0] - sum(cut.tokens.lengths)
    )


def test_the_reference_is_the_initial_model_and_is_computed_once(
    model, policy, folders, tmp_path, monkeypatch
):
    calls = count_passes(monkeypatch)
    first = bound_of(model, tmp_path).examples(given_rows(ROWS))
    again = bound_of(model, tmp_path).examples(given_rows(ROWS))
    trained = model.with_params(policy.params)  # what a run's parameters have become
    later = bound_of(trained, tmp_path).examples(given_rows(ROWS))
    assert len(calls) == 1
    for one in (again, later):
        np.testing.assert_array_equal(one.reference, first.reference)
    other = bound_of(policy, tmp_path).examples(given_rows(ROWS))
    assert len(calls) == 2
    assert not np.allclose(other.reference, first.reference)


def test_a_row_that_is_no_pair_is_named(model, tmp_path):
    for change, message in (
        ({"rejected": "good"}, "input: row 2 has the same answer in chosen and rejected"),
        ({"chosen": " "}, "input: row 2 has no chosen"),
        ({"prompt": TALK[:2]}, "input: row 2 has no prompt in prompt"),
        ({"chosen": TALK[:1]}, "input: row 2 has no answer by the assistant in chosen"),
    ):
        rows = [ROWS[0], {**ROWS[1], **change}]
        with pytest.raises(UserError, match=message):
            bound_of(model).examples(given_rows(rows))
    with pytest.raises(UserError, match="there is no column 'worse'"):
        bound_of(model, rejected="worse").examples(given_rows(ROWS))
    with pytest.raises(ValueError, match="ipo has none"):
        Section(kind="dpo", loss="ipo", label_smoothing=0.1)
    bare = tmp_path / "bare"
    make_checkpoint(bare, "llama")
    with pytest.raises(UserError, match="has no chat template"):
        bound_of(registry.load(str(bare))).examples(given_rows(ROWS))
    fresh = replace(model, matching=replace(model.matching, new=("blocks/0/x",)))
    with pytest.raises(UserError, match="is not in the checkpoint"):
        bound_of(fresh).examples(given_rows(ROWS))


def test_rejected_answers_are_sampled_from_rows_of_other_prompts(model):
    rows = [
        {"prompt": "a", "chosen": "one"},
        {"prompt": "a", "chosen": "two"},
        {"prompt": "b", "chosen": "three"},
        {"prompt": "c", "chosen": "two"},
    ]
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    answers = [row["chosen"] for row in rows]
    sampled = sampled_answers(asked, answers)
    assert sampled == sampled_answers(asked, answers)
    assert sampled[0] == sampled[1] == "three"  # no answer of the same prompt, whoever has it
    assert sampled[2] in ("one", "two")
    assert sampled[3] in ("one", "three")
    many = [[{"role": "user", "content": str(number)}] for number in range(40)]
    assert len(set(sampled_answers(many, [str(number) for number in range(40)]))) > 15
    bound = bound_of(model, rejected=None)
    source = given_rows(rows)
    lines = list(
        bound.describe(
            source,
            {"rewards": np.zeros((4, 2)), "loss": np.zeros(4)},
            bound.examples(source),
        )
    )
    assert [line["rejected"] for line in lines] == sampled
    with pytest.raises(UserError, match=r"input: row 1: no other row has an answer"):
        bound.examples(given_rows(rows[:2]))


@pytest.mark.slow
def test_a_run_learns_the_preferences_and_is_handed_back(folders, tmp_path, monkeypatch):
    calls = count_passes(monkeypatch)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    rows = dict.fromkeys(("train", "eval", "test"), f"jsonl:{tmp_path}/rows.jsonl")

    def config(steps):
        return tiny_config(
            tmp_path,
            model={"checkpoint": str(folders[0])},
            task={"kind": "dpo"},
            data=rows,
            optimizer={"lr": 1e-2},
            train={"length": f"{steps} steps", "evaluate_every": "4 steps"},
            checkpoint={"every": "4 steps"},
            report={"tensorboard": False, "before": True},
        )

    run = train(config(8), quiet=True)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    before = next(event for event in events if event["kind"] == "eval")
    assert before["step"] == 0
    assert 0.3 <= before["preference_accuracy"] <= 0.7
    np.testing.assert_allclose(before["loss"], np.log(2), atol=1e-4)
    assert run.metrics["preference_accuracy"] >= 0.9
    assert run.metrics["loss"] < 0.6
    assert run.metrics["reward_margin"] > 0.2
    assert len(calls) == 1  # three splits of the same rows, one pass

    words = transformers.AutoTokenizer.from_pretrained(folders[0])
    folder = export(run.folder)
    sums, counts = sequence_log_probs(folder, words, ROWS)
    reference, _ = sequence_log_probs(folders[0], words, ROWS)
    expected = trl_loss(sums, counts, reference, {}).mean()
    np.testing.assert_allclose(run.metrics["loss"], expected, atol=2e-5)

    longer = train(config(12), resume=True, quiet=True)
    assert len(calls) == 1
    assert longer.metrics["preference_accuracy"] >= 0.9
