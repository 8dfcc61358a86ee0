"""The scripts of `tpu/`, against a `gcloud` that keeps its TPUs in a folder."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxft.engine.trained import open_trained
from jaxft.launch.supervise import PEER_LOST
from jaxft.launch.team import COMPUTATION_FAILED
from tests.support import fake_gcloud
from tests.support.launch import events
from tests.support.tiny import tiny_config
from tests.support.xla import xla_flags

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "tpu").glob("*.sh")), ROOT / "tpu" / "slurm.sbatch"]
COMMANDS = [path for path in SCRIPTS if path.name != "lib.sh"]

# In place of jaxft: counts to 12, and keeps how far it came where a bucket would be.
TRIVIAL = r"""
mkdir -p .venv/bin
cat > .venv/bin/jaxft <<'END'
#!/usr/bin/env bash
echo "worker $JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*" ${TOKEN:-}
for word in "$@"; do case $word in run.dir=*) kept=${word#run.dir=} ;; esac; done
first=0
if [[ " $* " == *' --resume '* && -f $kept/step ]]; then first=$(cat "$kept/step"); fi
trap 'echo saved; exit 143' TERM
for ((step = first + 1; step <= 12; step++)); do
    sleep 0.1
    [[ $JAX_PROCESS_ID != 0 ]] || echo $step > "$kept/step"
    [[ ! -f $kept/wrong ]] || { echo "jaxft: wrong." && exit 2; }
    # As a worker whose peer is gone waits for it for ever.
    while [[ -f $kept/hang && $step -eq 8 && $first -eq 0 ]]; do sleep 0.1; done
    crash=$kept/crash-$JAX_PROCESS_ID
    [[ ! -f $crash || $step -ne 5 ]] || { rm "$crash" && exit 1; }
done
echo "through from step $first"
END
chmod +x .venv/bin/jaxft
"""

# jaxft itself, by the Python of these tests, from the copy of the project on each worker.
TRUE = f"""
mkdir -p .venv/bin
cat > .venv/bin/jaxft <<'END'
#!/usr/bin/env bash
exec env XLA_FLAGS='{xla_flags(1)}' {sys.executable} -m jaxft "$@"
END
chmod +x .venv/bin/jaxft
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """The folder of a stand-in `gcloud`, which is on the PATH, with quick looks and no back-off."""
    folder = tmp_path / "cloud"
    for name, value in fake_gcloud.install(folder).items():
        monkeypatch.setenv(name, value)
    for name, value in {"TPU_POLL": "1", "TPU_BACKOFF": "0", "TPU_GRACE": "5"}.items():
        monkeypatch.setenv(name, value)
    yield folder
    fake_gcloud.end(folder)


def script(name, *words, code=0, seconds=1200):
    """Run a script; what it printed, both streams together."""
    command = ["bash", str(ROOT / "tpu" / name), *map(str, words)]
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, **how, text=True, timeout=seconds)
    assert done.returncode == code, done.stdout
    return done.stdout


def create(name="pod", *words, type="v5litepod-8"):  # of two workers
    return script("create.sh", name, "--type", type, *words)


def run(kept, *words, code=0, train=(), install=TRIVIAL):
    """`run.sh` with the trivial program, or another; `kept` is its run folder."""
    kept.mkdir(exist_ok=True)
    options = ["--install", install, "--logs", kept / "logs", *words]
    config = ["configs/sentiment.yaml", f"run.dir={kept}", *train]
    return script("run.sh", "pod", *options, "--", *config, code=code)


