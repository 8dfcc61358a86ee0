"""Rows of the word embeddings that train beside a frozen table: PEFT's trainable tokens."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

import jaxft
from jaxft.cli.main import main
from jaxft.config.load import to_yaml
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.models.adapters.low_rank import Adapter
from jaxft.models.layers import loss
from jaxft.models.load_adapters import save_adapter
from jaxft.training.story import train
from tests.support.families import auto_class, make_pair
from tests.support.tiny import tiny_config

IDS = (5, 1, 7)
ROWS, TABLE = "embeddings/word/token_rows", "embeddings/word/embedding"
MATCH = (r".*blocks/0/attention/query/kernel",)

pytestmark = [
    # PEFT asks transformers for what transformers no longer likes to be asked.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def with_rows(pair, ids=IDS, **more):
    return jaxft.load(pair.folder, adapter=Adapter(2, 4.0, MATCH, tokens=ids, **more))


def moved(model):
    """The model with random values added to its rows."""

    def value(name, leaf):
        rows = name.endswith("token_rows")
        return leaf + rows * np.random.default_rng(3).normal(size=leaf.shape).astype(np.float32)

    return model.with_params({name: value(name, leaf) for name, leaf in model.params.items()})


@pytest.mark.parametrize(
    ("kind", "head", "tables"),
    [
        ("bert", "masked_lm", {TABLE}),
        ("llama", "causal_lm", None),
        ("gpt2", "causal_lm", None),
        pytest.param("bart", "seq2seq", None, marks=pytest.mark.full),
        pytest.param("t5", "seq2seq", None, marks=pytest.mark.full),
        pytest.param("clip", "contrastive", {f"text/{TABLE}"}, marks=pytest.mark.full),
    ],
)
def test_rows_are_the_tables_own(tmp_path, kind, head, tables):
    """At the start nothing changes; later the model is that of the table with the rows in it."""
    pair = make_pair(kind, head, 1, tmp_path)
    model = with_rows(pair)
    output = "logits_per_text" if head == "contrastive" else "logits"
    plain = pair.ours(**pair.batch)[output]
    np.testing.assert_allclose(model(**pair.batch)[output], plain, atol=1e-6)
    assert tables is None or set(model.adapted.tokens) == tables
    other = moved(model)
    ours, merged = other(**pair.batch)[output], other.merged()(**pair.batch)[output]
    assert np.abs(ours - plain).max() > 1e-3
    np.testing.assert_allclose(ours, merged, atol=1e-5 * np.abs(plain).max())
    for table in model.adapted.tokens:
        before, after = (np.asarray(one.params[table]) for one in (pair.ours, other.merged()))
        along = 0 if table.endswith("embedding") else 1
        rest = np.delete(after, IDS, along)
        np.testing.assert_array_equal(rest, np.delete(before, IDS, along))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_their_gradient_is_that_of_the_tables_rows(tmp_path, monkeypatch, tied):
    """Also where scores are computed for pieces of the vocabulary, as those of a large one are."""
    pair = make_pair("llama", "causal_lm", 2, tmp_path)
    pair.torch.config.tie_word_embeddings = tied
    if not tied:
        pair.torch.lm_head.weight = torch.nn.Parameter(pair.torch.lm_head.weight.detach() + 0.1)
    pair.torch.save_pretrained(tmp_path)
    plain, model = jaxft.load(str(tmp_path)), with_rows(pair)
    ids = np.asarray(pair.batch["input_ids"]) % 9  # the rows' tokens are among them
    batch = {"input_ids": ids, "targets": np.roll(ids, -1, 1)}
    monkeypatch.setattr(loss, "MOST_SCORES", plain.vocab_size * ids.shape[1] / 4)

    def slopes(model):
        return jax.grad(lambda params: model.apply(params, batch)["losses"].sum())(model.params)

    ours, theirs = slopes(model), slopes(plain)
    np.testing.assert_allclose(
        ours[ROWS], theirs[TABLE][np.array(IDS)], atol=1e-5 * np.abs(theirs[TABLE]).max()
    )
    assert ("head/token_rows" in ours) is not tied
    if not tied:
        np.testing.assert_allclose(
            ours["head/token_rows"],
            theirs["head/kernel"][:, np.array(IDS)].T,
            atol=1e-5 * np.abs(theirs["head/kernel"]).max(),
        )


def test_a_lookup_costs_no_gradient_of_the_table(tmp_path):
    pair = make_pair("bert", "text_classification", 0, tmp_path)
    model = with_rows(pair)
    table = model.leaves[TABLE].shape

    def total(rows):
        return jnp.square(model.apply({**model.params, ROWS: rows}, pair.batch)["logits"]).sum()

    backward = str(jax.make_jaxpr(jax.grad(total))(model.params[ROWS]))
    assert f"f32[{table[0]},{table[1]}] = broadcast_in_dim" not in backward
    assert "scatter-add" not in backward


@pytest.mark.parametrize(
    ("kind", "head", "module"),
    [("bert", "text_classification", "word_embeddings"), ("llama", "causal_lm", "embed_tokens")],
)
def test_pefts_files_both_ways(tmp_path, kind, head, module):
    pair = make_pair(kind, head, 0, tmp_path / "base")
    ours = moved(with_rows(pair))
    also = ("head/kernel",) if head == "text_classification" else ()
    save_adapter(ours, tmp_path / "ours", also=also)
    theirs = peft.PeftModel.from_pretrained(pair.torch, tmp_path / "ours").eval()
    with torch.no_grad():
        wanted = theirs(**pair.torch_batch()).logits.numpy()
    logits = np.asarray(ours(**pair.batch)["logits"])
    keep = pair.keep(wanted)
    np.testing.assert_allclose(logits * keep, wanted * keep, atol=1e-5)

    fresh = auto_class(kind, head).from_pretrained(pair.folder)
    target = "query" if kind == "bert" else "q_proj"
    asked = peft.LoraConfig(
        r=2, target_modules=[target], trainable_token_indices={module: list(IDS)}
    )
    made = peft.get_peft_model(fresh, asked).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        wanted = made(**pair.torch_batch()).logits.numpy()
    made.save_pretrained(tmp_path / "theirs")
    back = jaxft.load(pair.folder, adapter=tmp_path / "theirs")
    assert set(back.adapted.tokens.values()) == {IDS}
    logits = np.asarray(back(**pair.batch)["logits"])
    np.testing.assert_allclose(logits * keep, wanted * keep, atol=1e-5)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"word_embeddings": [5, 1, 7], "decoder": [5]}, "has other tokens for each table"),
        ("all", "must be a list of ids"),
        ([5, 1], r"its '.*trainable_tokens_delta' is \[3, \d+\], and here it is \[2, \d+\]"),
        (None, "do not agree"),
        ([5, 1, 4000], "4000 is not an id below"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, indices, message):
    pair = make_pair("bert", "text_classification", 0, tmp_path / "base")
    save_adapter(with_rows(pair), tmp_path / "ours")
    path = tmp_path / "ours" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": indices}))
    with pytest.raises(UserError, match=message):
        jaxft.load(pair.folder, adapter=tmp_path / "ours")


# ------------------------------------------------------------------------------------------ a run
def config_of(folder, steps=4, **adapter):
    return tiny_config(
        folder,
        adapter={"kind": "lora", "rank": 2, "trainable_tokens": ["[SEP]", 2]} | adapter,
        optimizer={"lr": 1e-2, "clip": None},
        train={"length": f"{steps} steps", "evaluate_every": 2},
        checkpoint={"every": 2},
        schedule={"kind": "constant"},
    )


@pytest.mark.slow
def test_a_run_moves_these_rows_and_no_other(tmp_path):
    run = train(config_of(tmp_path, 2), quiet=True)
    resumed = train(config_of(tmp_path), resume=True, quiet=True)
    whole = train(config_of(tmp_path / "whole"), quiet=True)
    one, other = (open_trained(at.folder, "last").model for at in (resumed, whole))
    for name, value in one.params.items():
        np.testing.assert_array_equal(value, other.params[name], err_msg=name)
    before = jaxft.load(str(tmp_path / "checkpoint"), task="text_classification", num_labels=2)
    after = jaxft.load(str(export(run.folder)))
    differ = (np.asarray(before.params[TABLE]) != np.asarray(after.params[TABLE])).any(1)
    tokens = json.loads((tmp_path / "checkpoint" / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(np.flatnonzero(differ)) == {2, tokens["[SEP]"]}


@pytest.mark.slow
def test_a_grown_vocabulary_is_no_adapter(tmp_path, capsys):
    """PEFT writes rows into the table of the base model, which has none for the new tokens."""
    config = config_of(tmp_path, 1, trainable_tokens=["<new>"])
    tokenizer = tmp_path / "checkpoint" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["vocab"] |= {"<new>": 32}
    tokenizer.write_text(json.dumps(content))
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"resize_vocab": True})}
    )
    run = train(config, quiet=True)
    assert main(["export", str(run.folder), "--adapter"]) == 2
    message = "PEFT cannot store a grown vocabulary"
    assert message in " ".join(capsys.readouterr().err.split())
    adapter = Adapter(2, 4.0, MATCH, tokens=("<new>",))
    model = jaxft.load(str(tmp_path / "checkpoint"), resize_vocab=True, adapter=adapter)
    with pytest.raises(UserError, match=message):
        save_adapter(model, tmp_path / "alone")
    assert jaxft.load(str(export(run.folder))).vocab_size == 33


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"trainable_tokens": ["<new>"]}, "the tokenizer has no token '<new>'"),
        ({"trainable_tokens": [4000]}, "4000 is not an id below .* model.resize_vocab=true"),
        ({"trainable_tokens": [-1]}, "-1 is not an id below"),
        ({"kind": "bitfit", "rank": 8}, "'trainable_tokens' applies to lora and dora only"),
    ],
)
def test_what_is_wrong_with_them_is_said(tmp_path, capsys, adapter, message):
    path = tmp_path / "config.yaml"
    config = config_of(tmp_path).dump()
    config["adapter"] = {"kind": "lora", "rank": 8, "trainable_tokens": ["[SEP]"]} | adapter
    path.write_text(to_yaml(config))
    assert main(["train", str(path)]) == 2

    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_model_without_words_has_no_rows(tmp_path):
    pair = make_pair("vit", "image_classification", 0, tmp_path)
    with pytest.raises(UserError, match=r"5 is not an id below 0|has no word embeddings"):
        with_rows(pair)
