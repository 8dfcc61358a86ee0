"""The structure holds: who may import whom, folders without circles, sizes of files and functions.

A folder of `jaxft/` has a level and imports only from folders of lower levels; the folders of one
level do not import each other. Nowhere do folders or files import each other in a circle.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.support.import_graph import (
    FILES,
    INITS,
    MODULES,
    circles,
    code_lines,
    edges,
    figures,
    functions,
    imports,
    syntax_tree,
)

LEVELS = {
    "__main__": 14,
    "cli": 13,
    "studies": 12,
    "integrations": 12,
    "planning": 12,
    "training": 11,
    "inference": 11,
    "export": 10,
    "loop": 10,
    "analysis": 10,
    "engine": 9,
    "board": 9,
    "report": 8,
    "runs": 7,
    "device": 6,
    "tasks": 6,
    "demo": 6,
    "models": 5,
    "data": 4,
    "layerwise": 3,
    "config": 3,
    "storage": 2,
    "launch": 2,
    "tree": 2,
    "durations": 2,
    "errors": 1,
    "bounds": 1,
    "numbers": 1,
    "visible": 1,
    "metrics": 1,
}
# Functions that read from top to bottom as one, and are longer than the others.
STORIES = {
    "training.story.train",
    "studies.study.study",
    "studies.part.train_part",
    "inference.search.search",
    "inference.score.score",
}
# Imports inside a function: (module or folder, what it imports there) and why it may.
LAZY = {
    # The command line parses without jax, so that `jaxft --help` is quick.
    ("cli", "jaxft"),
    # jax is asked for a cluster only where something looks like one.
    ("launch.cluster", "jax"),
    # Its key-value store has no public face, and is asked for when there are several processes.
    ("device.distributed", "jax"),
    # Ray is an extra, and its workers join after jax is there.
    ("integrations.ray", "jax"),
    ("integrations.ray", "ray"),
    # Assets are listed, and most are written, without jax.
    ("demo.detection.detector", "jaxft"),
    ("demo.drawing.emoji_dit", "jaxft"),
    ("demo.drawing.imagegpt", "jaxft"),
    ("demo.joined.vlm", "jaxft"),
    ("demo.vits", "jaxft"),
    ("demo.tables", "sklearn"),
    # The libraries that read what a demo's packages hold are an extra.
    ("demo.smollm2", "gguf"),
    ("demo.vits", "onnx"),
    ("demo.flan_t5", "onnx"),
    ("demo.verses", "pysword"),
    ("demo.tables", "rdata"),
    # PyTorch is no dependency: it is asked for when a `.bin` is to be read.
    ("models.weights.files", "torch"),
    # scikit-learn and SciPy's statistics take two seconds, and are needed where a metric is.
    ("analysis.baselines", "sklearn"),
    ("analysis.checkpoint_fit", "scipy"),
    ("analysis.checkpoint_fit", "sklearn"),
    ("layerwise.criteria.choose", "scipy"),
    ("metrics.classification", "sklearn"),
    ("metrics.regression", "scipy"),
    ("report.page.binary", "sklearn"),
    # Grain takes half a second, and is needed where batches are made.
    ("data.batching.loader", "grain"),
    # tensorflow-datasets takes half a second, and opens one kind of source.
    ("analysis.first_config.locate", "jaxft"),
    ("data.sources.open", "jaxft"),
    # tensorboardX imports PyTorch where it is installed, which takes seconds.
    ("report.events", "tensorboardX"),
    # transformers takes seconds to import and is needed only without a tokenizer.json.
    ("data.text.tokenizer_files", "transformers"),
}
# Libraries that no module may import at its head, and some not at all.
NEVER_AT_HEAD = {"torch", "tensorflow", "transformers"}
# What reads a finished run's files, so that a report needs no accelerator and starts at once.
WITHOUT_JAX = ("report", "board", "runs.folder", "numbers", "errors", "storage", "launch")


def room(module):
    return module.split(".")[0]


def test_every_folder_has_a_level():
    assert {room(module) for module in MODULES} == set(LEVELS)
    assert len(LEVELS) <= 30


def test_imports_go_down():
    against = [
        f"{module} (level {LEVELS[room(module)]}) imports {below} (level {LEVELS[room(below)]})"
        for module, below in edges()
        if room(module) != room(below) and LEVELS[room(module)] <= LEVELS[room(below)]
    ]
    assert not against, against


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_nothing_imports_in_a_circle(depth):
    assert circles(depth) == []


def lazy_key(module, library):
    return next(
        ((name, library) for name in (module, room(module)) if (name, library) in LAZY), None
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_head(module):
    for imported, inside in imports(module):
        library = imported.split(".")[0]
        if inside:
            assert lazy_key(module, library), f"jaxft.{module} imports {imported} in a function"
        else:
            assert library not in NEVER_AT_HEAD, f"jaxft.{module} imports {imported} at its head"


def test_the_lazy_list_names_only_what_is_there():
    used = {
        lazy_key(module, imported.split(".")[0])
        for module in MODULES
        for imported, inside in imports(module)
        if inside
    }
    assert used == LAZY


def test_a_report_needs_no_jax():
    """Not even by what its modules import."""
    start = [m for m in MODULES if any(m == w or m.startswith(f"{w}.") for w in WITHOUT_JAX)]
    reached, waiting = set(start), list(start)
    while waiting:
        module = waiting.pop()
        for imported, inside in imports(module):
            below = imported.removeprefix("jaxft.")
            assert inside or imported.split(".")[0] != "jax", f"jaxft.{module} imports jax"
            if not inside and below in MODULES and below not in reached:
                reached.add(below)
                waiting.append(below)


@pytest.mark.parametrize("module", [name for name in INITS if name])
def test_init_files_are_empty(module):
    assert FILES[module].read_text() == ""


def test_folders_are_small():
    folders = {path.parent for path in FILES.values()}
    sizes = {folder.name: len(list(folder.glob("*.py"))) for folder in folders}
    assert not {name: size for name, size in sizes.items() if size > 16}


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module):
    limit = 500 if module.startswith("models.families.") else 300
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= limit, f"jaxft.{module} has {lines} lines, {limit} at most"


ASKS = {"devices", "local_devices", "default_backend", "device_count", "local_device_count"}
IN_A_STEP = [
    name
    for name in MODULES
    if room(name) in ("models", "layerwise", "tasks", "data", "metrics")
    or name in ("engine.step", "engine.state", "device.compiler_options")
]


@pytest.mark.parametrize("module", IN_A_STEP)
def test_nothing_in_a_step_asks_the_default_device(module):
    """A step is compiled for chips that need not be there: `Compute.platform` says which."""
    asked = [
        f"line {node.lineno}: jax.{node.attr}"
        for node in ast.walk(syntax_tree(module))
        if isinstance(node, ast.Attribute)
        and node.attr in ASKS
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    ]
    assert not asked, asked


def test_functions_are_short():
    """The stories are excepted: each reads top to bottom as one function."""
    lengths = {
        f"{module}.{node.name}": code_lines(node)
        for module in MODULES
        for node in functions(module)
    }
    assert len(STORIES) <= 5
    assert set(lengths) >= STORIES
    assert not {
        name: lines for name, lines in lengths.items() if lines > 40 and name not in STORIES
    }


def test_test_files_have_names_of_their_own():
    """pytest imports them by name alone: of two with one name it collects the first."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_the_figures_of_the_structure(capsys):
    """Printed with `pytest -s`, or by `python -m tests.support.import_graph`."""
    shape = figures()
    with capsys.disabled():
        print("", *(f"{name}: {value}" for name, value in shape.items()), sep="\n  ")
    assert shape["median lines of a function"] <= 8
    assert shape["90th percentile"] <= 25
    assert shape["functions over 60 lines"] <= 5
