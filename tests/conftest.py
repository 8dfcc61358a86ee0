"""Eight fake CPU devices for every test, and what decides which tests run.

Tests marked `slow` run in `make test-slow`, those marked `full` in `make test-all` only.
"""

import gc
import os
import sys
import tempfile

from tests.support.xla import DEVICES, QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has the flags of the session
    quick = () if "--full" in sys.argv else QUICK
    os.environ["XLA_FLAGS"] = " ".join([*quick, f"{DEVICES}=8"])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PyTorch's threads wait for each other in busy loops: beside other work its small models take
# several times the CPU time of one thread, or fifty times.
os.environ["OMP_NUM_THREADS"] = "1"
# One cache of compiled programs for all workers of a session and the processes that they start: the
# same tiny models are compiled in many tests. It is a fresh folder, so that no program of another
# version is taken for this one's.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="jaxft-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from pathlib import Path

import jax
import jax.extend
import pytest

from jaxft.cli.parts.process import quiet_orbax
from jaxft.demo import (
    dialogues as demo_dialogues,
)
from jaxft.demo import (
    flan_t5 as demo_flan_t5,
)
from jaxft.demo import (
    images as demo_images,
)
from jaxft.demo import (
    main as demo,
)
from jaxft.demo import (
    smollm2 as demo_smollm2,
)
from jaxft.demo import (
    tables as demo_tables,
)
from jaxft.demo import (
    vits as demo_vits,
)

MOST_PROGRAMS = 500


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked `slow`")
    parser.addoption("--full", action="store_true", help="run all tests, with all of XLA's passes")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    # The mark, and not a keyword: a parameter's name is a keyword too.
    marks = ("full",) if config.getoption("--slow") else ("full", "slow")
    chosen = [item for item in items if not any(map(item.get_closest_marker, marks))]
    if len(chosen) < len(items):
        dropped = [item for item in items if any(map(item.get_closest_marker, marks))]
        config.hook.pytest_deselected(items=dropped)
        items[:] = chosen


def pytest_collection_finish():
    """Have collections pass over what is imported by now: a ninth of the CPU time of many tests.

    jax, transformers and PyTorch leave more than a million objects, and tracing makes so many that
    Python looks through all of them again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_logfinish():
    """Forget compiled programs before there are too many of them in the process.

    jax keeps an MLIR context for each, and MLIR looks through all of a thread's contexts for each
    new one: with some thousands of them a program that takes 15 ms to lower takes 200.
    """
    if len(jax.extend.backend.get_backend().live_executables()) > MOST_PROGRAMS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def command_line():
    """Logs and finalizers as the command line has them: tests run it in this process.

    But not the compile cache and the allocator, which are for a process that runs one command:
    programs would no longer be shared by the tests, and a heap that only grows slows all that come
    after.
    """
    hook = sys.unraisablehook
    quiet_orbax()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxft.device.process.prepare_process", lambda: None)
        yield
    sys.unraisablehook = hook


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real checkpoint folder: MiniLM, a `BertModel` of 6 blocks, names without `bert.`."""
    return demo.minilm()


@pytest.fixture(scope="session")
def tiny_mlm() -> Path:
    """A real checkpoint folder: a 2-block `BertForMaskedLM` of width 128 (old gamma/beta names)."""
    return demo.tiny_mlm()


@pytest.fixture(scope="session")
def reviews() -> Path:
    """A folder with train.csv (7,676 rows) and test.csv (854): columns `text` and `label`."""
    return demo.reviews()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real checkpoint folder: SmolLM2, a chat `LlamaForCausalLM` of 30 blocks (135M)."""
    return demo_smollm2.smollm2()


@pytest.fixture(scope="session")
def flan_t5() -> Path:
    """A real checkpoint folder: Flan-T5 small, a `T5ForConditionalGeneration` of 8 + 8 blocks."""
    return demo_flan_t5.flan_t5()


@pytest.fixture(scope="session")
def dialogues() -> Path:
    """A folder with train.jsonl (814 rows) and test.jsonl (84): `prompt` and `answer`."""
    return demo_dialogues.dialogues()


@pytest.fixture(scope="session")
def breast_cancer() -> Path:
    """A folder with train.csv (465 rows) and test.csv (104): 30 measures and `diagnosis`."""
    return demo_tables.breast_cancer()


@pytest.fixture(scope="session")
def digits() -> Path:
    """A folder with train/ (4,513 PNGs) and test/ (487): a sub-folder for each digit."""
    return demo_images.digits()


@pytest.fixture(scope="session")
def emoji() -> Path:
    """A folder with images/, train.csv and test.csv (500 rows): `image`, `text` and `tone`."""
    return demo_images.emoji()


@pytest.fixture(scope="session")
def vits() -> Path:
    """A real checkpoint folder: ViT-S/14, a `ViTModel` of 12 blocks for 224 pixels, no pooler."""
    return demo_vits.vits()


@pytest.fixture(scope="session")
def dinov2() -> Path:
    """A real checkpoint folder: the same weights as `vits`, as the `Dinov2Model` that they are."""
    return demo_vits.dinov2()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One page in headless Chromium; a test takes `browser`."""
    from benchmarks.browser import Browser  # only its tests need it

    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def browser(chromium):
    """The page in Chromium; what its console complains about during the test is a failure."""
    chromium.errors.clear()
    yield chromium
    assert chromium.errors == []
