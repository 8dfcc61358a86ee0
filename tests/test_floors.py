"""The house holds: who may import whom, empty `__init__`s, and how long a file or function is.

A module imports only from strictly lower floors; rooms on one floor do not import each other.
A room is one line of FLOORS: a module `x` and, where it is long, its parts `x_*`.
"""

import ast
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxft"

FLOORS = {
    "errors": -1,  # the ground: every floor raises it
    "config": 0.7,  # above buckets, where a config may be
    "tree": 0,
    "files": 0,
    "buckets": 0.5,  # above files, below all that reads a file
    "cluster": 0,
    "platforms": 0,
    "supervise": 1,  # without jax
    "layerwise.table": 1,
    "layerwise.schedules": 1,
    "layerwise.optimizer": 2,
    "layerwise.phases": 2,
    "models.layers": 1,
    "models.source": 1,
    "data.sources": 1,
    "data.text": 1,
    "data.template": 1,
    "data.chat": 1,
    "data.image": 1,
    "data.cache": 1,
    "data.packing": 1,
    "data.mixture": 1,
    "data.tags": 1,
    "data.draws": 1,
    "data.augment": 2,  # above draws and image
    "data.masking": 2,  # above draws
    "data.tiles": 1,
    "data.drawn": 2,  # above image
    "metrics.*": 1,
    "models.transformer": 2,
    "models.weights": 2,
    "data.plans": 2,
    "data.profile": 2,
    "data.write_tfds": 2,
    "data.dialogue": 2,
    "data.loader": 3,
    "models.adapters": 3,
    "models.bert": 3,
    "models.clip": 3,
    "models.encoder_decoder": 3,
    "models.gpt2": 3,
    "models.llama": 3,
    "models.t5": 3,
    "models.generate": 3,
    "models.vit": 3,
    "models.imagegpt": 3.5,  # on GPT-2's blocks, below the registry
    "models.yolos": 3.5,  # on ViT's blocks, below the registry
    "models.registry": 4,
    "tasks.contract": 5,
    "tasks.labels": 5,
    "tasks.classes": 5.5,  # above labels
    "tasks.images": 5,
    "tasks.image_features": 5,
    "tasks.boxes": 5.5,  # above images
    "tasks.detection_loss": 5,
    "tasks.token_examples": 5,
    "tasks.tagged": 5.5,  # above labels, below the tasks
    "tasks.masked_texts": 5.5,
    "tasks.text_tuples": 5.5,
    "tasks.written_texts": 5.5,
    "tasks.*": 6,
    "engine.chips": 0,  # without jax
    "engine.compiler_options": 0,  # without jax
    "engine.collectives": 0,  # without jax
    "engine.distributed": 5,
    "engine.mesh": 6,
    "engine.state": 6,
    "engine.checkpoint": 6,
    "engine.run_folder": 6,
    "report.numbers": 5,
    "report.browser": 5,
    "report.trackers": 5,
    "report.events": 6,
    "report.progress": 6,
    "engine.step": 7,
    "engine.diagnostics": 8,
    "engine.inputs": 7,
    "engine.build": 8,
    "engine.process": 6,
    "engine.evaluate": 9,
    "engine.similarity": 9.5,  # above evaluate, below the stories
    "engine.attention_maps": 9.5,
    "engine.cost": 9,
    "engine.trained": 9,
    "report.page": 9,
    "engine.preflight": 9,
    "engine.trunk": 9.5,  # above cost, below the stories
    "engine.export_sentences": 9.5,
    "engine.remat": 9.5,  # above cost, below the stories
    "engine.*": 10,  # the stories
    "demo": 10,
    "models_table": 11,
    "cli": 11,
    "supervised": 12,
    "__main__": 12,
}
FAMILIES = {
    "models.bert",
    "models.bert_distilbert",
    "models.bert_electra",
    "models.bert_roberta",
    "models.clip",
    "models.clip_vision",
    "models.encoder_decoder",
    "models.gpt2",
    "models.imagegpt",
    "models.llama",
    "models.t5",
    "models.vit",
    "models.yolos",
}

