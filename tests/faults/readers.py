"""Everything that reads what comes from outside, with a valid input of each to start from.

`workspace` makes a folder with a valid file of every kind. Each function of `MAKERS` draws a case:
some of these files changed, and the function of jaxft that reads them.
"""

import io
import json
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from rich.console import Console

from jaxft.analysis.describe_data import describe_data
from jaxft.config.load import describe_keys, load_config
from jaxft.data.image.images import decode, load_image_processor
from jaxft.data.sources.open import open_source
from jaxft.data.text.chat import load_chat_template
from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.generate.settings import read_settings
from jaxft.models.load import LoadOptions, describe, load
from jaxft.models.load_adapters import save_adapter
from jaxft.report.page.page import all_figures
from jaxft.report.page.predictions.lines import LINES, Keys
from jaxft.report.page.run import read_run
from jaxft.report.page.views import view
from tests.faults.grammar import Draw
from tests.faults.judge import Case
from tests.support.synthetic_run import write_run
from tests.support.tiny import tiny_config
from tests.support.tiny_images import tiny_pictures, tiny_vit

LABELS = ("good", "bad")
TEXT = "a lovely film , with a cast of 2 — naïve\n\u202e!"
RUN_FILES = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "table.json",
    "rates.json",
    "result.json",
    "embeddings-before.json",
    "predictions-test.jsonl",
)
SPLITS_OF = {"csv": "rows.csv", "jsonl": "rows.jsonl", "conll": "tags.txt", "boxes": "boxes.csv"}
ARROW_FILES = {"arrow": "rows.arrow", "parquet": "rows.parquet", "hf": "saved/data-00000.arrow"}


