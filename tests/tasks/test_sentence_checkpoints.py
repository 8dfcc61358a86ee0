"""Checkpoints of sentence-transformers: pooling, Dense modules and prompts, read and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import jaxft
from jaxft.cli.main import main
from jaxft.data.sources.open import given_rows
from jaxft.engine.trained import Trained, open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.export.sentences import write_sentence_files
from jaxft.models import load as registry
from jaxft.models.tower.tower import PLAIN
from jaxft.tasks.embedding.pooling import KEYS, pooling_config
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.task import make
from jaxft.tasks.parts.tools import Tools
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_checkpoint, tiny_config

TEXTS = ["a warm film", "dull", "the stale plot of the story"]
QUERY = "with the "  # of words that the tiny tokenizer knows
WIDTH = 32
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def write_modules(folder, pooling, dense=(), prompts=None, default=None):
    """Write what a checkpoint of sentence-transformers has beside its encoder.

    Args:
        folder: the encoder's.
        pooling: a name of `KEYS`.
        dense: in, out, bias and activation of each Dense module.
        prompts, default: of `config_sentence_transformers.json`; None writes none.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = ["", *(f"{n}_{kind}" for n, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling_config(pooling, WIDTH)))
    draw = np.random.default_rng(3)
    for number, (inside, outside, bias, activation) in enumerate(dense, 2):
        own = folder / f"{number}_Dense"
        own.mkdir()
        fields = {"in_features": inside, "out_features": outside, "bias": bias}
        fields["activation_function"] = f"torch.nn.modules.{activation}"
        (own / "config.json").write_text(json.dumps(fields))
        tensors = {"linear.weight": draw.normal(0, 0.3, (outside, inside)).astype(np.float32)}
        if bias:
            tensors["linear.bias"] = draw.normal(0, 0.3, outside).astype(np.float32)
        save_file(tensors, own / "model.safetensors", {"format": "pt"})
    if prompts is not None:
        fields = {"prompts": prompts, "default_prompt_name": default}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(fields))
    return folder


def bert(folder):
    return tiny_checkpoint(folder)


def word_tokenizer(folder, words, post=None):
    """Save a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [word for word in words if word.startswith("<")]
    tokenizer.add_special_tokens(special)
    template, used = post
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=[(one, words.index(one)) for one in used]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


WORDS = ["a", "warm", "film", "dull", "the", "stale", "plot", "of", "story", "with"]


def qwen3(folder):
    """Make a causal encoder whose tokenizer puts an end token behind each text."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    transformers.Qwen3Model(config).save_pretrained(folder)
    words = ["<pad>", "<unk>", "<end>", *WORDS]
    word_tokenizer(folder, words, ("$A:0 <end>:0", ["<end>"]))
    return folder


def mpnet(folder):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
        **NO_DROPOUT,
    )
    transformers.MPNetModel(config).save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    word_tokenizer(folder, words, ("<s>:0 $A:0 </s>:0", ["<s>", "</s>"]))
    return folder


TANH, IDENTITY = "activation.Tanh", "linear.Identity"
# Name -> encoder, pooling, Dense modules, prompts, default prompt.
SHAPES = {
    "bge": (bert, "cls", (), {"query": QUERY}, None),
    "qwen3": (qwen3, "last", (), {"query": QUERY, "document": ""}, None),
    "mpnet": (mpnet, "mean", (), None, None),
    "distiluse": (bert, "mean", ((WIDTH, 20, True, TANH),), None, None),
    "gemma": (
        bert,
        "mean",
        ((WIDTH, 48, False, IDENTITY), (48, 24, False, IDENTITY)),
        {"query": QUERY, "document": "of the ", "other": "dull "},
        "other",
    ),
    **{f"max {kind}": (bert, pooling, (), None, None) for kind, pooling in (("", "max"),)},
    "weighted": (bert, "weighted_mean", ((WIDTH, 20, True, "activation.GELU"),), None, None),
}


