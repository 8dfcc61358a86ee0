"""Runs, data and checkpoints in a bucket: a small Google Cloud Storage on this machine."""

import json
import signal
import socket
import threading

import fsspec
import pytest
import yaml

from jaxft.cli.main import main
from jaxft.errors import UserError
from jaxft.storage.buckets import fetched
from tests.support.bucket_server import serve
from tests.support.launch import Launched, cache, ended, write_config  # noqa: F401 fixtures
from tests.support.tiny import tiny_config

pytestmark = [
    pytest.mark.usefixtures("cache"),
    # aiohttp, of gcsfs's way to send a file of a few megabytes
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]
BUCKET = "jaxft-test"
RUN = f"gs://{BUCKET}/runs/tiny"


@pytest.fixture(scope="module")
def server():
    """The server, which this process's clients ask until it ends."""
    with serve(BUCKET, "closed", "read-only") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        # It has read its environment; listings are as the command line has them.
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon", "use_listings_cache": False})
        patch.setitem(fsspec.config.conf, "gs", {"use_listings_cache": False})
        server.closed.add("closed")
        server.read_only.add("read-only")
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with a tiny checkpoint, its reviews, and a run that has trained there."""
    folder = tmp_path_factory.mktemp("local")
    config = settings(folder)
    assert main(["train", write_config(config, folder / "tiny.yaml")]) == 0
    return folder


def settings(folder, **overrides):
    train = {"length": "4 steps", "evaluate_every": "2 steps", "log_every": 1}
    saved = {"every": 1, "keep": 2}
    told = {"train": train, "checkpoint": saved, "report": {"tensorboard": True}}
    return tiny_config(folder, **told, **overrides)


@pytest.fixture(scope="module")
def config(server, local):
    """The config of the same run in a bucket, of a checkpoint and rows that lie there too."""
    for file in [*(local / "checkpoint").iterdir(), local / "reviews.csv"]:
        server.put(BUCKET, str(file.relative_to(local)), file.read_bytes())
    rows = f"csv:gs://{BUCKET}/reviews.csv"
    bucket = settings(
        local,
        run={"dir": f"gs://{BUCKET}/runs"},
        model={"checkpoint": f"gs://{BUCKET}/checkpoint"},
        data={"train": f"{rows}[:70%]", "eval": f"{rows}[70%:85%]", "test": f"{rows}[85%:]"},
    )
    return write_config(bucket, local / "bucket.yaml")


@pytest.fixture(scope="module")
def trained(server, config):
    """The names in the bucket after that run."""
    assert main(["train", config]) == 0
    return sorted(server.objects[BUCKET])


def read(server, name):
    return json.loads(server.objects[BUCKET][f"runs/tiny/{name}"][0])


def diary(text):
    """A run's losses and scores, without what depends on the clock."""
    said = [json.loads(line) for line in text.splitlines()]
    return [[event["step"], event.get("loss"), event.get("accuracy")] for event in said]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_of_a_folder(server, local, trained):
    run = local / "runs" / "tiny"
    there = {name.removeprefix("runs/tiny/") for name in trained if name.startswith("runs/tiny/")}
    plain = {str(path.relative_to(run)) for path in run.iterdir() if path.is_file()}
    assert {name for name in there if "/" not in name} == plain - {"run.lock"}
    assert {f"base/{path.name}" for path in (run / "base").iterdir()} <= there
    assert any(name.startswith("tensorboard/events") for name in there)
    steps = {name.split("/")[1] for name in there if name.startswith("checkpoints/")}
    assert {step for step in steps if step.isdigit()} == {
        path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()
    }
    assert read(server, "result.json") == json.loads((run / "result.json").read_text())
    told = server.objects[BUCKET]["runs/tiny/metrics.jsonl"][0].decode()
    assert diary(told) == diary((run / "metrics.jsonl").read_text())


@pytest.mark.slow
def test_it_goes_on_from_its_last_checkpoint(server, config, trained):
    names, result = server.objects[BUCKET], read(server, "result.json")
    told = diary(names["runs/tiny/metrics.jsonl"][0].decode())
    for name in [n for n in names if n.startswith("runs/tiny/checkpoints/4/")]:
        del names[name]
    del names["runs/tiny/result.json"]
    assert main(["train", config, "--resume"]) == 0
    assert read(server, "result.json") == result
    assert diary(names["runs/tiny/metrics.jsonl"][0].decode()) == told
    assert len(read(server, "run.json")["resumed"]) == 1


