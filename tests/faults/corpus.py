"""Hostile inputs by name, each read in one process: `python -m tests.faults.corpus FOLDER`.

Small ones are written out here; those of many bytes are made. Each begins with the valid files of
`readers.workspace`, and says what the sentence that refuses it holds; None where it is accepted.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from jaxft.config.load import load_config
from jaxft.data.image.images import load_image_processor
from jaxft.data.sources.open import open_source
from jaxft.models.generate.settings import read_settings
from jaxft.models.load import LoadOptions, describe
from tests.faults import readers
from tests.faults.grammar import ESCAPE
from tests.faults.judge import Case, as_json, count, judged

DEEP = "[" * 100_000 + "]" * 100_000
VIT = LoadOptions(task="embedding")


def changed(name: str, **fields: Any) -> dict[str, bytes]:
    """A JSON file of the workspace with some fields of its own."""
    return {name: json.dumps({**json.loads(Path(name).read_text()), **fields}).encode()}


def corpus() -> list[tuple[str, dict[str, bytes | None], Any, str | None]]:
    """List each input: its name, files, reader, and words of its sentence."""
    config = partial(load_config, "c.yaml")
    table = partial(readers._described, "csv:rows.csv", True)
    lines = partial(readers._described, "jsonl:rows.jsonl", True)
    squad = partial(readers._described, "squad:squad.json", True)
    checkpoint = partial(describe, "vit", VIT)
    generation = partial(read_settings, Path("checkpoint"), {}, {})
    image, tokens, page = partial(load_image_processor, "vit"), readers._tokenized, readers._page
    run = "runs/sentiment"
    return [
        ("config: deep", {"c.yaml": f"run: {DEEP}".encode()}, config, "not YAML"),
        ("config: NUL", {"c.yaml": b"run: {name: a\0b}"}, config, "not YAML"),
        ("config: UTF-16", {"c.yaml": "run: {}".encode("utf-16")}, config, "not UTF-8"),
        ("config: a tag", {"c.yaml": b"run: !!python/object:os.system {}"}, config, "not YAML"),
        ("config: in itself", {"c.yaml": b"run: &a [*a]"}, config, "run"),
        ("config: twice", {"c.yaml": b"run: {}\nrun: {}"}, config, "a second time"),
        ("override: a digit", {}, partial(load_config, "c.yaml", ["groups.\u00b2=-"]), "groups"),
        ("override: long", {}, partial(load_config, "c.yaml", [f"run.x={'9' * 9000}"]), "run.x"),
        ("source: a pipe", {}, partial(open_source, "csv:pipe"), "no file"),
        ("source: a device", {}, partial(open_source, "csv:/dev/zero"), "no file"),
        ("source: http", {}, partial(open_source, "csv:http://127.0.0.1:9/x"), "neither a local"),
        ("source: nested", {}, partial(open_source, "csv:zip://a::b.zip"), "neither a local"),
        ("rows: escapes", {"rows.csv": f"text,label\n{ESCAPE},a\n".encode()}, table, None),
        ("rows: NUL", {"rows.csv": b"text,label\na\0b,c\n"}, table, None),
        ("rows: latin-1", {"rows.csv": b"text,label\na\xff,c\n"}, table, "not UTF-8"),
        ("rows: a quote", {"rows.csv": b'text,label\n"a,b\n'}, table, "not CSV"),
        ("rows: deep", {"rows.jsonl": f'{{"text": {DEEP}}}'.encode()}, lines, "100 levels"),
        ("rows: surrogate", {"rows.jsonl": b'{"text": "\\ud83d", "label": 1}'}, lines, "surrogate"),
        ("rows: digits", {"rows.jsonl": b'{"text": ' + b"9" * 5000 + b"}"}, lines, "not JSON"),
        ("rows: no articles", {"squad.json": b'{"data": 5}'}, squad, "is not a SQuAD file"),
        ("rows: squad, deep", {"squad.json": DEEP.encode()}, squad, "100 levels"),
        (
            "model: blocks",
            changed("vit/config.json", num_hidden_layers=10**9),
            checkpoint,
            "hidden_layers",
        ),
        ("model: no patch", changed("vit/config.json", patch_size=0), checkpoint, "patch_size"),
        ("model: activation", changed("vit/config.json", hidden_act=5), checkpoint, "hidden_act"),
        ("model: epsilon", changed("vit/config.json", layer_norm_eps=-1), checkpoint, "layer_norm"),
        ("model: deep", {"vit/config.json": DEEP.encode()}, checkpoint, "100 levels"),
        ("weights: empty", {"vit/model.safetensors": b""}, checkpoint, "model.safetensors"),
        (
            "weights: 2^60",
            {"vit/model.safetensors": b"\0" * 7 + b"\x10"},
            checkpoint,
            "safetensors",
        ),
        (
            "processor: deviation",
            changed("vit/preprocessor_config.json", image_std=[0, 0, 0]),
            image,
            "image_std",
        ),
        ("processor: size", changed("vit/preprocessor_config.json", size=10**9), image, "size"),
        (
            "tokenizer: id",
            {"checkpoint/tokenizer.json": _with_id(2**31 - 1)},
            tokens,
            "2,147,483,647",
        ),
        (
            "tokenizer: template",
            {"checkpoint/tokenizer_config.json": b'{"chat_template": [{"name": ["default"]}]}'},
            tokens,
            None,
        ),
        (
            "tokenizer: template bytes",
            {"checkpoint/chat_template.jinja": b"\xff"},
            tokens,
            "not UTF-8",
        ),
        (
            "generation: beams",
            {"checkpoint/generation_config.json": b'{"num_beams": 1000000}'},
            generation,
            "num_beams",
        ),
        ("run: deep", {f"{run}/run.json": DEEP.encode()}, page, None),
        (
            "run: numbers",
            {f"{run}/result.json": b'{"metrics": {"a": ' + b"9" * 400 + b"}}"},
            page,
            None,
        ),
        ("run: events", {f"{run}/metrics.jsonl": DEEP.encode() + b"\n"}, page, None),
        ("run: a list", {f"{run}/config.yaml": b"- 1\n"}, page, None),
    ]


def _with_id(number: int) -> bytes:
    fields = json.loads(Path("checkpoint/tokenizer.json").read_text())
    fields["model"]["vocab"]["film"] = number
    return json.dumps(fields).encode()


def ends_as_said(read: Any, words: str | None) -> None:
    """Read an input, and check that it is refused with these words, or accepted.

    Raises:
        UserError: it is refused as it should be.
        AssertionError: it ended otherwise than it should.
    """
    from jaxft.errors import UserError

    sentence = judged(read)
    if (sentence is None) != (words is None) or (words and sentence and words not in sentence):
        raise AssertionError(f"expected {words!r}, and it ended with {sentence!r}")
    if sentence is not None:
        raise UserError(sentence)


def main() -> None:
    """Read the inputs, and print the counts."""
    readers.workspace(Path(sys.argv[1]) / "workspace")
    cases = [
        Case(name, files, partial(ends_as_said, read, words))
        for name, files, read, words in corpus()
    ]
    counts = count(cases, Path.cwd())
    print(counts.lines(), file=sys.stderr)
    print(as_json(counts))


if __name__ == "__main__":
    main()
