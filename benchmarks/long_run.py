"""What a long run leaks: memory, open files, threads, and the time of its steps.

`python -m benchmarks.long_run` trains a 2-block BERT on the demo's reviews for 20,000 steps, with
an evaluation and a save every 500, as `jaxft train` does. The process is looked at from outside.
Wanted after a warm-up of 5,000 steps: memory grows by less than 1 MB per 1,000 steps, open files
and threads between saves stay as many as they are, and the CPU time of a step drifts by at most 3%
from the first step to the last. Then the report reads the run with a million events in its log, in
a process of its own, and again with a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import jaxft
from benchmarks.measure import record
from jaxft.config.load import to_yaml
from jaxft.demo import main as demo

CONFIG = "configs/sentiment.yaml"
EVERY = 250  # steps from one look at the process to the next
WINDOW = 1000  # steps of one measured time
WARM_UP = 5000
MOST_SLOPE = 1.0  # MB per 1,000 steps
MOST_DRIFT = 0.03
MOST_MORE = {"files": 0, "threads": 1}  # a thread of a pool that has just begun or is about to end
EVENTS = 1_000_000
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Look:
    """A process at a step: resident memory in MB, open files, threads, CPU seconds so far."""

    step: int
    memory: float
    files: int
    threads: int
    cpu: float


def config_text(folder: Path, steps: int) -> str:
    """The config of the run: small batches of short texts, embeddings frozen."""
    reviews = demo.reviews()
    changed = [
        f"run.dir={folder}",
        "run.name=long",
        f"model.checkpoint={demo.tiny_mlm()}",
        f"data.train=csv:{reviews}/train.csv[:90%]",
        f"data.eval=csv:{reviews}/train.csv[99%:]",
        f"data.test=csv:{reviews}/test.csv[:10%]",
        f"data.cache={folder}/cache",
        "data.batch_size=8",
        "data.max_length=32",
        "groups=[{name: embeddings, depth: [0, 0], freeze: true}]",
        f"train.length={steps} steps",
        "train.evaluate_every=500 steps",
        "train.log_every=10",
        "checkpoint.every=500",
    ]
    return to_yaml(jaxft.load_config(CONFIG, changed).dump())


def looks(process: subprocess.Popen, log: Path) -> Iterator[Look]:
    """Look at a training process every `EVERY` steps, until it ends."""
    due = EVERY
    while process.poll() is None:
        time.sleep(0.02)
        step = last_step(log)
        if step >= due:
            try:
                yield look(process.pid, step)
            except FileNotFoundError:  # it has just ended
                return
            due = (step // EVERY + 1) * EVERY


def last_step(log: Path) -> int:
    """The step of the last whole training event; 0 before the first."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 8192, 0))
        lines = file.read().split(b"\n")[:-1]
    trained = [line for line in lines if line.startswith(b'{"kind": "train"')]
    return json.loads(trained[-1])["step"] if trained else 0


def look(process: int, step: int) -> Look:
    """What the system says of a process."""
    folder = Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return Look(
        step=step,
        memory=pages * resource.getpagesize() / 2**20,
        files=len(list((folder / "fd").iterdir())),
        threads=int(fields[17]),
        cpu=(int(fields[11]) + int(fields[12])) / TICKS,
    )


def leaks(seen: Sequence[Look]) -> dict[str, float]:
    """Slopes and differences after the warm-up.

    Args:
        seen: the looks, in order.

    Returns:
        `memory_slope` in MB per 1,000 steps; the fewest `files` and `threads` of any look in the
        first and in the last third, since a save under way has dozens of both and a leak stays
        when it has ended; `step_cpu_ms`, the median of a step's CPU time, and `drift`, the change
        from first to last on a straight line through the windows' times, as a share of that median.
    """
    late = [one for one in seen if one.step > WARM_UP]
    steps = np.array([one.step for one in late])
    slope = np.polyfit(steps / 1000, [one.memory for one in late], 1)[0]
    third = len(late) // 3
    counts: dict[str, float] = {}
    for name in ("files", "threads"):
        values = [getattr(one, name) for one in late]
        counts |= {f"{name}_first": min(values[:third]), f"{name}_last": min(values[-third:])}
    ticks = np.arange(steps[0], steps[-1] - WINDOW, WINDOW)
    cpu = np.interp([ticks, ticks + WINDOW], steps, [one.cpu for one in late])  # [2, windows]
    times = (cpu[1] - cpu[0]) / WINDOW
    line = np.polyfit(np.arange(len(times)), times, 1)[0]
    usual = float(np.median(times))
    drift = float(line * (len(times) - 1) / usual)
    return {"memory_slope": float(slope), **counts, "step_cpu_ms": 1000 * usual, "drift": drift}


def write_events(run: Path, events: int) -> None:
    """Write a log of so many events, nine in ten of which are of training."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kinds: dict[str, dict] = {}
    for line in lines:
        event = json.loads(line)
        kinds.setdefault(event["kind"], event)
    with (run / "metrics.jsonl").open("w") as file:
        for number in range(events):
            kind = "eval" if number % 1000 == 999 else "train"
            step = 10 * (number + 1)
            loss = 0.7 - 0.3 * number / events
            file.write(json.dumps({**kinds[kind], "step": step, "loss": loss}) + "\n")


def report_memory(run: Path, events: int) -> tuple[float, float]:
    """The most memory in MB, and the CPU seconds, of the report on so many events."""
    copy = run.with_name(f"events-{events}")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "digests.json"))
    write_events(copy, events)
    command = [sys.executable, "-m", "jaxft", "report", str(copy)]
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL); used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], check=True, capture_output=True, text=True
    )
    kilobytes, seconds = done.stdout.split()[-2:]
    return int(kilobytes) / 1024, float(seconds)


def main() -> int:
    """Train, look, report; record the figures and say whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=EVENTS)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "long.yaml").write_text(config_text(folder, words.steps))
        command = [sys.executable, "-m", "jaxft", "train", str(folder / "long.yaml"), "--quiet"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            seen = list(looks(process, folder / "long" / "metrics.jsonl"))
        if process.returncode:
            return process.returncode
        result = leaks(seen)
        few, many = (report_memory(folder / "long", n) for n in (words.events // 10, words.events))
    report = {"report_mb": many[0], "report_mb_of_a_tenth": few[0], "report_cpu_s": many[1]}
    record("long_run", {"steps": words.steps, "events": words.events, **result, **report})
    print(
        f"{words.steps:,} steps, after {WARM_UP:,}:\n"
        f"  memory        {result['memory_slope']:+.3f} MB per 1,000 steps\n"
        f"  open files    {result['files_first']:.0f}, then {result['files_last']:.0f}\n"
        f"  threads       {result['threads_first']:.0f}, then {result['threads_last']:.0f}\n"
        f"  CPU of a step {result['step_cpu_ms']:.2f} ms, drift {result['drift']:+.1%}\n"
        f"report on {words.events:,} events: {many[0]:.0f} MB, {many[1]:.0f} s of CPU; "
        f"on a tenth: {few[0]:.0f} MB, {few[1]:.0f} s"
    )
    no_leak = all(
        result[f"{name}_last"] - result[f"{name}_first"] <= more for name, more in MOST_MORE.items()
    )
    holds = result["memory_slope"] < MOST_SLOPE and result["drift"] <= MOST_DRIFT and no_leak
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