@pytest.mark.slow
def test_it_is_scored_asked_exported_and_shown(server, local, trained, capsys):
    words = "a witty and lovely film"
    assert main(["predict", str(local / "runs" / "tiny"), words, "--json"]) == 0
    expected = capsys.readouterr().out
    assert main(["predict", RUN, words, "--json"]) == 0
    assert capsys.readouterr().out == expected
    assert main(["eval", RUN]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == read(server, "result.json")["metrics"]
    assert main(["export", RUN]) == 0
    assert capsys.readouterr().out == f"{RUN}/export\n"
    here = fetched(f"{RUN}/export")
    assert main(["export", str(local / "runs" / "tiny")]) == 0
    weights = "model.safetensors"
    assert (here / weights).read_bytes() == (local / f"runs/tiny/export/{weights}").read_bytes()
    capsys.readouterr()
    assert main(["report", RUN]) == 0
    assert capsys.readouterr().out == f"{RUN}/report.html\n"
    assert b"</html>" in server.objects[BUCKET]["runs/tiny/report.html"][0]


@pytest.mark.slow
def test_it_is_replaced_only_when_asked(server, config, trained, capsys):
    assert main(["train", config]) == 2
    assert f"{RUN} already holds a run. Add --resume" in capsys.readouterr().err
    assert main(["train", config, "--overwrite", "train.length=1 steps"]) == 0
    assert read(server, "result.json")["step"] == 1
    assert not [name for name in server.objects[BUCKET] if ".old-" in name]


@pytest.mark.full
def test_a_run_that_is_killed_goes_on(server, config, local, ended):  # noqa: F811
    words = ["train", config, "run.name=killed", "train.length=60 steps"]
    first = Launched(local, *words)
    names = server.objects[BUCKET]
    saved = "runs/killed/checkpoints/5/"
    first.until(lambda: any(name.startswith(saved) for name in list(names)))
    first.stop(signal.SIGKILL)
    assert Launched(local, *words, "--resume").end() == 0
    undisturbed = Launched(local, *words, "run.name=whole")
    assert undisturbed.end() == 0
    told, whole = (
        json.loads(names[f"runs/{name}/result.json"][0])["metrics"] for name in ("killed", "whole")
    )
    assert told == whole


def test_rows_come_from_the_files_of_a_pattern(server):
    from jaxft.data.sources.open import open_source

    for number in (1, 2, 10):
        server.put(BUCKET, f"parts/p-{number}.jsonl", json.dumps({"n": number}).encode() + b"\n")
    found = open_source(f"jsonl:gs://{BUCKET}/parts/p-*.jsonl:ordered", seed=0)
    assert [row["n"] for row in found.rows(range(3))] == [1, 2, 10]
    assert found.reader.names == tuple(f"gs://{BUCKET}/parts/p-{n}.jsonl" for n in (1, 2, 10))
    server.put(BUCKET, "parts/p-2.jsonl", b'{"n": 3}\n')  # a copy that was kept is not taken
    again = open_source(f"jsonl:gs://{BUCKET}/parts/p-*.jsonl:ordered", seed=0)
    assert [row["n"] for row in again.rows(range(3))] == [1, 3, 10]


@pytest.mark.parametrize("name", ["evil/../../../slipped", "evil//../..//../slipped", "evil/a/.."])
def test_an_object_that_leads_out_of_the_cache_is_refused(server, tmp_path, monkeypatch, name):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "one" / "two" / "cache"))
    monkeypatch.setitem(server.objects, BUCKET, {})
    server.put(BUCKET, "evil/config.json", b"{}")
    server.put(BUCKET, name, b"PWNED")
    with pytest.raises(UserError, match=f"'{BUCKET}/{name}' leads outside its folder"):
        fetched(f"gs://{BUCKET}/evil")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_address_that_ends_above_its_cache_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    server.put(BUCKET, "up/../config.json", b"PWNED")
    with pytest.raises(UserError, match=r"'gs://jaxft-test/up/..' leads outside its folder"):
        fetched(f"gs://{BUCKET}/up/..")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run.dir=gs://closed/runs"], "gs://closed/runs/tiny cannot be written to: Forbidden"),
        (["run.dir=gs://read-only/runs"], "gs://read-only/runs/tiny cannot be written to: Forb"),
        (["run.dir=gs://nobodys/runs"], "cannot be written to: there is no such bucket or file."),
        (["data.train=csv:gs://closed/r.csv"], "gs://closed/r.csv cannot be reached: Forbidden"),
        (["data.train=csv:gs://jaxft-test/r.csv"], "gs://jaxft-test/r.csv does not exist."),
        (
            ["data.train=csv:http://127.0.0.1:1/r.csv"],
            "neither a local path nor a path in a",
        ),
        (
            ["model.checkpoint=zip://model::evil.zip"],
            "'zip://model::evil.zip' is neither a local path",
        ),
        (["run.dir=file:///anywhere"], "'file:///anywhere' is neither a local path nor"),
        (
            ["data.train=hf:gs://jaxft-test/rows"],
            "jaxft reads files from a bucket, but no folders.",
        ),
        (["model.checkpoint=gs://closed/model"], "gs://closed/model cannot be reached: Forbidden"),
    ],
)
def test_a_bucket_without_rights_is_one_sentence(server, config, capsys, words, sentence):
    assert main(["train", config, "run.name=other", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence.replace("/tiny", "/other") in said
    assert not server.objects["closed"]
    assert not [name for name in server.objects[BUCKET] if name.startswith("runs/other")]


def test_no_run_in_a_bucket_is_one_sentence(server, trained, capsys):
    assert main(["predict", f"gs://{BUCKET}/runs/tinny", "text"]) == 2
    assert "tinny" in capsys.readouterr().err
    assert main(["eval", f"gs://{BUCKET}/runs/tinny"]) == 2
    assert f"There is no run folder gs://{BUCKET}/runs/tinny." in capsys.readouterr().err
    assert main(["eval", "gs://closed/runs/tiny"]) == 2
    assert "gs://closed/runs/tiny cannot be reached: Forbidden" in capsys.readouterr().err


def test_the_doctor_looks_at_a_bucket(server, capsys):
    main(["doctor", "--dir", f"gs://{BUCKET}/runs"])
    assert "can be written to, listed and deleted from" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", "--dir", "gs://read-only/runs"]) == 1
    assert "cannot be written to: Forbidden" in " ".join(capsys.readouterr().out.split())


def test_without_its_client_the_install_line_is_named(server, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", _no_client)
    with pytest.raises(UserError, match=r"pip install 'jaxft\[gcs\]'"):
        fetched(f"gs://{BUCKET}/reviews.csv")


def _no_client(_):
    raise ImportError("Please install gcsfs to access Google Storage")


def test_a_config_in_a_run_names_the_bucket(server, trained):
    written = yaml.safe_load(server.objects[BUCKET]["runs/tiny/config.yaml"][0])
    assert written["run"]["dir"] == f"gs://{BUCKET}/runs"


@pytest.mark.slow
def test_a_study_lies_in_a_bucket_as_in_a_folder_and_goes_on_there(server, config, capsys):
    varied = ["--vary", "optimizer.lr=1e-3,1e-4", "--name", "study"]
    assert main(["study", config, *varied]) == 0
    files = {
        name.removeprefix("runs/study/") for name in server.objects[BUCKET] if "/study/" in name
    }
    plain = {"study.json", "study.parquet", "metrics.jsonl", "index.html", "best.yaml"}
    assert plain <= files
    assert any(name.startswith("parts/") for name in files)
    ranking = json.loads(server.objects[BUCKET]["runs/study/study.json"][0])
    del server.objects[BUCKET]["runs/study/study.parquet"]
    assert main(["study", config, *varied, "--resume"]) == 0
    assert json.loads(server.objects[BUCKET]["runs/study/study.json"][0]) == ranking
    capsys.readouterr()
    assert main(["plan", f"gs://{BUCKET}/runs/study/best.yaml"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["data", "describe", "csv:gs://b/r.csv", "--text", "text"],
        ["data", "describe", "csv:gs://b/part-*.csv", "--text", "text"],
        ["config", "gs://b/c.yaml"],
        ["eval", "gs://b/runs/one"],
        ["report", "gs://b/runs/one"],
        ["export", "gs://b/runs/one", "--out", "gs://b/export"],
        ["predict", "gs://b/runs/one", "text"],
    ],
)
def test_no_network_is_one_sentence(monkeypatch, capsys, words):
    """The clients try again and again, and log pages of tracebacks."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be reached: 127.0.0.1 does not answer (Connection refused)" in said


def test_a_host_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("jaxft.storage.buckets.MOST_BUCKET_SECONDS", 0.05)
    release = threading.Event()

    def wait(*_):
        release.wait()
        raise OSError("released")

    monkeypatch.setattr(socket, "create_connection", wait)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://nowhere.invalid")
    try:
        with pytest.raises(
            UserError, match=r"nowhere\.invalid does not answer \(no answer in 0.05"
        ):
            fetched("gs://b/r.csv")
    finally:
        release.set()