def asked(cloud, command):
    return [call for call in fake_gcloud.calls(cloud) if command in call]


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_script_is_strict_and_has_help(path):
    assert "\nset -euo pipefail\n" in path.read_text()
    done = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(f"tpu/{path.name} ")
    assert "--dry-run" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("create.sh", [], "give the TPU's name; --help shows how."),
        ("create.sh", ["pod"], "give --type, such as v5litepod-16; README.md lists them."),
        ("create.sh", ["pod", "--type"], "--type needs a value; --help shows them."),
        ("create.sh", ["Pod", "--type", "v6e-8"], "'Pod' cannot be a TPU's name"),
        ("create.sh", ["pod", "--type", "h100"], "no image is known for type 'h100'"),
        ("create.sh", ["pod", "--zone", "--spot"], "--zone needs a value"),
        ("create.sh", ["pod", "--timeout", "soon"], "--timeout needs a whole number, not 'soon'."),
        ("create.sh", ["pod", "other"], "one name at a time, not 'pod' and 'other'."),
        ("delete.sh", ["--force"], "there is no option --force; --help shows them."),
        ("run.sh", ["pod"], "give the config behind '--'"),
        ("run.sh", ["pod", "configs/a.yaml"], "what jaxft train takes stands behind '--'"),
        ("run.sh", ["pod", "--", "configs/a.yaml"], "there is no config configs/a.yaml in"),
        ("run.sh", ["pod", "--with", "assets/x", "--", "configs/sentiment.yaml"], "no assets/x"),
        ("run.sh", ["pod", "--env", "NOT_SET", "--", "configs/sentiment.yaml"], "NOT_SET is not"),
        ("run.sh", ["pod", "--", "configs/sentiment.yaml", "--overwrite"], "--overwrite would"),
        ("run.sh", ["pod", "--recreate", "--", "configs/sentiment.yaml"], "needs --type"),
        (
            "run.sh",
            ["pod", "--recreate", "--type", "v6e-8", "--", "configs/sentiment.yaml"],
            "--recreate needs a run folder that outlives the machines",
        ),
        ("run.sh", ["pod", "--", "configs/sentiment.yaml"], "pod is gone; tpu/create.sh makes it"),
        ("status.sh", ["pod"], "there is no TPU 'pod' here"),
        ("delete.sh", ["pod"], "no TPU 'pod' that tpu/create.sh made is here"),
        ("worker.sh", [], "give a config; --help shows how."),
        ("slurm.sbatch", [], "give a config; --help shows how."),
    ],
)
def test_a_wrong_argument_is_one_sentence(cloud, name, words, said):
    printed = script(name, *words, code=2)
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_without_gcloud_it_is_said(cloud, monkeypatch):
    (cloud / "bin" / "gcloud").unlink()
    monkeypatch.setenv("PATH", f"{cloud / 'bin'}:/usr/bin:/bin")
    assert "there is no gcloud on the PATH" in script("status.sh", code=2)


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    where = ["--zone", "us-central1-a"]
    printed = create("pod", "--spot", *where, "--dry-run", type="v5litepod-16")
    assert printed.splitlines()[0] == (
        "gcloud compute tpus queued-resources create pod --node-id=pod --quiet "
        "--zone=us-central1-a --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --labels=jaxft=pod --spot"
    )
    again = ["--recreate", "--type", "v5litepod-16", "--zone", "z", "--dry-run"]
    lines = script(
        "run.sh", "pod", *again, "--", "configs/sentiment.yaml", "run.dir=gs://b/runs"
    ).splitlines()
    middle = lines.index("# after a lost worker:")
    assert [line.split()[0] for line in lines[:middle]] == ["env", *["gcloud"] * 4]
    assert lines[middle - 1].endswith("worker.sh configs/sentiment.yaml run.dir=gs://b/runs'")
    assert lines[-1].endswith("worker.sh configs/sentiment.yaml run.dir=gs://b/runs --resume'")
    assert lines[middle + 1].startswith("gcloud compute tpus queued-resources delete pod ")
    assert all("--zone=z" in line for line in lines if line.startswith("gcloud"))
    script("status.sh", "pod", "--dry-run")
    script("delete.sh", "pod", "--dry-run")
    script("worker.sh", "--dry-run", "configs/sentiment.yaml")
    assert not (cloud / "calls.jsonl").exists()


