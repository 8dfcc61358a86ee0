"""eval, predict and export as two processes: what one process prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxft.cli.main import main
from tests.support.launch import cache, content, ended, launch_hosts, write_config  # noqa: F401
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache", "ended")
# The program is not what is looked at, and several processes compile it.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """A run of one process, whose parameters lie on four devices of each of two hosts."""
    folder = tmp_path_factory.mktemp("together")
    config = tiny_config(
        folder,
        data={"batch_size": 24},
        mesh={"data": 2, "fsdp": 4},
        model={"dropout": 0.0},
        adapter={"kind": "lora", "rank": 2},
        train={"length": 4},
    )
    assert main(["train", write_config(config, folder / "c.yaml"), "--quiet"]) == 0
    return Path(config.run.dir) / "tiny"


def as_two(folder, *words):
    """Run a command as two processes, and return what the first prints, on both streams."""
    hosts = launch_hosts(folder, 2, *words, devices=4, **QUICK)
    assert [host.end() for host in hosts] == [0, 0], "\n".join(host.said for host in hosts)
    return hosts[0].said


@pytest.mark.slow
def test_two_processes_score_as_one(run, tmp_path, capsys):
    assert main(["eval", str(run)]) == 0
    alone = json.loads(capsys.readouterr().out)
    said = as_two(tmp_path, "eval", str(run))
    together = json.loads(said[said.index("{\n") :])  # behind Gloo's greeting
    assert together.keys() == alone.keys()
    for name, value in alone["metrics"].items():
        assert together["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_two_processes_predict_as_one(run, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a good film\na bad one\nso so\n")
    assert main(["predict", str(run), "--file", str(texts)]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = tmp_path / "two.jsonl"
    as_two(tmp_path, "predict", str(run), "--file", str(texts), "--out", str(out))
    together = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["text"] for line in together] == [line["text"] for line in alone]
    for ours, theirs in zip(together, alone, strict=True):
        values = (list(line["probabilities"].values()) for line in (ours, theirs))
        np.testing.assert_allclose(*values, atol=1e-6)


def test_two_processes_export_as_one(run, tmp_path, capsys):
    """To the byte but for the adapter's kernels, which are merged by another program."""
    assert main(["export", str(run), "--out", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    as_two(tmp_path, "export", str(run), "--out", str(tmp_path / "two"))
    alone, two = content(tmp_path / "alone"), content(tmp_path / "two")
    assert two.keys() == alone.keys()
    assert [name for name in two if two[name] != alone[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["export", "RUN", "--adapter"], "An adapter is written by one process."),
        (["eval", "RUN", "--split", "none"], "none"),
    ],
)
def test_what_two_processes_refuse(run, tmp_path, words, sentence):
    words = [str(run) if word == "RUN" else word for word in words]
    hosts = launch_hosts(tmp_path, 2, *words, devices=4, **QUICK)
    assert [host.end() for host in hosts] == [2, 2]
    assert sentence in hosts[0].said
