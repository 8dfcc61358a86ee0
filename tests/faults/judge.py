"""Run many inputs in one process, and count how each ends: accepted, refused in a sentence, or not.

A process of its own runs them, so that a crash, a hang or memory without bound ends that process
and not the tests. It says before each input which one that is.
"""

import faulthandler
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jaxft.cli.main import of_the_system
from jaxft.errors import UserError
from tests.support.xla import xla_flags

SECONDS = 20  # of CPU, of one input
HANGS = 120  # seconds after which an input that may use no CPU ends the process
MEMORY = 2 << 30  # bytes beyond those of the process when it begins
LONGEST = 2000  # characters of a sentence
LAST = "last-input.txt"


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: what it is.
        files: path in the workspace -> its content while the input is read; None for no file.
        read: reads it, in the workspace.
    """

    name: str
    files: Mapping[str, bytes | None]
    read: Callable[[], object]


@dataclass
class Counts:
    """How the inputs ended.

    Attributes:
        refused: kind -> number of inputs refused in a sentence.
        accepted: likewise.
        others: what ended otherwise: the input and the error.
        slowest: CPU seconds of the slowest input, and its name.
        seconds: of CPU, of all.
        megabytes: the most memory of the process.
    """

    refused: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0
    megabytes: int = 0

    @property
    def tried(self) -> int:
        return sum(self.refused.values()) + sum(self.accepted.values()) + len(self.others)

    @property
    def distinct(self) -> list[str]:
        """One of the others for each line of jaxft that raised it."""
        return list({other.rpartition("(")[2]: other for other in self.others}.values())

    def lines(self) -> str:
        """The counts as a table."""
        kinds = sorted({*self.refused, *self.accepted})
        rows = [(k, self.refused.get(k, 0), self.accepted.get(k, 0)) for k in kinds]
        rows.append(("all", sum(self.refused.values()), sum(self.accepted.values())))
        table = [f"{'input':<16}{'tried':>8}{'refused':>9}{'accepted':>10}"]
        table += [f"{kind:<16}{r + a:>8,}{r:>9,}{a:>10,}" for kind, r, a in rows]
        table.append(
            f"others: {len(self.others)}; slowest {self.slowest[0]:.1f} s ({self.slowest[1]}); "
            f"{self.seconds:.0f} s of CPU; at most {self.megabytes:,} MB"
        )
        return "\n".join([*table, *self.distinct[:40]])


def judged(read: Callable[[], object]) -> str | None:
    """Read an input; return the sentence that refuses it, None if it is accepted.

    Raises:
        Exception: it ended neither way.
    """
    try:
        read()
    except UserError as error:
        sentence = " ".join(str(error).split())
    except MemoryError:
        raise
    except Exception as error:
        of_system = of_the_system(error)
        if of_system is None:
            raise
        sentence = of_system
    else:
        return None
    if not sentence or len(sentence) > LONGEST or "Traceback" in sentence:
        raise AssertionError(f"no sentence: {len(sentence)} characters: {sentence[:300]}")
    return sentence


def count(cases: Iterable[Case], workspace: Path) -> Counts:
    """Read all inputs in this process.

    Args:
        cases: the inputs; `kind: rest` as names.
        workspace: the working directory of each, with the files that it may change.
    """
    os.chdir(workspace)
    counts, began = Counts(), time.process_time()
    _limit_memory()
    with open(LAST, "w") as last:
        for case in cases:
            last.seek(0)
            last.write(case.name[:200].ljust(200))
            last.flush()
            _judge(case, counts)
    counts.seconds = time.process_time() - began
    counts.megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return counts


def _judge(case: Case, counts: Counts) -> None:
    kind = case.name.partition(":")[0]
    before = {name: _content(Path(name)) for name in case.files}
    for name, content in case.files.items():
        _write(Path(name), content)
    faulthandler.dump_traceback_later(HANGS, exit=True)
    began = time.process_time()
    try:
        sentence = judged(case.read)
    except BaseException as error:  # a panic of Rust code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        text = f"{type(error).__name__}: {str(error)[:300]}"
        counts.others.append(f"{case.name}: {text} ({_origin(error)})")
    else:
        ends = counts.accepted if sentence is None else counts.refused
        ends[kind] = ends.get(kind, 0) + 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        counts.slowest = max(counts.slowest, (time.process_time() - began, case.name))
        for name, content in before.items():
            _write(Path(name), content)


def _origin(error: BaseException) -> str:
    """Return the last line of jaxft that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jaxft/" in f.filename]
    return f"{frames[-1].filename.rpartition('/jaxft/')[2]}:{frames[-1].lineno}" if frames else ""


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))


def in_own_process(module: str, workspace: Path, *words: str) -> Counts:
    """Run `python -m MODULE WORKSPACE WORDS`, which prints counts as JSON, and return them.

    Raises:
        AssertionError: the process crashed, or was ended by an input that took too long.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": xla_flags(1),
        "JAXFT_CACHE": str(workspace / "cache"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, str(workspace), *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = workspace / LAST
        name = last.read_text().strip() if last.exists() else "none"
        end = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        raise AssertionError(f"ended with {done.returncode} at the input '{name}':\n{end}")
    counts = json.loads(done.stdout.splitlines()[-1])
    return Counts(**{**counts, "slowest": tuple(counts["slowest"])})


def as_json(counts: Counts) -> str:
    """The counts as the line that `in_own_process` reads."""
    return json.dumps(asdict(counts))