# Imports inside a function: (room, what it imports there) and why it may.
LAZY = {
    # The command line parses without jax, so that `jaxft --help` is quick.
    ("cli", "jaxft"),
    # jax is asked for a cluster only where something looks like one.
    ("cluster", "jax"),
    # Its key-value store has no public face, and is asked for when there are several processes.
    ("engine.distributed", "jax"),
    # gguf is no dependency: it is asked for when SmolLM2 is to be brought.
    ("demo", "gguf"),
    # Nor is onnx: it is asked for when ViT-S is.
    ("demo", "onnx"),
    # pysword, when verses are.
    ("demo", "pysword"),
    # Nor is rdata: it is asked for when a table comes out of an R package.
    ("demo", "rdata"),
    # PyTorch is no dependency: it is asked for when a `.bin` is to be read.
    ("models.weights", "torch"),
    # transformers takes seconds to import and is needed only without a tokenizer.json.
    ("data.text", "transformers"),
}
# Libraries that no module may import at its head, and some not at all.
NEVER_AT_HEAD = {"torch", "tensorflow", "transformers"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = [name for name in MODULES if not name.endswith("__init__")]


def room_of(module: str) -> str:
    """The line of FLOORS that a module belongs to."""
    fitting = [
        room
        for room in FLOORS
        if module == room or module.startswith(f"{room}_") or fnmatch(module, room)
    ]
    assert fitting, f"jaxft.{module} has no floor: give it a line in FLOORS"
    return module if module in fitting else fitting[0]


def is_package(imported: str) -> bool:
    """Whether it is a folder, whose `__init__` is empty, and no module."""
    return f"{imported.removeprefix('jaxft.')}.__init__" in MODULES


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports_of(module: str) -> list[tuple[str, bool]]:
    """Every module that `module` imports, and whether it does so inside a function."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"jaxft.{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("jaxft.") in MODULES
                found.append((whole if is_module else str(node.module), inside))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree_of(module), False)
    return found


@pytest.mark.parametrize("module", ROOMS)
def test_imports_go_down(module):
    room = room_of(module)
    for imported, _ in imports_of(module):
        if not imported.startswith("jaxft.") or is_package(imported):
            continue
        below = room_of(imported.removeprefix("jaxft."))
        assert below == room or FLOORS[below] < FLOORS[room], (
            f"jaxft.{module} (floor {FLOORS[room]}) imports {imported} (floor {FLOORS[below]})"
        )


@pytest.mark.parametrize("module", ROOMS)
def test_imports_stand_at_the_head(module):
    for imported, inside in imports_of(module):
        top = imported.split(".")[0]
        if inside:
            assert (room_of(module), top) in LAZY, (
                f"jaxft.{module} imports {imported} in a function"
            )
        else:
            assert top not in NEVER_AT_HEAD, f"jaxft.{module} imports {imported} at its head"


def test_the_lazy_list_names_only_what_is_there():
    used = {
        (room_of(module), imported.split(".")[0])
        for module in ROOMS
        for imported, inside in imports_of(module)
        if inside
    }
    assert used == LAZY


def test_every_floor_has_its_room():
    taken = {room_of(module) for module in ROOMS}
    assert taken == set(FLOORS)


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith(".__init__")])
def test_init_files_are_empty(module):
    assert MODULES[module].read_text() == ""


@pytest.mark.parametrize("module", ROOMS)
def test_files_are_short(module):
    limit = 500 if module in FAMILIES else 300
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= limit, f"jaxft.{module} has {lines} lines, {limit} at most"


ASKS = {"devices", "local_devices", "default_backend", "device_count", "local_device_count"}
IN_A_STEP = [
    name
    for name in ROOMS
    if name.split(".")[0] in ("models", "layerwise", "tasks", "data", "metrics")
    or name in ("engine.step", "engine.state", "engine.compiler_options")
]


@pytest.mark.parametrize("module", IN_A_STEP)
def test_nothing_in_a_step_asks_the_default_device(module):
    """A step is compiled for chips that need not be there: `Compute.platform` says which."""
    tree = ast.parse(MODULES[module].read_text())
    asked = [
        f"line {node.lineno}: jax.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ASKS
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    ]
    assert not asked, asked


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, but its docstring and the functions inside it."""

    def span(node: ast.stmt) -> int:
        return node.end_lineno - node.lineno + 1

    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    within = [node for node in function.body if isinstance(node, ast.FunctionDef)]
    return span(function) - sum(map(span, within)) - (span(first) if is_docstring else 0)


@pytest.mark.parametrize("module", ROOMS)
def test_functions_are_short(module):
    """The stories are excepted: each reads top to bottom as one function."""
    if room_of(module) == "engine.*":
        return
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = code_lines(node)
            assert lines <= 40, f"jaxft.{module}: {node.name} has {lines} lines, 40 at most"
