"""Each of several hosts encodes and caches its share of the training rows; batches are the same."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import load_config
from jaxft.data.cache import DESCRIPTION, Ragged
from jaxft.data.shares import Share
from jaxft.device import distributed
from jaxft.engine.inputs import open_sources
from jaxft.engine.recipe import make_task, model_options
from jaxft.engine.setup import bind_task
from jaxft.errors import UserError
from jaxft.models.load import describe
from tests.models.test_decoders import make_checkpoint
from tests.support.launch import cache, ended, events, launch_hosts, write_config  # noqa: F401
from tests.support.small_assets import CONFIGS, small_assets
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache", "ended")
HOSTS = 3
# The program is not what is looked at, and several processes compile it.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TASKS = {"causal_lm": {"kind": "causal_lm", "text": "text"}, "text_classification": None}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint(folder, "llama")
    return str(folder)


@pytest.fixture
def config(llama, tmp_path, request):
    """Texts of which some are cut, or several examples, of the task that the test names."""
    task = TASKS[getattr(request, "param", "causal_lm")]
    own = {} if task is None else {"task": task, "model": {"checkpoint": llama}}
    return tiny_config(
        tmp_path,
        data={"max_length": 8, "batch_size": 8},
        train={"length": "6 steps", "evaluate_every": "3 steps", "log_every": 1},
        **own,
    )


# Some have several examples a row; two read images as well.
EXAMPLES = (
    "caption",
    "choices",
    "domain_adapt",
    "embed",
    "ner",
    "rerank",
    "translate",
    "visual_search",
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory, minilm, reviews):
    return small_assets(tmp_path_factory.mktemp("shares") / "assets", minilm, reviews)


def bound_of(config):
    task = make_task(config)
    data = config.data
    source = open_sources(task, {"train": data.specs["train"]}, data.where, 0)["train"]
    model = describe(config.model.checkpoint, model_options(config, task.label_names(source), ()))
    return bind_task(task, config, model, task.label_names(source), True), source


def on_hosts(make):
    """What `make` gives for the share of each of several hosts, which are threads here."""
    texts, here = [""] * HOSTS, threading.Barrier(HOSTS)

    def run(index):
        def gather(text):
            texts[index] = text
            here.wait(60)
            answers = list(texts)
            here.wait(60)
            return answers

        return make(Share(index, HOSTS, gather))

    with ThreadPoolExecutor(HOSTS) as pool:
        return list(pool.map(run, range(HOSTS)))


def with_share(bound, share):
    return replace(bound, tools=replace(bound.tools, share=share))


@pytest.mark.parametrize("config", TASKS, indirect=True)
def test_shares_are_the_whole(config):
    """To the bit, with what is known of all rows."""
    source, whole, _ = assert_whole(config)
    assert whole.remarks or len(whole) > len(source)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_configs_are_shared(name, assets, monkeypatch):
    monkeypatch.chdir(assets.parent)
    config = load_config(CONFIGS / f"{name}.yaml", ["data.max_length=16"])
    _, whole, _ = assert_whole(config)
    if name in ("rerank", "choices"):
        assert len(whole.tokens) > len(whole)


def test_the_longest_of_all_is_known(assets, tmp_path, monkeypatch):
    """The first host has the longest target, and the last one the longest source."""
    monkeypatch.chdir(assets.parent)
    file = tmp_path / "rows.jsonl"
    rows = [{"es": "el " * (n + 1), "en": "the " * (30 - n)} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(CONFIGS / "translate.yaml", [f"data.train=jsonl:{file}"])
    _, whole, parts = assert_whole(config)
    for part in parts:
        assert part.tokens.meta["longest"] == whole.tokens.meta["longest"]


def assert_whole(config):
    """Assert that the examples of hosts' shares are those of one host; return the rows and both."""
    bound, source = bound_of(config)
    whole = bound.examples(source)
    parts = on_hosts(lambda share: with_share(bound, share).examples(source))
    assert sum(len(part.tokens.own) for part in parts) == len(whole.tokens)
    assert len({part.fingerprint for part in parts}) == 1
    packed = config.task.kind not in ("captioning", "contrastive", "seq2seq")
    index = np.array([[7, 0, -1], [len(whole) - 1, 20 % len(whole), 7]])
    index = index if packed else index.reshape(-1, 1)
    wanted = whole.collate(index, 256)
    for part in parts:
        assert 0 < len(part.tokens.own) < len(whole.tokens) / 2
        assert part.tokens.own.folder != whole.tokens.folder
        np.testing.assert_array_equal(part.lengths, whole.lengths)
        assert (part.counts, part.remarks) == (whole.counts, whole.remarks)
        np.testing.assert_array_equal(part.rows, whole.rows)
        batch = part.collate(index, 256)
        assert batch.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(batch[name], values, err_msg=name)
        for number in (3, len(whole.tokens) - 1):
            ours, theirs = part.tokens[number], whole.tokens[number]
            assert ours.keys() == theirs.keys()
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values, err_msg=name)
    return source, whole, parts


