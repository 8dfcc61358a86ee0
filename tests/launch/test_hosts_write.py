"""Text generation and search as two processes: what one process prints."""

import json

import pytest

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.training.story import train
from tests.models.test_decoders import make_checkpoint
from tests.support.launch import cache, ended, launch_hosts, write_config  # noqa: F401
from tests.support.tiny import tiny_config, train_and_eval
from tests.tasks import (
    test_captioning,
    test_causal_lm,
    test_contrastive,
    test_embedding,
    test_seq2seq,
)

pytestmark = pytest.mark.usefixtures("cache", "ended")
# The program is not what is looked at, and several processes compile it.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"


def lines_of(text):
    """The JSON of an output: lines, without how quick they were, or scores."""
    if "{\n" in text:  # one object over several lines, behind Gloo's greeting
        return [json.loads(text[text.index("{\n") :])["metrics"]]
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [{n: v for n, v in line.items() if n != "tokens_per_second"} for line in lines]


def assert_is_one_process(folder, capsys, *words, **variables):
    """Two processes of one device each print what one does."""
    capsys.readouterr()
    assert main(list(words)) == 0
    alone = lines_of(capsys.readouterr().out)
    hosts = launch_hosts(folder, 2, *words, **QUICK, **variables)
    assert [host.end() for host in hosts] == [0, 0], "\n".join(host.said for host in hosts)
    assert not lines_of(hosts[1].said)
    together = lines_of(hosts[0].said)
    assert len(together) == len(alone) > 0
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-6)  # some are rounded to 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["--temperature", "0.7", "--seed", "3"],
        pytest.param(["--beams", "3"], marks=pytest.mark.full),
    ],
    ids=["sampled", "beams"],
)
def test_a_chat_checkpoint_writes(how, tmp_path, capsys):
    """Its parameters lie on the devices of both."""
    make_checkpoint(tmp_path / "llama", "llama")
    (tmp_path / "llama" / "chat_template.jinja").write_text(TEMPLATE)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a witty plot\nstale\na good film of the year\n")
    words = ["predict", str(tmp_path / "llama"), "--file", str(prompts), "--json"]
    assert_is_one_process(tmp_path, capsys, *words, "--max-new-tokens", "4", *how)


def trained(config):
    """A short run of one process with a config, and with a mesh that two can form."""
    own = config.dump()
    own |= {"mesh": {"data": -1, "fsdp": 2}, "checkpoint": {"every": "4 steps"}}
    own["train"] |= {"length": "4 steps", "evaluate_every": "4 steps"}
    return str(train(parse_config(own), quiet=True).folder)


@pytest.mark.full
def test_captions_are_written_and_scored(tmp_path, capsys):
    """The evaluation generates too."""
    test_captioning.write_parts(tmp_path)
    test_captioning.write_emoji(tmp_path / "emoji")
    run = trained(test_captioning.config_of(tmp_path))
    pictures = str(next((tmp_path / "emoji").rglob("*.png")).parent)
    assert_is_one_process(tmp_path, capsys, "predict", run, pictures, "--json")
    assert_is_one_process(tmp_path, capsys, "eval", run, "--split", "eval")


@pytest.mark.full
def test_translations_are_written_and_scored(tmp_path, capsys):
    test_seq2seq.write_t5(tmp_path / "t5", blocks=2)
    test_seq2seq.write_verses(tmp_path / "verses")
    run = trained(test_seq2seq.config_of(tmp_path))
    rows = map(json.loads, (tmp_path / "verses" / "test.jsonl").read_text().splitlines())
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(row["es"] for row in rows))
    assert_is_one_process(tmp_path, capsys, "predict", run, "--file", str(texts), "--json")
    assert_is_one_process(tmp_path, capsys, "eval", run, "--split", "eval")


@pytest.mark.slow
def test_images_are_found(tmp_path, capsys):
    """Two processes embed again what one has."""
    test_contrastive.write_pictures(tmp_path)
    run = trained(test_contrastive.config_of(tmp_path))
    pictures = str(tmp_path / "pictures")
    words = ["search", run, "a warm film", "--images", pictures, "--json"]
    assert_is_one_process(tmp_path, capsys, *words, JAXFT_CACHE=str(tmp_path / "cache"))


@pytest.mark.full
def test_texts_are_found(tmp_path, capsys):
    test_embedding.write_pairs(tmp_path / "train.jsonl", 80)
    test_embedding.write_pairs(tmp_path / "eval.jsonl", 40, seed=1)
    data = {**train_and_eval(tmp_path, "jsonl"), "batch_size": 16}
    run = trained(tiny_config(tmp_path, task=test_embedding.TASK, data=data))
    lines = tmp_path / "lines.txt"
    lines.write_text("the dull plot\n\nwarm film\na cold scene\n")
    words = ["search", run, "warm film", "--texts", str(lines), "--json"]
    assert_is_one_process(tmp_path, capsys, *words)


@pytest.mark.full
def test_a_chat_run_writes_answers(tmp_path):
    """Before and after training, from parameters that lie on two processes."""
    make_checkpoint(tmp_path / "llama", "llama")
    (tmp_path / "llama" / "chat_template.jinja").write_text(test_causal_lm.TEMPLATE)
    lines = "".join(json.dumps(row) + "\n" for row in test_causal_lm.ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    rows = f"jsonl:{tmp_path}/rows.jsonl"
    config = tiny_config(
        tmp_path,
        model={"checkpoint": str(tmp_path / "llama")},
        task=test_causal_lm.CHAT,
        data={"train": rows, "eval": rows, "test": rows, "batch_size": 8},
        train={"length": "4 steps"},
        mesh={"data": -1, "fsdp": 2},
        report={"tensorboard": False, "before": True},
    )
    file = write_config(config, tmp_path / "c.yaml")
    assert main(["train", file, "run.name=alone", "--quiet"]) == 0
    hosts = launch_hosts(tmp_path, 2, "train", file, "run.name=two", "--quiet", **QUICK)
    assert [host.end() for host in hosts] == [0, 0], "\n".join(host.said for host in hosts)
    (before, alone), (after, _) = (
        [
            json.loads((tmp_path / "runs" / name / f"answers-{when}.json").read_text())
            for name in ("two", "alone")
        ]
        for when in ("before", "after")
    )
    assert before == alone
    # Two devices have other batches than eight: the texts of the trained model are its own.
    assert [one["source"] for one in after] == [one["source"] for one in before]
    assert after != before
    assert len(after) == 8