def bound_task(folder, **section):
    """Bind the task to a checkpoint, as a run begins with it."""
    model = registry.load(str(folder), task="embedding")
    task = make(Section(kind="embedding", **section))
    task = task.bind(Tools(model, None, None), ()).task
    return task.fitted(task.fit(None, model)).bind(Tools(model, None, None), ())


def vectors_of(bound, texts, column):
    """Embed texts of a column alone: `[texts, D]`."""
    examples = bound.examples(given_rows([{column: text} for text in texts]), labelled=False)
    batch = examples.collate(np.arange(len(texts))[:, None], 40)
    model = bound.tools.model
    outputs = bound.represent(model.params, model(**batch), batch, PLAIN)
    return np.asarray(bound.outcomes(outputs, batch)["vectors"])[:, 0, 0]


def both_roles(folder):
    """Embed the texts by sentence-transformers as queries and as documents."""
    encoder = SentenceTransformer(str(folder), device="cpu")
    options = {"show_progress_bar": False, "normalize_embeddings": True}
    return encoder.encode_query(TEXTS, **options), encoder.encode_document(TEXTS, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_and_exports_are_those_of_sentence_transformers(tmp_path, shape):
    encoder, pooling, dense, prompts, default = SHAPES[shape]
    folder = write_modules(encoder(tmp_path / "model"), pooling, dense, prompts, default)
    bound = bound_task(folder)
    assert bound.task.pooling == pooling
    out = tmp_path / "out"
    model = bound.tools.model
    model.save(out)
    config = tiny_config(tmp_path, task={"kind": "embedding"}, data={"max_length": None})
    write_sentence_files(Trained(None, config, bound.task, (), model, 0, None), out)
    for checkpoint in (folder, out):
        expected = both_roles(checkpoint)
        for column, of_role in zip(("anchor", "positive"), expected, strict=True):
            vectors = vectors_of(bound, TEXTS, column)
            np.testing.assert_allclose(vectors, of_role, atol=1e-5)
    if prompts is not None:
        assert not np.allclose(*both_roles(out), atol=1e-2)
    plain = SentenceTransformer(str(out), device="cpu").encode(TEXTS, show_progress_bar=False)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(plain, theirs, atol=1e-5)  # the default prompt


def test_every_pooling_is_among_the_shapes():
    assert {pooling for _, pooling, *_ in SHAPES.values()} == KEYS.keys()


def test_prompts_of_the_config_replace_those_of_the_checkpoint(tmp_path):
    folder = write_modules(bert(tmp_path / "model"), "mean", prompts={"passage": "of the "})
    own = bound_task(folder)
    assert own.task.own_prompts.roles == {"document": "of the "}
    assert "'of the ' (document)" in own.task.notes[0]
    asked = bound_task(folder, prompts={"query": QUERY})
    assert asked.task.notes == ()
    queries, _ = both_roles(folder)
    encoder = SentenceTransformer(str(folder), device="cpu", prompts={"query": QUERY})
    prompted = encoder.encode_query(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(vectors_of(asked, TEXTS, "anchor"), prompted, atol=1e-5)
    np.testing.assert_allclose(vectors_of(asked, TEXTS, "positive"), queries, atol=1e-5)
    none = bound_task(folder, prompts={})
    np.testing.assert_allclose(vectors_of(none, TEXTS, "positive"), queries, atol=1e-5)
    scored = bound_task(folder, prompts={"query": QUERY}, score="score")
    np.testing.assert_allclose(vectors_of(scored, TEXTS, "positive"), prompted, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("2_Dense/config.json", {"in_features": 31}, "in_features is 31, and the vectors before"),
        ("2_Dense/config.json", {"out_features": "x"}, "must be sizes of vectors"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "activation_function torch.nn.modules.activation.Mish is not supported",
        ),
        ("2_Dense/config.json", {"use_residual": True}, "without a residual connection"),
        ("2_Dense/config.json", None, "is missing, and modules.json names its folder"),
        ("2_Dense/model.safetensors", None, "holds no model.safetensors"),
        ("1_Pooling/config.json", {"include_prompt": False}, "leaves out the tokens of prompts"),
        ("config_sentence_transformers.json", {"prompts": [3]}, "prompts must be texts by name"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "x"},
            "default_prompt_name is not among the prompts",
        ),
    ],
)
def test_files_that_are_wrong_or_not_supported_are_refused(tmp_path, file, content, message):
    dense = ((WIDTH, 20, True, TANH),)
    folder = write_modules(bert(tmp_path / "model"), "mean", dense, {"query": QUERY})
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(UserError, match=message):
        bound_task(folder)