def workspace(folder: Path) -> Path:
    """Write a valid file of every kind, and a named pipe, into `folder`, and go there."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    config = tiny_config(Path())
    Path("c.yaml").write_text(yaml.safe_dump(config.dump()))
    rows = [{"text": f"a film of {n} parts", "label": LABELS[n % 2], "n": n} for n in range(12)]
    Path("rows.csv").write_text(
        "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tags.txt").write_text("Anna\tB-PER\nsleeps\tO\n\nParis\tB-LOC\n\n" * 3)
    tiny_pictures(Path("pictures"), each=2)
    Path("boxes.csv").write_text(
        "image_path,xmin,ymin,xmax,ymax,label\n" + "pictures/red/00.png,1,1,4,4,a\n" * 2
    )
    Path("coco.json").write_text(json.dumps(coco()))
    Path("squad.json").write_text(json.dumps(squad()))
    table = pa.table({"text": [r["text"] for r in rows], "label": [r["n"] % 2 for r in rows]})
    about = {"info": {"features": {"label": {"names": list(LABELS), "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()})
    Path("saved").mkdir()
    for name in ("rows.arrow", "saved/data-00000.arrow"):
        with pa.ipc.new_stream(name, table.schema) as file:
            file.write_table(table)
    pq.write_table(table, "rows.parquet")
    Path("saved/state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000.arrow"}]})
    )
    tiny_vit(Path("vit"))
    adapted = load("checkpoint", task="embedding", adapter=Adapter(rank=2, alpha=4))
    save_adapter(adapted, Path("adapter"))
    write_run(Path("runs"))
    _shorten(Path("runs/sentiment"))
    os.mkfifo("pipe")
    return folder


def coco() -> dict[str, Any]:
    """A valid COCO file of one picture."""
    return {
        "images": [{"id": 1, "file_name": "pictures/red/00.png", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
    }


def squad() -> dict[str, Any]:
    """A valid SQuAD file of one text and two questions, one of them without an answer."""
    answers = [{"text": "Paris", "answer_start": 14}]
    questions = [
        {"id": "1", "question": "Where does she live?", "answers": answers},
        {"id": "2", "question": "Where is he?", "answers": [], "is_impossible": True},
    ]
    text = {"context": "Anna lives in Paris.", "qas": questions}
    return {"version": "v2.0", "data": [{"title": "Anna", "paragraphs": [text]}]}


def _shorten(run: Path) -> None:
    """Leave a few lines and rows of each file of a run, so that the page is quick to fill."""
    for name in ("metrics.jsonl", "predictions-test.jsonl", "predictions-eval.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        events = lines[:3] + [line for line in lines if '"eval"' in line or '"layers"' in line][:4]
        (run / name).write_text("".join(events))
    table = json.loads((run / "table.json").read_text())
    table["rows"] = table["rows"][::20]
    (run / "table.json").write_text(json.dumps(table))
    rates = json.loads((run / "rates.json").read_text())
    for name in ("steps", "rates", "by_depth"):
        rates[name] = rates[name][:3]
    (run / "rates.json").write_text(json.dumps(rates))
    points = json.loads((run / "embeddings-before.json").read_text())
    for name in ("x", "y", "labels"):
        points[name] = points[name][:4]
    for when in ("before", "after"):
        (run / f"embeddings-{when}.json").write_text(json.dumps(points))


@cache
def _original(name: str) -> bytes:
    """The valid content of a file of the workspace, as it was at first."""
    return Path(name).read_bytes()


@cache
def _tree(name: str) -> Any:
    return json.loads(_original(name))


@cache
def _keys() -> tuple[Any, ...]:
    return tuple(describe_keys())


# ------------------------------------------------------------------------------ configs, sources


def config(draw: Draw) -> Case:
    """A config with keys of the schema set to anything, as YAML that may itself be damaged."""
    written = yaml.safe_load(_original("c.yaml"))
    for key in draw.some(_keys(), 2):
        parts = key.name.replace("[]", ".0").split(".")
        here = written
        for part in parts[:-1]:
            inner = here.get(part) if isinstance(here, dict) else None
            if not isinstance(inner, dict):
                inner = {}
                if isinstance(here, dict):
                    here[part] = inner
            here = inner
        here[parts[-1]] = draw.value() if draw.random() < 0.3 else _plausible(draw, key.type)
    if draw.random() < 0.2:
        written = draw.changed(written)
    try:
        data = yaml.safe_dump(written, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeEncodeError, ValueError, RecursionError):
        data = json.dumps(written, skipkeys=True).encode("utf-8", "surrogatepass")
    data = draw.damaged(data) if draw.random() < 0.15 else data
    return Case("config", {"c.yaml": data}, partial(load_config, "c.yaml"))


def _plausible(draw: Draw, kind: str) -> Any:
    """A value of about the type that a key has."""
    words = kind.replace(",", " ").split()
    numbers = (0, 1, 2, 0.1, 1e-3, 0.9, 1e30)
    return draw.choice([*words, *numbers, "2 epochs", "5 steps", True, None, [], {}])


def override(draw: Draw) -> Case:
    """A valid config with overrides of any form."""
    words = [_override(draw) for _ in range(draw.choice((1, 1, 2)))]
    return Case("override", {}, partial(load_config, "c.yaml", words))


def _override(draw: Draw) -> str:
    key = draw.choice(_keys())
    if draw.random() < 0.2:  # some are right
        return f"{key.name}={key.default}"
    name = key.name.replace("[]", draw.choice((".0", ".1", "", ".²", ".-1")))
    if draw.random() < 0.15:
        name = draw.choice((name + "." + draw.text(), draw.text(), name[:-1]))
    value = draw.value()
    text = value if isinstance(value, str) else json.dumps(value, skipkeys=True)
    return name + draw.choice(("=", "=", "=", "=", "", "==")) + text


def source(draw: Draw) -> Case:
    """A source string of any form."""
    kind = draw.choice(tuple(FILES_OF))
    name = FILES_OF[kind]
    if draw.random() < 0.3:
        kind = draw.choice((*FILES_OF, draw.text()))
        name = draw.choice((name, "pictures", "*.csv", "saved", "runs/*", "pipe", draw.text()))
    bounds = [
        draw.choice(("", "0", "3", "50%", "100%", "1e3", "-1", "²", "9" * 30, draw.text()))
        for _ in "ab"
    ]
    cut = f"[{bounds[0]}:{bounds[1]}]"
    cut = draw.choice(("", "", "[:50%]", cut, cut, f"[{bounds[0]}]", "[", "[::]"))
    spec = f"{kind}:{name}{cut}{draw.choice(('', '', '', ':ordered', ':train', draw.text()))}"
    where = draw.choice(({}, {}, {}, {"label": draw.value()}, {draw.text(): draw.value()}))
    return Case("source", {}, partial(open_source, spec, where=where))


FILES_OF = {
    **SPLITS_OF,
    "arrow": "rows.arrow",
    "parquet": "rows.parquet",
    "hf": "saved",
    "coco": "coco.json",
    "squad": "squad.json",
    "images": "pictures",
}


# ----------------------------------------------------------------------------------------- rows


def rows(draw: Draw) -> Case:
    """A text file of rows with damaged lines, fields and values."""
    kind = draw.choice((*SPLITS_OF, "jsonl", "csv"))
    name = SPLITS_OF[kind]
    data = _original(name)
    if kind == "jsonl":
        lines = data.splitlines(keepends=True)
        number = draw.randrange(len(lines))
        lines[number] = draw.json(json.loads(lines[number])) + b"\n"
        data = b"".join(lines)
    if kind != "jsonl" or draw.random() < 0.2:
        data = draw.damaged(data)
    return Case(
        f"rows-{kind}", {name: data}, partial(_described, f"{kind}:{name}", draw.random() < 0.5)
    )


def coco_file(draw: Draw) -> Case:
    """A COCO file with changed fields."""
    files = {"coco.json": draw.json(_tree("coco.json"))}
    return Case("rows-coco", files, partial(_described, "coco:coco.json", False))


def squad_file(draw: Draw) -> Case:
    """A SQuAD file with changed fields, or with damaged bytes."""
    data = draw.json(_tree("squad.json"))
    data = draw.damaged(data) if draw.random() < 0.2 else data
    read = partial(_described, "squad:squad.json", draw.random() < 0.5)
    return Case("rows-squad", {"squad.json": data}, read)


def arrow(draw: Draw) -> Case:
    """An Arrow or Parquet file with damaged bytes, or a changed state of a saved set."""
    kind = draw.choice(tuple(ARROW_FILES))
    name = ARROW_FILES[kind]
    if kind == "hf" and draw.random() < 0.5:
        files = {"saved/state.json": draw.json(_tree("saved/state.json"), ["data-00000.arrow"])}
    else:
        files = {name: draw.damaged(_original(name))}
    where = "saved" if kind == "hf" else name
    return Case(f"rows-{kind}", files, partial(_described, f"{kind}:{where}", True))


def image(draw: Draw) -> Case:
    """A folder of pictures, one of which is damaged."""
    name = "pictures/red/00.png"
    data = _original(name)
    if draw.random() < 0.5:
        buffer = io.BytesIO()
        kind = draw.choice(("JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"))
        Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(buffer, kind)
        data = buffer.getvalue()
    return Case("rows-images", {name: draw.damaged(data)}, _pictures)


def _pictures() -> None:
    source = open_source("images:pictures")
    for _, row in source.each():
        decode(source.folder / row["image"], row["image"])


def _described(spec: str, labelled: bool) -> None:
    """What `jaxft data describe` does, printed nowhere."""
    names = {"text": "text", "label": "label"} if labelled else {}
    description = describe_data(spec, **names)
    description.to_json()
    Console(file=io.StringIO(), width=120).print(description.render())


# ---------------------------------------------------------------------------------- checkpoints


def config_json(draw: Draw) -> Case:
    """A checkpoint whose config.json has changed fields."""
    folder = draw.choice(("checkpoint", "vit"))
    files = {f"{folder}/config.json": draw.json(_tree(f"{folder}/config.json"))}
    task = draw.choice(
        (None, "embedding", "text_classification", "masked_lm", "image_classification")
    )
    labels = draw.choice((None, None, LABELS))
    return Case(
        "config.json", files, partial(describe, folder, LoadOptions(task=task, labels=labels))
    )


def weights(draw: Draw) -> Case:
    """A checkpoint whose weights have a changed header."""
    tensors, values = _safetensors("vit/model.safetensors")
    header = draw.json(tensors, [[0, 2**62], [4, 0], "I64", "BOOL"])
    size = len(header) if draw.random() < 0.9 else draw.choice((0, 7, 2**40, 2**63 - 1))
    files = {"vit/model.safetensors": size.to_bytes(8, "little") + header + values}
    return Case("weights", files, partial(describe, "vit", LoadOptions(task="embedding")))


@cache
def _safetensors(name: str) -> tuple[dict[str, Any], bytes]:
    """The header of a file of weights, and the bytes after it."""
    data = _original(name)
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def index(draw: Draw) -> Case:
    """A checkpoint in shards whose index has changed entries."""
    shard = "model-00001-of-00001.safetensors"
    names = sorted(_safetensors("vit/model.safetensors")[0].keys() - {"__metadata__"})
    tree = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    listed = draw.json(tree, [shard, "../checkpoint/model.safetensors"])
    files = {
        "vit/model.safetensors": None,
        f"vit/{shard}": _original("vit/model.safetensors"),
        "vit/model.safetensors.index.json": listed,
    }
    return Case("index", files, partial(describe, "vit", LoadOptions(task="embedding")))


def tokenizer(draw: Draw) -> Case:
    """A tokenizer.json with changed fields, or files beside it that name its special tokens."""
    files = {"checkpoint/tokenizer.json": draw.json(_tree("checkpoint/tokenizer.json"), PARTS)}
    if draw.random() < 0.3:
        files = {"checkpoint/tokenizer_config.json": draw.json(TOKENIZER_CONFIG)}
    elif draw.random() < 0.1:
        files |= {
            "checkpoint/tokenizer_config.json": None,
            "checkpoint/special_tokens_map.json": draw.json(TOKENIZER_CONFIG),
        }
    return Case("tokenizer", files, _tokenized)


TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "pad_token": "[PAD]",
    "mask_token": {"content": "[SEP]", "lstrip": False},
    "eos_token": None,
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
}
PARTS = (
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Sequence", "normalizers": []},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": "c"},
    {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]},
    {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
    {
        "id": 2**32 - 1,
        "content": "q",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    },
)


def _tokenized() -> None:
    tokens = load_tokenizer("checkpoint")
    encoded = tokens.encode([TEXT, ""], max_length=8)
    tokens.decode(encoded.ids[0].tolist())
    load_chat_template("checkpoint")


def processor(draw: Draw) -> Case:
    """An image processor's file with changed settings."""
    tree = draw.choice(
        (
            _tree("vit/preprocessor_config.json"),
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 16},
                "crop_size": {"height": 16, "width": 16},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "rescale_factor": 0.004,
                "do_resize": True,
            },
            {
                "feature_extractor_type": "ImageGPTFeatureExtractor",
                "size": 8,
                "clusters": [[0, 0, 0], [1, 1, 1]],
            },
        )
    )
    content = draw.json(tree)
    name = "preprocessor_config.json"
    if draw.random() < 0.2:
        name, content = "processor_config.json", draw.json({"image_processor": tree})
    return Case("processor", {f"vit/{name}": content}, partial(_processed, draw.choice((None, 8))))