def test_what_a_dry_run_prints_can_be_typed(cloud, tmp_path):
    create()
    printed = run(tmp_path / "kept", "--dry-run", train=["run.name=it's one"])
    (tmp_path / "kept" / "logs" / "0").mkdir(parents=True)
    typed = printed.partition("# after")[0]
    done = subprocess.run(["bash", "-euc", typed], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "run.name=it's one" in (tmp_path / "kept" / "logs" / "0" / "0.log").read_text()


def test_a_tpu_is_made_waited_for_looked_at_and_deleted(cloud):
    printed = create("pod", "--spot")
    assert "pod is ACCEPTED" in printed
    assert "pod is ACTIVE" in printed
    create()  # waits on, which is over at once
    assert len(asked(cloud, "create")) == 1
    assert script("status.sh") == "pod ACTIVE\n"
    assert "machines  READY HEALTHY" in script("status.sh", "pod")
    assert "--yes deletes without asking" in script("delete.sh", code=2)
    assert not asked(cloud, "delete")
    script("delete.sh", "--yes")
    assert script("status.sh") == ""


def test_why_a_tpu_does_not_come_is_printed(cloud, monkeypatch):
    monkeypatch.setenv("FAKE_GCLOUD_STATES", "ACCEPTED PROVISIONING FAILED")
    printed = script("create.sh", "pod", "--type", "v5litepod-16", code=1)
    assert "pod did not come" in printed
    assert fake_gcloud.GIVEN_UP in printed
    assert "tpu/delete.sh pod" in script("create.sh", "pod", "--type", "v5litepod-16", code=2)


def test_what_another_made_is_left_alone(cloud):
    how = ["--node-id=theirs", "--accelerator-type=v6e-8", "--runtime-version=x"]
    subprocess.run(["gcloud", "compute", "tpus", "queued-resources", "create", "theirs", *how])
    create("ours")
    assert "no TPU 'theirs' that" in script("delete.sh", "theirs", "--yes", code=2)
    script("delete.sh", "--yes")
    assert [call[4] for call in asked(cloud, "delete")] == ["ours"]
    assert "was not made by this script" in script("create.sh", "theirs", "--type", "v6e-8", code=2)


@pytest.mark.slow
def test_all_workers_run_the_project_and_the_first_is_shown(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "a secret")
    create(type="v5litepod-16")
    printed = run(tmp_path / "kept", "--env", "TOKEN", train=["optimizer.lr=1e-4"])
    assert "worker 0 of 4: train configs/sentiment.yaml" in printed
    assert "optimizer.lr=1e-4" in printed
    assert "a secret" in printed
    assert "through from step 0" in printed
    assert "worker 1 of 4" not in printed
    assert "worker 3 of 4" in (tmp_path / "kept" / "logs" / "0" / "3.log").read_text()
    home = cloud / "pod" / "worker-2" / "jaxft"
    assert (home / "jaxft" / "cli" / "main.py").is_file()
    assert not (home / ".git").exists()
    assert not (home / "assets").exists()
    assert "run       through from step 0" in script("status.sh", "pod")


@pytest.mark.slow
def test_a_preempted_tpu_is_made_again_and_the_run_goes_on(cloud, tmp_path):
    create("pod", "--spot")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "hang").touch()

    def take_away():
        while not (kept / "step").exists() or int((kept / "step").read_text() or 0) < 5:
            time.sleep(0.05)
        fake_gcloud.preempt(cloud, "pod", worker=1)

    thread = threading.Thread(target=take_away)
    thread.start()
    printed = run(kept, "--recreate", "--type", "v5litepod-8", "--spot")
    thread.join()
    assert "pod is PREEMPTED" in printed
    assert "worker 1:" in printed
    first = int(printed.rpartition("through from step ")[2].split()[0])
    assert 5 <= first <= 8
    assert [call[3] for call in asked(cloud, "create")] == ["create", "create"]
    assert "--spot" in asked(cloud, "create")[1]
    assert "--resume" in (kept / "logs" / "1" / "0.log").read_text()