# ----------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """Train a model with a Dense module and prompts for a few steps, from a copy of its base."""
    folder = tmp_path_factory.mktemp("dense")
    dense = ((WIDTH, 20, True, TANH),)
    prompts = {"query": QUERY, "document": "of the ", "other": "dull "}
    write_modules(tiny_checkpoint(folder / "checkpoint"), "mean", dense, prompts, "other")
    words = [f"{word}{end}" for word in WORDS for end in ("", "s", "ly")]
    rows = [{"anchor": f"a {w}", "positive": f"the {w} story"} for w in words]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"jsonl:{folder}/pairs.jsonl"
    config = tiny_config(
        folder,
        task={"kind": "embedding", "truncate_dim": 12},
        data={"train": source, "eval": source, "test": None, "batch_size": 8},
        groups=[
            {"name": "dense", "match": "head/.*", "lr_mult": 5},
            {"name": "encoder", "match": ".*", "freeze": True},
        ],
        train={"length": "3 steps", "evaluate_every": "3 steps"},
        checkpoint={"base": "copy"},
        report={"tensorboard": False},
    )
    return jaxft.train(config, quiet=True)


@pytest.mark.slow
def test_dense_modules_train_as_a_head_and_are_exported(run, tmp_path, capsys):
    trained = open_trained(run.folder)
    assert trained.table.trainable == ("head/dense_0/bias", "head/dense_0/kernel")
    base = load_file(run.folder / "base" / "2_Dense" / "model.safetensors")
    folder = export(run.folder)
    exported = load_file(folder / "2_Dense" / "model.safetensors")
    assert exported.keys() == base.keys() == {"linear.weight", "linear.bias"}
    assert not np.allclose(exported["linear.weight"], base["linear.weight"])
    stored = load_file(folder / "model.safetensors")
    assert not any("dense_0" in name or "2_Dense" in name for name in stored)
    assert main(["predict", str(run.folder), *TEXTS]) == 0
    vectors = [json.loads(line)["vector"] for line in capsys.readouterr().out.splitlines()]
    queries, documents = both_roles(folder)
    assert queries.shape == (len(TEXTS), 12)
    np.testing.assert_allclose(vectors, queries, atol=1e-5)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(TEXTS))
    assert main(["search", str(run.folder), TEXTS[0], "--texts", str(lines), "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    similarities = {one["text"]: one["similarity"] for one in shown}
    expected = dict(zip(TEXTS, (documents @ queries[0]).tolist(), strict=True))
    assert similarities == pytest.approx(expected, abs=1e-5)


def test_an_exported_folder_keeps_the_prompts_and_starts_the_next_run(run):
    folder = export(run.folder)
    stored = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert stored["prompts"] == {"query": QUERY, "document": "of the ", "other": "dull "}
    assert (stored["default_prompt_name"], stored["truncate_dim"]) == ("other", 12)
    again = bound_task(folder)
    assert again.tools.model.dense.width == 20
    assert again.task.own_prompts.texts == stored["prompts"]
    code = (folder / "README.md").read_text()
    assert "SentenceTransformer(folder)" in code


def test_a_changed_dense_module_is_not_the_base_of_the_run(run, tmp_path):
    path = Path(run.folder) / "base" / "2_Dense" / "model.safetensors"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(UserError):
            open_trained(run.folder)
    finally:
        path.write_bytes(before)