def _processed(size: int | None) -> None:
    read = load_image_processor("vit", size)
    if max(read.size) <= 512:
        read(Image.fromarray(np.zeros((9, 7, 3), np.uint8)))


def generation(draw: Draw) -> Case:
    """A generation_config.json with changed fields."""
    tree = {
        "max_length": 20,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "eos_token_id": [1, 2],
        "num_beams": 1,
        "stop_strings": ["x"],
        "repetition_penalty": 1.1,
        "early_stopping": False,
        "min_p": 0.1,
        "length_penalty": 1.0,
    }
    files = {"checkpoint/generation_config.json": draw.json(tree)}
    return Case("generation", files, partial(read_settings, Path("checkpoint"), {}, {}))


def adapter(draw: Draw) -> Case:
    """An adapter_config.json with changed fields."""
    files = {"adapter/adapter_config.json": draw.json(_tree("adapter/adapter_config.json"))}
    options = LoadOptions(task="embedding", adapter="adapter")
    return Case("adapter", files, partial(describe, "checkpoint", options))


# ------------------------------------------------------------------------------------------ runs


def run(draw: Draw) -> Case:
    """A run folder of which one file has changed fields, on the report's page."""
    name = draw.choice(RUN_FILES)
    path = f"runs/sentiment/{name}"
    data, files = _original(path), {}
    if name == "predictions-test.jsonl":
        kind = draw.choice(tuple(LINES))
        about = {**_tree("runs/sentiment/run.json"), "view": kind}
        files = {"runs/sentiment/run.json": json.dumps(about).encode()}
        data = json.dumps(_line(*LINES[kind])).encode() + b"\n"
    if name.endswith(".jsonl"):
        lines = data.splitlines(keepends=True)
        number = draw.randrange(len(lines))
        lines[number] = draw.json(json.loads(lines[number])) + b"\n"
        data = b"".join(lines)
    elif name.endswith(".json"):
        data = draw.json(json.loads(data))
    else:
        data = draw.damaged(data)
    return Case("run", {**files, path: data}, _page)


def _line(keys: Keys, inside: dict[str, Keys]) -> dict[str, Any]:
    """A line of predictions of any view, with a value of the right type for each key."""
    of_type = {str: "good", list: [], dict: {"good": 0.7}, int: 1, float: 0.5, bool: True}
    line = {name: of_type.get(types[0]) for name, types in keys.items()}
    return line | {name: [_line(own, {})] for name, own in inside.items()}


def _page() -> None:
    read = read_run(Path("runs/sentiment"), "sentiment")
    json.dumps(all_figures([read]).all, allow_nan=False)
    view(read, 0)


MAKERS: tuple[tuple[int, Callable[[Draw], Case]], ...] = (
    (12, config),
    (12, override),
    (8, source),
    (14, rows),
    (4, coco_file),
    (4, squad_file),
    (8, arrow),
    (3, image),
    (10, config_json),
    (4, weights),
    (3, index),
    (12, tokenizer),
    (8, processor),
    (6, generation),
    (5, adapter),
    (12, run),
)