def test_a_row_that_one_host_cannot_read_is_refused_by_all(config):
    bound, source = bound_of(config)

    def refused(share):
        own = with_share(bound, share)
        if share.index == 1:
            object.__setattr__(own.tools, "asked_length", 10**9)
        with pytest.raises(UserError, match=r"data\.max_length: 1000000000 tokens do not fit"):
            own.examples(source)

    on_hosts(refused)


def test_a_long_text_is_gathered_in_pieces(monkeypatch):
    """Of the length that the key-value store takes as one value."""
    store, me = {}, threading.local()

    class Client:
        def key_value_set(self, key, value):
            assert len(value) < distributed.PIECE + 9
            store[key] = value

        def blocking_key_value_get(self, key, milliseconds):
            while key not in store:
                time.sleep(0.001)
            return store[key]

    def state():
        return SimpleNamespace(client=Client(), process_id=me.index, num_processes=HOSTS)

    monkeypatch.setattr(distributed, "PIECE", 100)
    monkeypatch.setattr(distributed, "_state", state)
    monkeypatch.setattr(distributed, "_rounds", itertools.repeat(0))
    texts = ["", "a" * 100, "".join(map(str, range(99)))]

    def run(index):
        me.index = index
        return distributed.gather(texts[index])

    with ThreadPoolExecutor(HOSTS) as pool:
        assert list(pool.map(run, range(HOSTS))) == [texts] * HOSTS


def cached_rows(folder: Path) -> list[int]:
    """The numbers of examples of the entries of a cache of token ids."""
    return sorted(len(Ragged(file.parent)) for file in (folder / "data").glob(f"*/{DESCRIPTION}"))


@pytest.mark.slow
def test_two_hosts_train_as_one_each_with_its_share(config, tmp_path, monkeypatch):
    """The caches hold half of the training rows each, and all of the others; losses to 1e-6."""
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "alone"))
    data = config.data.model_copy(update={"cache": None})
    file = write_config(config.model_copy(update={"data": data}), tmp_path / "c.yaml")
    assert main(["train", file, "run.name=alone", "mesh.data=8", "--quiet"]) == 0
    *others, rows = cached_rows(tmp_path / "alone")
    hosts = launch_hosts(
        tmp_path,
        2,
        "train",
        file,
        "run.name=two",
        "--quiet",
        devices=4,
        JAXFT_CACHE=str(tmp_path / "first"),
        last_variables={"JAXFT_CACHE": str(tmp_path / "second")},
        **QUICK,
    )
    assert [host.end() for host in hosts] == [0, 0], "\n".join(host.said for host in hosts)
    (*first, here), (*second, there) = (cached_rows(tmp_path / n) for n in ("first", "second"))
    assert first == second == others
    assert here + there == rows
    assert abs(here - there) < rows / 10  # rows are halved, of which some are several examples
    runs = Path(config.run.dir)
    for kind in ("train", "eval"):
        ours, theirs = ([e["loss"] for e in events(runs / n, kind)] for n in ("two", "alone"))
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    about = [json.loads((runs / name / "run.json").read_text()) for name in ("two", "alone")]
    assert about[0]["data"] == about[1]["data"]
