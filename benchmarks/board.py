"""What `jaxft board` costs a browser: 3 runs live at once, 10,000 events each.

`python -m benchmarks.board` starts a process per run that writes events as a training run does,
serves their folder, opens the page that compares them and the page of one run in headless Chromium,
scrolls through each for a while, and measures by the DevTools protocol the time between frames, the
longest tasks of the main thread, and the size of the JavaScript heap after a garbage collection.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.browser import Browser
from benchmarks.measure import record
from jaxft.report.events import EventLog
from jaxft.runs.folder import CONFIG_FILE, LOCK_FILE
from jaxft.runs.formats import RUN_FILE
from jaxft.storage import files

EVENTS, RUNS, LAYERS = 10_000, 3, 14
PACE = 10.0  # live events a second of each run
# Scrolls from end to end and back, and notes the time between frames and long tasks.
WATCH = """
(async (seconds) => {
  const frames = [], tasks = [];
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) tasks.push(entry.duration);
  });
  observer.observe({ type: "longtask" });
  const end = performance.now() + 1000 * seconds;
  const bottom = () => document.documentElement.scrollHeight - innerHeight;
  let before = performance.now();
  while (before < end) {
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
    scrollTo(0, bottom() * (0.5 - 0.5 * Math.cos(now / 2000)));
  }
  observer.disconnect();
  return { frames: frames.slice(1), tasks };
})(SECONDS)
"""


def write_live_run(folder: Path, number: int, events: int, pace: float) -> None:
    """Write a run as training does: most of its events at once, then `pace` events a second.

    Args:
        folder: the run's folder, made here.
        number: of the run, which its rate and its noise depend on.
        events: in all; about as many again are announced, so that the run is under way.
        pace: events a second, from nine tenths of them on; never ends.
    """
    draw, rate = random.Random(number), 1e-5 * 3**number
    with files.lock(folder / LOCK_FILE):
        config = {
            "task": {"kind": "text_classification"},
            "model": {"checkpoint": "assets/minilm"},
            "optimizer": {"lr": rate},
            "run": {"name": folder.name},
        }
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
        about = {
            "name": folder.name,
            "state": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": ["jaxft", "train", "configs/sentiment.yaml", f"optimizer.lr={rate}"],
            "resolved": {"total_steps": 20 * events},
            "best_metric": "accuracy",
            "labels": [],
        }
        (folder / RUN_FILE).write_text(json.dumps(about))
        with EventLog(folder, tensorboard=False) as log:
            for index in range(1, 10**9):
                _write_event(log, 10 * index, draw, rate)
                if index > 0.9 * events:
                    time.sleep(1 / pace)


def _write_event(log: EventLog, step: int, draw: random.Random, rate: float) -> None:
    progress = 1 - math.exp(-step / 20_000)
    values = {
        "epoch": step / 5_000,
        "loss": 0.7 - 0.4 * progress + draw.gauss(0, 0.03),
        "accuracy": 0.5 + 0.35 * progress + draw.gauss(0, 0.02),
        "grad_norm": 1 + abs(draw.gauss(0, 0.5)),
        "examples_per_second": 66 + draw.gauss(0, 1.5),
        "rates": {"head": 5 * rate, "rest": rate},
    }
    log.train(step, values)
    if step % 100 == 0:
        layers = {str(depth): 2.0 ** (depth - LAYERS) * draw.random() for depth in range(LAYERS)}
        log.of_kind("layers", step, dict.fromkeys(("grad_norm", "update_ratio"), layers))
    if step % 500 == 0:
        log.eval(step, "eval", {"loss": 0.72 - 0.4 * progress, "accuracy": 0.5 + 0.3 * progress})


@contextlib.contextmanager
def live_runs(top: Path, events: int) -> Iterator[None]:
    """Run a process per run, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.board", "--write", str(top), "--events"]
    writers = [
        subprocess.Popen([*command, str(events), "--number", str(number)]) for number in range(RUNS)
    ]
    try:
        yield
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


@contextlib.contextmanager
def served(top: Path) -> Iterator[str]:
    """Run `jaxft board` on a folder, and yield its address."""
    command = [sys.executable, "-m", "jaxft", "board", str(top), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def watch(browser: Browser, address: str, seconds: float) -> dict[str, Any]:
    """Open a page, let it settle, scroll through it, and return what that took.

    Returns:
        Milliseconds: `frame_median`, `frame_99`, `frame_longest`, `task_longest`; `heap_mb`.
    """
    browser.open(address)
    browser.wait("document.querySelectorAll('.figure .main-svg').length > 0")
    time.sleep(5)
    watched, traced = browser.trace(WATCH.replace("SECONDS", str(seconds)), ["toplevel"])
    browser.call("HeapProfiler.collectGarbage")
    heap = browser.call("Runtime.getHeapUsage")
    frames = sorted(watched["frames"])
    return {
        "frames": len(frames),
        "frame_median": round(frames[len(frames) // 2], 1),
        "frame_99": round(frames[int(0.99 * len(frames))], 1),
        "frame_longest": round(frames[-1], 1),
        "task_longest": round(max(watched["tasks"], default=0.0), 1),
        **_cpu_of_tasks(traced),
        "heap_mb": round(heap["usedSize"] / 1e6, 1),
    }


def _cpu_of_tasks(traced: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the CPU milliseconds of the tasks of the page's main thread, from a trace."""
    main = {
        (event["pid"], event["tid"])
        for event in traced
        if event["name"] == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    spent = sorted(
        event["tdur"] / 1000
        for event in traced
        if (event["pid"], event["tid"]) in main and "RunTask" in event["name"] and "tdur" in event
    )
    return {
        "task_cpu_99": round(spent[int(0.99 * len(spent))], 1) if spent else 0.0,
        "task_cpu_longest": round(spent[-1], 1) if spent else 0.0,
    }


def measure(events: int, seconds: float) -> dict[str, Any]:
    """Watch the page of three runs, and of one of them."""
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch) / "runs"
        results: dict[str, Any] = {}
        with live_runs(top, events), served_when_written(top, events) as address:
            browser = Browser(Path(scratch) / "profile")
            try:
                browser.size(1400, 900)
                browser.open(address)
                keys = browser.ask(
                    "Array.from(document.querySelectorAll('input[name=run]'), one => one.value)"
                )
                token = re.search(r"token=([\w-]+)", address)
                query = f"token={token[1] if token else ''}"
                runs = address.split("?")[0] + "runs?" + query
                results["three runs"] = watch(
                    browser, runs + "".join(f"&run={key}" for key in keys), seconds
                )
                results["one run"] = watch(browser, f"{runs}&run={keys[0]}", seconds)
            finally:
                browser.close()
        results["events"] = events
    return results


@contextlib.contextmanager
def served_when_written(top: Path, events: int) -> Iterator[str]:
    """Wait until each run has nine tenths of its events, then serve them."""
    files_of = [top / f"run-{number}" / "metrics.jsonl" for number in range(RUNS)]
    while not all(file.exists() and _lines(file) > 0.9 * events for file in files_of):
        time.sleep(0.5)
    with served(top) as address:
        yield address


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def main() -> None:
    """Measure, print and record; with `--write`, be one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="of each run")
    parser.add_argument("--seconds", type=float, default=30.0, help="that a page is watched for")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write is not None:
        write_live_run(asked.write / f"run-{asked.number}", asked.number, asked.events, PACE)
        return
    results = measure(asked.events, asked.seconds)
    print(json.dumps(results, indent=2))
    record("board", results)


if __name__ == "__main__":
    main()