@pytest.mark.full
def test_four_workers_train_one_is_taken_away_and_the_run_ends_as_an_undisturbed_one(
    cloud, tmp_path
):
    """Fine-tuning itself: four processes, a lost one, another TPU, and the same parameters."""
    config = tiny_config(tmp_path / "tiny")
    about = [
        f"model.checkpoint={config.model.checkpoint}",
        *(f"data.{split}={getattr(config.data, split)}" for split in ("train", "eval", "test")),
        f"data.cache={tmp_path / 'cache'}",
        "data.batch_size=24",
        "data.max_length=40",
        "train.length=40 steps",
        "train.evaluate_every=20 steps",
        "train.log_every=1",
        "checkpoint.every=5",
    ]
    ends = {}
    for name in ("undisturbed", "disturbed"):
        kept = tmp_path / name
        create("pod", "--spot", type="v5litepod-16")
        thread = threading.Thread(target=take_away_at, args=(cloud, kept / "sentiment", 12))
        if name == "disturbed":
            thread.start()
        again = ["--recreate", "--type", "v5litepod-16", "--spot"]
        printed = run(kept, *again, train=about, install=TRUE)
        if name == "disturbed":
            thread.join()
            assert "pod is PREEMPTED" in printed
            assert "Resumed at step" in printed
        script("delete.sh", "pod", "--yes")
        ends[name] = open_trained(kept / "sentiment", "last").model.params
        steps = [event["step"] for event in events(kept / "sentiment", "train")]
        assert steps == list(range(1, 41))
    for name, value in ends["undisturbed"].items():
        np.testing.assert_array_equal(ends["disturbed"][name], value, err_msg=name)


def take_away_at(cloud, run, step):
    """A worker is gone when the run has come that far."""
    while not any(event["step"] >= step for event in events(run, "train")[-1:]):
        time.sleep(0.05)
    fake_gcloud.preempt(cloud, "pod", worker=2)


@pytest.mark.slow
def test_a_crash_is_started_again_so_many_times(cloud, tmp_path):
    create()
    kept = tmp_path / "kept"
    kept.mkdir()
    for worker in (0, 1):
        (kept / f"crash-{worker}").touch()
    printed = run(kept, "--restarts", 1)
    assert "the run ended with code 1; pod is READY" in printed
    assert "through from step 5" in printed
    for worker in range(2):
        (kept / f"crash-{worker}").touch()
    (kept / "step").unlink()
    assert "it was started again 0 times" in run(kept, "--restarts", 0, code=1)


def test_what_a_person_did_wrong_is_not_tried_again(cloud, tmp_path):
    create()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "wrong").touch()
    printed = run(kept, code=2)
    assert "jaxft: wrong." in printed
    assert "not started again" in printed
    assert not (kept / "logs" / "1").exists()


def test_slurm_starts_the_run_and_queues_what_was_told_to_end(tmp_path, monkeypatch):
    for name, body in {
        "srun": 'echo "$*"; exit ${SRUN_CODE:-0}',
        "scontrol": 'echo "scontrol $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command = "srun --kill-on-bad-exit=1 .venv/bin/jaxft train configs/sentiment.yaml --resume\n"
    assert script("slurm.sbatch", "--dry-run", "configs/sentiment.yaml") == command
    ran = command.removeprefix("srun ")
    assert script("slurm.sbatch", "configs/sentiment.yaml") == ran
    monkeypatch.setenv("SRUN_CODE", "143")
    printed = script("slurm.sbatch", "configs/sentiment.yaml", "--resume", code=143)
    assert printed == ran + "slurm.sbatch: queued again, to go on\nscontrol requeue 7\n"
    for code in (2, 1):
        monkeypatch.setenv("SRUN_CODE", str(code))
        assert script("slurm.sbatch", "configs/sentiment.yaml", code=code) == ran
    for code in (PEER_LOST, COMPUTATION_FAILED, 137):  # what resuming mends, within bounds
        monkeypatch.setenv("SRUN_CODE", str(code))
        monkeypatch.setenv("SLURM_RESTART_COUNT", "19")
        printed = script("slurm.sbatch", "configs/sentiment.yaml", code=code)
        assert printed == (
            f"{ran}slurm.sbatch: queued again, to go on after exit code {code}\n"
            "scontrol requeue 7\n"
        )
        monkeypatch.setenv("SLURM_RESTART_COUNT", "20")
        assert script("slurm.sbatch", "configs/sentiment.yaml", code=code) == ran
