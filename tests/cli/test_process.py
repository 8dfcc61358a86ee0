"""Settings of the whole process: the command line makes them, a call of the library none."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

from jaxft.cli.parts import process

CONFIG = """
run: {{name: none, dir: {folder}/runs}}
model: {{checkpoint: {folder}/no-checkpoint}}
task: {{kind: text_classification, text: text, label: label}}
data: {{train: "csv:{folder}/rows.csv", eval: "csv:{folder}/rows.csv", batch_size: 2}}
"""
STATE = """
import json, logging, sys
import fsspec, jax
def state():
    return {
        "programs": jax.config.jax_compilation_cache_dir,
        "seconds": jax.config.jax_persistent_cache_min_compile_time_secs,
        "hook": sys.unraisablehook is sys.__unraisablehook__,
        "filters": [len(logging.getLogger(name).filters) for name in ("absl", "asyncio")],
        "listings": fsspec.config.conf.get("gs", {}).get("use_listings_cache", True),
    }
"""
# Each call begins its work and then finds that something is not there.
LIBRARY = (
    STATE
    + """
before = state()
import jaxft
from jaxft.config.load import load_config
from jaxft.errors import UserError
from jaxft.inference.predict import predict
from jaxft.inference.score import score
from jaxft.runs.checkpoint import Checkpoints
from jaxft.studies.study import study
from jaxft.training.story import train
config = load_config(sys.argv[1])
folder = sys.argv[2]
calls = (
    lambda: train(config, quiet=True),
    lambda: study(config, {"optimizer.lr": [1e-3, 1e-4]}, quiet=True),
    lambda: score(folder),
    lambda: list(predict(folder, ["a"])),
)
refused = 0
for call in calls:
    try:
        call()
    except UserError:
        refused += 1
assert refused == len(calls), refused
with Checkpoints(folder + "/checkpoints"):
    pass
print(json.dumps([before, state()]))
"""
)
COMMAND = (
    """
import sys
from jaxft.cli.main import main
assert main() == 2
"""
    + STATE
    + "print(json.dumps(state()))"
)


def run(program, words, home, **variables):
    own = ("JAX_COMPILATION", "JAX_PERSISTENT", "FSSPEC")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    environ |= {"XDG_CACHE_HOME": str(home), "JAXFT_CACHE": str(home), "JAX_PLATFORMS": "cpu"}
    environ |= variables
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write(folder):
    (folder / "rows.csv").write_text("text,label\na,good\nb,bad\n")
    config = folder / "run.yaml"
    config.write_text(CONFIG.format(folder=folder))
    return str(config)


def test_calls_of_the_library_leave_the_process_as_it_was(tmp_path):
    before, after = run(LIBRARY, [write(tmp_path), str(tmp_path)], tmp_path)
    assert after == before


def test_the_command_line_sets_its_process_up(tmp_path):
    state = run(COMMAND, ["train", write(tmp_path)], tmp_path)
    assert state["programs"] is not None
    assert state["programs"].endswith("programs")
    assert state["seconds"] == 0.5
    assert not state["hook"]
    assert min(state["filters"]) > 0
    assert state["listings"] is False


def test_variables_of_jax_go_first(tmp_path):
    places = {
        "JAX_COMPILATION_CACHE_DIR": "gs://pod/programs",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "2",
    }
    state = run(COMMAND, ["train", write(tmp_path)], tmp_path, **places)
    assert (state["programs"], state["seconds"]) == ("gs://pod/programs", 2)


def test_what_is_left_of_a_failed_checkpoint_read_is_not_reported_again():
    def reported(error):
        reports = []
        process.report_unraisable(SimpleNamespace(object=None, exc_value=error), reports.append)
        return bool(reports)

    assert not reported(RuntimeError("Event loop is closed"))
    assert reported(RuntimeError("something else"))
    assert reported(ValueError("Event loop is closed"))


def test_a_read_of_a_checkpoint_that_failed_beside_another_is_not_logged():
    def logged(text):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, None, None)
        return process.not_about_orbax(record)

    never = "Task exception was never retrieved\nfuture: <Task coro=<read() done, defined at {}>>"
    assert not logged(never.format("/lib/orbax/checkpoint/_src/serialization.py:394"))
    assert logged(never.format("/home/someone/loop.py:3"))
