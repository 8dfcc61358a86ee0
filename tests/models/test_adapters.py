"""Adapters: what is put in, what trains, what a run keeps of it, and PEFT's files both ways."""

import json
import zlib
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

import jaxft
from jaxft.cli.main import main
from jaxft.config.sections import AdapterSection
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.cost import count_flops
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.recipe import chosen_leaves
from jaxft.engine.setup import build
from jaxft.engine.trained import make_task, open_checkpoints, open_trained
from jaxft.errors import UserError
from jaxft.export.export import export
from jaxft.inference.predict import predict
from jaxft.inference.score import score
from jaxft.models.adapters.low_rank import Adapter, is_adapter
from jaxft.models.load import LoadOptions, describe
from jaxft.models.load_adapters import save_adapter
from jaxft.models.tower.cache import prefill
from jaxft.models.tower.tower import Compute, Tower
from jaxft.runs.folder import open_run
from jaxft.training.story import train
from tests.support.families import FAMILIES, auto_class, gradients, make_pair
from tests.support.phases import phase_of, stage_of
from tests.support.random_configs import random_config
from tests.support.tiny import tiny_config

pytestmark = [
    # PEFT asks transformers for what transformers no longer likes to be asked.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]

ONE = jax.devices()[:1]
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0}
QUERY = r"blocks/\d+/attention/query/kernel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run's folder whose checkpoint lacks a pooler, so that more than the head is new."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_config(folder)
    weights = folder / "checkpoint" / "model.safetensors"
    tensors = {n: v for n, v in load_file(weights).items() if not n.startswith("pooler.")}
    save_file(tensors, weights, {"format": "pt"})
    return folder


def config_of(folder, adapter=LORA, **sections):
    sections = {"train": {"length": "4 steps", "evaluate_every": 2}} | sections
    optimizer = {"lr": 1e-2, "clip": None, "weight_decay": 0.0} | sections.pop("optimizer", {})
    schedule, checkpoint = {"kind": "constant"}, {"every": 2}
    return tiny_config(
        folder,
        adapter=adapter,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        **sections,
    )


@pytest.fixture(scope="module")
def run(folder):
    """A run of four steps."""
    return train(config_of(folder), quiet=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_pair("bert", "text_classification", 0, tmp_path_factory.mktemp("bert"))


def shaken(model, also=()):
    """The model with random values added to its adapters, and to what else is named."""

    def value(name, leaf):
        if not is_adapter(name) and name not in also:
            return leaf
        return leaf + 0.1 * np.random.default_rng(len(name)).normal(size=leaf.shape)

    return model.with_params(
        {n: np.asarray(value(n, leaf), np.float32) for n, leaf in model.params.items()}
    )


def first_step(config, shake=False):
    """Every parameter before and after one step of a run."""
    built = build(config, devices=ONE)
    model = load_params(built)
    model = shaken(model) if shake else model
    stage, state = (
        stage_of(built, model.params),
        initial_state(built, phase_of(built), model.params),
    )
    before = jax.tree.map(np.array, stage.params(state))
    rows = built.splits["train"].examples
    batch = rows.collate(built.plan.batch(0), built.layout.row_length)
    placed = place_batch(batch, batch_sharding(built.mesh))
    state, _ = stage.step(state, stage.frozen, placed, stage.inputs(0))
    return before, jax.tree.map(np.array, stage.params(state))


# ------------------------------------------------------------------------------- the computation
def test_an_adapter_starts_as_nothing(bert):
    plain = bert.ours(**bert.batch)["logits"]
    for dora in (False, True):
        model = jaxft.load(bert.folder, adapter=Adapter(2, 4.0, dora=dora))
        started = model(**bert.batch)["logits"]
        np.testing.assert_allclose(started, plain, rtol=0, atol=1e-6 if dora else 0)
        a = np.concatenate([v.ravel() for n, v in model.params.items() if n.endswith("lora_a")])
        inside = model.params["blocks/0/attention/query/lora_a"].shape[0]
        assert 0.9 < np.abs(a).max() * inside**0.5 <= 1  # uniform, as torch.nn.Linear
        assert not np.asarray(model.params["blocks/0/attention/query/lora_b"]).any()


def test_blocks_stay_alike_where_their_adapters_are(bert):
    every = jaxft.load(bert.folder, adapter=Adapter(2, 4.0)).towers["text"].blocks
    assert len(set(map(id, every))) == 1
    match = (r"blocks/0/attention/query/kernel",)
    first = jaxft.load(bert.folder, adapter=Adapter(2, 4.0, match)).towers["text"].blocks
    assert first[0] is not first[1]
    assert len(set(map(id, first[1:]))) <= 1


def test_dropout_is_of_an_adapters_input_alone(bert):
    model = shaken(jaxft.load(bert.folder, dropout=0.0, adapter=Adapter(2, 4.0, dropout=0.5)))
    run = jax.jit(model.apply, static_argnums=3)
    plain = run(model.params, bert.batch, None, Compute())["logits"]
    names = frozenset(filter(is_adapter, model.params))
    key = jax.random.key(0)
    dropped = run(model.params, bert.batch, key, Compute(trainable=names))["logits"]
    scanned = run(model.params, bert.batch, key, Compute(trainable=names, scan=True))["logits"]
    assert np.abs(dropped - plain).max() > 1e-4
    np.testing.assert_allclose(scanned, dropped, atol=1e-5)
    nothing = model.with_params(
        {n: v * 0 if is_adapter(n) else v for n, v in model.params.items()}
    ).params
    without = run(nothing, bert.batch, key, Compute(trainable=names))["logits"]
    np.testing.assert_array_equal(without, bert.ours(**bert.batch)["logits"])


CONVOLUTIONS = {"resnet"}  # whose blocks have no linear map
LAST_OF_EACH_FAMILY = sorted(
    {f.name: kind for kind, f in FAMILIES.items() if kind not in CONVOLUTIONS}.values()
)


@pytest.mark.parametrize("kind", LAST_OF_EACH_FAMILY)
def test_every_linear_map_of_a_block_passes_an_adapter_the_blocks_key(kind, tmp_path):
    """Each adapter folds its own path's number into the key: a program that drops out has it."""
    config = random_config(kind, np.random.default_rng(1)).to_dict()
    if kind.endswith("encoder-decoder"):  # transformers sets these with the weights
        config["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    adapter = Adapter(1, 1.0, (r"(.*/)?blocks/\d+/.*kernel",), dropout=0.5)
    head = next(iter(FAMILIES[kind].model_types[kind]))
    model = describe(str(tmp_path), LoadOptions(task=head, adapter=adapter), weights=False)
    words = np.ones((2, 4), np.int32)
    batch = {"decoder_input_ids": words} if "encoder" in model.towers else {}
    batch |= {"input_ids": words} if model.vocab_size else {}
    if model.image_size is not None:
        batch["pixel_values"] = np.ones((2, 3, *model.image_size), np.float32)
    program = str(jax.make_jaxpr(model.apply)(model.params, batch, jax.random.key(0)))
    blocks = [
        block for part in model.towers.values() if isinstance(part, Tower) for block in part.blocks
    ]
    paths = {path for block in blocks for path in block.leaves if path.endswith("/lora_a")}
    assert paths
    for path in paths:
        number = zlib.crc32(path.removesuffix("/lora_a").encode())
        assert f" {number}:u32[]" in program, f"{path} is called without a key"


def test_a_step_costs_no_gradient_of_a_whole_kernel(bert):
    """To the last multiplication: of the frozen kernels there is dx, and dW of thin ones only."""
    rank, model = 2, jaxft.load(bert.folder, adapter=Adapter(2, 4.0))
    names = [name for name in model.params if is_adapter(name)]
    compute = Compute(trainable=frozenset(names))
    found = count_flops(partial(gradients, bert, model=model, names=names, compute=compute))
    everything = count_flops(partial(gradients, bert))
    examples, length = bert.batch["input_ids"].shape
    tokens = examples * length
    kernels = {n: v.shape for n, v in bert.ours.params.items() if n.endswith("kernel")}
    width = kernels["blocks/0/attention/key/kernel"][1]
    saved, added = 2 * tokens * length * width, 0  # of the first block's keys, which nothing reads
    for name, (inside, outside) in kernels.items():
        block = name.startswith("blocks/")
        saved += 2 * (tokens if block else examples) * inside * outside
        if name.startswith("blocks/0/attention/") and "output" not in name:
            saved += 2 * tokens * inside * outside  # nothing below trains: no dx either
        if name.endswith(("query/kernel", "value/kernel")) and block:
            added += 6 * tokens * rank * (inside + outside)
            added -= 2 * tokens * rank * inside if name.startswith("blocks/0/") else 0
    assert found == everything - saved + added


def test_writing_token_by_token_reads_the_adapter(tmp_path):
    pair = make_pair("llama", "causal_lm", 0, tmp_path)
    model = shaken(jaxft.load(pair.folder, adapter=Adapter(2, 4.0)))
    ids, seen = pair.batch["input_ids"], np.ones_like(pair.batch["input_ids"])
    scores, _ = jax.jit(partial(prefill, model.towers["text"]), static_argnums=3)(
        model.params, ids, seen, 1
    )
    merged = model.merged()(input_ids=ids)["logits"]
    np.testing.assert_allclose(scores, merged[:, -1], atol=1e-5)
    assert np.abs(scores - pair.ours(input_ids=ids)["logits"][:, -1]).max() > 1e-3


# ------------------------------------------------------------------------------------ what trains
def test_under_sgd_the_first_step_moves_b_alone(folder):
    sgd = {"name": "sgd", "momentum": 0.0}
    before, after = first_step(config_of(folder, optimizer=sgd))
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    assert {n for n in moved if is_adapter(n)} == {n for n in before if n.endswith("lora_b")}
    assert moved - set(filter(is_adapter, moved)) == {
        *("head/kernel", "head/bias", "pooler/kernel", "pooler/bias")
    }


def test_lora_plus_moves_b_sixteen_times_as_far(folder):
    """Adam's first step is the rate itself, wherever the gradient is not nearly zero."""
    config = config_of(folder, LORA | {"lr_ratio": 16.0}, optimizer={"lr": 1e-3})
    before, after = first_step(config, shake=True)

    def step(leaf):
        kinds = [np.abs(after[n] - before[n]).ravel() for n in before if n.endswith(leaf)]
        return np.median(np.concatenate(kinds))

    assert step("lora_a") == pytest.approx(1e-3, rel=1e-2)
    assert step("lora_b") / step("lora_a") == pytest.approx(16, rel=1e-2)
    assert step("head/bias") / step("head/kernel") == pytest.approx(16, rel=1e-2)


def test_groups_divide_what_the_adapter_lets_train(folder):
    groups = [
        {"name": "low", "depth": [0, 1], "freeze": True},
        {"name": "b", "match": ".*/lora_b", "lr_mult": 3.0},
        {"name": "head", "match": "head/.*", "lr_mult": 10.0},
    ]
    table = build(config_of(folder, groups=groups), devices=ONE).phases[0].table
    rows = {leaf.name: leaf for leaf in table.leaves}
    owner = {name: row.group for name, row in rows.items()}
    assert owner["blocks/0/attention/query/lora_b"] == "low"
    assert owner["blocks/1/attention/query/lora_b"] == "b"
    assert owner["blocks/1/attention/query/lora_a"] == "rest"
    assert owner["blocks/1/attention/query/kernel"] == owner["blocks/0/mlp/up/bias"] == "base"
    assert rows["blocks/1/attention/query/lora_b"].multiplier == 3
    assert not rows["blocks/1/attention/query/kernel"].trainable
    assert all(row.trainable == (row.group not in ("base", "low")) for row in rows.values())
    assert rows["blocks/1/attention/query/lora_b"].depth == 2
    for match, said in (("blocks/.*/kernel", "adapter leaves all"), ("heda/.*", "matches no")):
        with pytest.raises(UserError, match=said):
            build(config_of(folder, groups=[{"name": "g", "match": match}]), devices=ONE)


def test_bitfit_trains_biases_and_the_head(folder):
    before, after = first_step(config_of(folder, {"kind": "bitfit"}))
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    # The bias of a key moves all scores of a query alike: its gradient is rounding.
    biases = {name for name in before if name.endswith("/bias")}
    assert moved - {n for n in before if n.endswith("key/bias")} == (
        biases | {"head/kernel", "pooler/kernel"}
    ) - {n for n in before if n.endswith("key/bias")}


def test_norms_trains_norms_and_the_head(folder):
    before, after = first_step(config_of(folder, {"kind": "norms"}))
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    norms = {name for name in before if "norm/" in name}
    assert len(norms) == 2 * (1 + 2 * 2)  # of the embeddings, and two of each block
    assert moved == norms | {"head/kernel", "head/bias", "pooler/kernel", "pooler/bias"}


def test_ranks_by_pattern_and_scales_by_root(bert):
    match = (r".*attention/(query|value)/kernel", r".*mlp/up/kernel")
    ranks = ((r"blocks/0/.*query/kernel", 1), (r"blocks/0/.*", 4))
    model = jaxft.load(bert.folder, adapter=Adapter(2, 6.0, match, ranks=ranks))
    chosen = {name: (one.rank, one.scale) for name, one in model.adapted.kernels.items()}
    lowest = {
        "blocks/0/attention/query/kernel": (1, 6.0),
        "blocks/0/attention/value/kernel": (4, 1.5),
        "blocks/0/mlp/up/kernel": (4, 1.5),
    }
    assert {name: chosen.pop(name) for name in lowest} == lowest
    assert len(chosen) == 9
    assert set(chosen.values()) == {(2, 3.0)}
    assert model.params["blocks/0/mlp/up/lora_a"].shape[1] == 4
    rooted = jaxft.load(bert.folder, adapter=Adapter(4, 6.0, match, rslora=True))
    assert {one.scale for one in rooted.adapted.kernels.values()} == {3.0}


# ------------------------------------------------------------------------------------------ a run
def test_a_checkpoint_holds_the_adapter_and_the_head(run, folder):
    trained = open_trained(run.folder)
    with open_checkpoints(
        open_run(run.folder), trained.config, make_task(trained.config), read_only=True
    ) as checkpoints:
        kept = checkpoints.load_params(trained.step)
    whole = {"head/kernel", "head/bias", "pooler/kernel", "pooler/bias"}
    assert set(kept) == {n for n in trained.model.params if is_adapter(n)} | whole
    assert any(np.asarray(v).any() for n, v in kept.items() if n.endswith("lora_b"))
    source = load_file(folder / "checkpoint" / "model.safetensors")
    base = load_file(run.folder / "base" / "model.safetensors")
    for name, value in source.items():
        assert base[f"bert.{name}"].tobytes() == value.tobytes()
    assert {n for n in base if n.removeprefix("bert.") not in source} == {
        *(f"classifier.{leaf}" for leaf in ("weight", "bias")),
        *(f"bert.pooler.dense.{leaf}" for leaf in ("weight", "bias")),
    }


def test_a_resumed_run_is_the_run(run, folder):
    half = config_of(
        folder, run={"name": "half", "dir": str(folder / "runs")}, train={"length": "2 steps"}
    )
    train(half, quiet=True)
    more = half.model_copy(update={"train": config_of(folder).train})
    resumed = train(more, resume=True, quiet=True)
    one, other = (open_trained(folder, "last").model for folder in (run.folder, resumed.folder))
    for name, value in one.params.items():
        np.testing.assert_array_equal(value, other.params[name])


def test_the_line_to_the_start_interpolates_the_effective_weights(run, folder):
    found = score(run.folder, interpolate="0:1:0.5")["line"]
    assert found[-1]["metrics"] == pytest.approx(run.metrics, abs=1e-6)
    # B is zero at the start, so half of the way from there is the same factors at half the scale.
    trained = open_trained(run.folder)
    start = jax.device_get(load_params(build(trained.config)).params)
    half = {
        name: leaf if is_adapter(name) else (np.asarray(leaf) + start[name]) / 2
        for name, leaf in trained.model.params.items()
    }
    half = {name: leaf / 2 if name.endswith("lora_b") else leaf for name, leaf in half.items()}
    export_to = trained.model.with_params(half).save(folder / "halved")
    plain = config_of(
        folder, adapter=None, run={"dir": str(folder / "runs"), "name": "halved"},
        model={"checkpoint": str(export_to)},
    )  # fmt: skip
    setup = build(plain)
    params = jax.device_put(load_params(setup).params, dict(setup.shardings))
    scores = evaluate(setup, build_eval_step(setup), params, setup.splits["test"]).scores
    assert found[1]["metrics"] == pytest.approx(scores, abs=1e-5)
    assert found[0]["metrics"] != pytest.approx(scores, abs=1e-5)


def test_a_run_scores_predicts_and_exports_the_merged_model(run, folder):
    assert score(run.folder)["metrics"] == pytest.approx(run.metrics, abs=1e-6)
    (said,) = predict(run.folder, ["a lovely film"])
    assert said["label"] in ("0", "1")
    trained = open_trained(run.folder).model
    plain = jaxft.load(str(export(run.folder)))
    assert not any(map(is_adapter, plain.params))
    ids = np.array([[2, 4, 15, 16, 3]])
    np.testing.assert_allclose(
        plain(input_ids=ids)["logits"], trained(input_ids=ids)["logits"], atol=1e-5
    )
    kernel, bias = (f"blocks/0/attention/query/{leaf}" for leaf in ("kernel", "bias"))
    assert not np.array_equal(plain.params[kernel], trained.params[kernel])
    np.testing.assert_array_equal(plain.params[bias], trained.params[bias])


def test_a_runs_adapter_alone_is_pefts(run, folder):
    trained = open_trained(run.folder).model
    alone = export(run.folder, adapter=True)
    files = {path.name: path.read_bytes() for path in alone.iterdir()}
    assert export(run.folder, alone, adapter=True) == alone  # over an earlier one
    assert {path.name: path.read_bytes() for path in alone.iterdir()} == files
    with pytest.raises(UserError, match=r"holds .* and is not an earlier export of jaxft"):
        export(run.folder, folder, adapter=True)
    assert {path.name for path in alone.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }
    about = json.loads((alone / "adapter_config.json").read_text())
    assert about["target_modules"] == ["query", "value"]
    assert set(about["modules_to_save"]) == {"bert.pooler.dense", "classifier"}
    assert (about["r"], about["lora_alpha"], about["task_type"]) == (2, 4, "SEQ_CLS")
    assert about["base_model_name_or_path"] == "checkpoint"  # of a path its last name
    base = AutoModelForSequenceClassification.from_pretrained(run.folder / "base")
    theirs = peft.PeftModel.from_pretrained(base, alone).eval()
    ids = np.array([[2, 4, 15, 16, 3]])
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, trained(input_ids=ids)["logits"], atol=1e-5)


def test_a_run_goes_on_from_a_folder_of_peft(run, folder, tmp_path):
    """The folder may be gone once the run has begun: what it gave is kept."""
    trained = open_trained(run.folder).model
    alone = export(run.folder, tmp_path / "alone", adapter=True)
    config = config_of(
        folder,
        {"kind": "lora", "checkpoint": str(alone)},
        run={"name": "on", "dir": str(folder / "runs")},
        train={"length": "1 steps"},
        optimizer={"lr": 0.0},
        groups=[{"name": "a", "match": ".*/lora_a", "freeze": True}],
    )
    on = train(config, quiet=True)
    for path in alone.iterdir():
        path.unlink()
    again = open_trained(on.folder).model
    for name, value in trained.params.items():
        np.testing.assert_array_equal(value, again.params[name], err_msg=name)


# ------------------------------------------------------------------------------------ PEFT's files
BOTH_WAYS = [
    ("bert", "text_classification", False, ["query", "value", "attention.output.dense"]),
    ("roberta", "text_classification", False, ["query", "value"]),
    ("distilbert", "text_classification", False, ["q_lin", "v_lin"]),
    ("distilbert", "question_answering", False, ["q_lin", "v_lin"]),  # a head that did not train
    ("gpt2", "causal_lm", False, ["c_attn", "c_fc"]),
    ("gpt2", None, True, ["c_attn"]),
    ("llama", "text_classification", True, ["q_proj", "v_proj"]),
    ("modernbert", "masked_lm", False, ["Wqkv", "Wi"]),
    ("nomic_bert", "text_classification", False, ["q_proj", "up_proj"]),
    ("gpt_neox", "causal_lm", False, ["query_key_value", "dense_h_to_4h"]),
    ("phi3", "text_classification", False, ["qkv_proj", "gate_up_proj"]),
    pytest.param("vit", "image_classification", False, ["q_proj", "fc1"], marks=pytest.mark.full),
    pytest.param("clip", "contrastive", True, ["q_proj", "v_proj"], marks=pytest.mark.full),
]
OUTPUTS = {
    None: "last_hidden_state",
    "contrastive": "logits_per_image",
    "question_answering": "start_logits",
}


@pytest.mark.parametrize(("kind", "head", "dora", "targets"), BOTH_WAYS)
def test_pefts_files_both_ways(tmp_path, kind, head, dora, targets):
    pair = make_pair(kind, head, 0, tmp_path / "base")
    output = OUTPUTS.get(head, "logits")

    def of_torch(model):
        with torch.no_grad():
            found = getattr(model.eval()(**pair.torch_batch()), output).numpy()
        return found * pair.keep(found)

    def of_ours(model):
        found = np.asarray(model(**pair.batch)[output])
        return found * pair.keep(found)

    match = (r".*attention/(query|value|query_key_value)/kernel", r".*blocks/0/mlp/up/kernel")
    also = ("head/kernel",) if "classification" in (head or "") else ()
    ranks = ((r".*blocks/0/attention/.*", 3),)
    adapter = Adapter(2, 3.0, match, dora, ranks=ranks, rslora=not dora)
    ours = shaken(jaxft.load(pair.folder, adapter=adapter), also)
    save_adapter(ours, tmp_path / "ours", also=also)
    theirs = peft.PeftModel.from_pretrained(pair.torch, tmp_path / "ours")
    np.testing.assert_allclose(of_torch(theirs), of_ours(ours), atol=1e-5)
    assert np.abs(of_ours(ours) - of_ours(pair.ours)).max() > 1e-3
    read = jaxft.load(pair.folder, adapter=tmp_path / "ours")
    np.testing.assert_allclose(of_ours(read), of_ours(ours), atol=1e-5)

    fresh = auto_class(kind, head).from_pretrained(pair.folder)
    asked = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        rank_pattern={r".*0\..*": 2},
        alpha_pattern={r".*0\..*": 9},
        use_rslora=True,
        use_dora=dora,
        fan_in_fan_out=kind == "gpt2",
        task_type="SEQ_CLS" if head == "text_classification" else None,
    )
    made = peft.get_peft_model(fresh, asked)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    made.save_pretrained(tmp_path / "theirs")
    back = jaxft.load(pair.folder, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(of_ours(back), of_torch(made), atol=1e-5)


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (
            {"kind": "lora", "rank": 33},
            "adapter.rank: 33 is more than the rank of 'blocks/0/attention/query",
        ),
        ({"kind": "lora", "match": ["blocks/0/atention/.*"]}, "matches no parameter.*Nearest"),
        ({"kind": "lora", "match": ["head/kernel"]}, "matches no parameter"),
        ({"kind": "lroa"}, "'adapter.kind' must be lora, dora, bitfit or norms.*you mean 'lora'"),
        ({"kind": "norms", "rank": 4}, "'rank' applies to lora and dora only, and kind is norms"),
        ({"kind": "lora", "ranks": {"blocks/0/.*": 33}}, "adapter.rank: 33 is more than the rank"),
        ({"kind": "lora", "ranks": {"blocks/9/.*": 2}}, "adapter.ranks.*matches no parameter"),
        ({"kind": "lora", "ranks": {"blocks/0/.*": 0}}, "adapter.ranks"),
        ({"rank": 4}, "'rank' needs adapter.kind: lora or dora"),
        ({"kind": "bitfit", "rank": 4}, "'rank' applies to lora and dora only"),
        (
            {"kind": "lora", "checkpoint": "x", "alpha": 1.0},
            "'alpha' comes from adapter.checkpoint",
        ),
        ({"kind": "lora", "checkpoint": "nowhere"}, "'nowhere' is not an adapter"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said(folder, adapter, said):
    with pytest.raises(UserError, match=said):
        build(config_of(folder, adapter), devices=ONE)


def test_a_folder_that_does_not_fit_is_refused(run, folder, bert, tmp_path):
    alone = export(run.folder, tmp_path / "alone", adapter=True)
    with pytest.raises(
        UserError, match=r"for another base model: its '.*lora_A.weight' is \[2, 32\]"
    ):
        jaxft.load(bert.folder, adapter=alone)
    llama = make_pair("llama", "text_classification", 0, tmp_path / "llama")
    with pytest.raises(UserError, match="for another base model: it adapts 'bert"):
        jaxft.load(llama.folder, adapter=alone)
    config = config_of(folder, {"kind": "dora", "checkpoint": str(alone)})
    with pytest.raises(UserError, match=r"adapter.kind is dora, but '.*alone' holds lora"):
        build(config, devices=ONE)
    about = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps(about | {"lora_bias": True}))
    with pytest.raises(UserError, match="'lora_bias' is true, which is not supported"):
        jaxft.load(str(run.folder / "base"), adapter=alone)
    for fields, sentence in (
        ({"lora_alpha": "x"}, "lora_alpha must be a number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
        ({"lora_dropout": 5}, "lora_dropout one from 0 to less than 1"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: .* is not a regular expression"),
        ({"alpha_pattern": {"x" * 1001: 1}}, "is longer than 1,000 characters"),
    ):
        (alone / "adapter_config.json").write_text(json.dumps(about | fields))
        with pytest.raises(UserError, match=sentence):
            jaxft.load(str(run.folder / "base"), adapter=alone)
    no_biases = SimpleNamespace(leaves={"norm/scale": None}, model_type="llama")
    with pytest.raises(UserError, match="bitfit trains biases, and a llama has none"):
        chosen_leaves(AdapterSection(kind="bitfit"), no_biases)


def test_only_an_adapter_stands_alone(bert, tmp_path):
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(bert.ours, tmp_path / "alone")
    clip = make_pair("clip", "contrastive", 0, tmp_path / "clip")
    model = jaxft.load(clip.folder, adapter=Adapter(2, 4.0))
    with pytest.raises(UserError, match="PEFT cannot store 'logit_scale'"):
        save_adapter(model, tmp_path / "alone", also=("head/logit_scale",))
    assert not (tmp_path / "alone").exists()


def test_the_command_line_says_it_and_ends_with_two(folder, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config_of(folder).dump()))
    assert main(["plan", str(path), "adapter.rank=33"]) == 2
    assert "adapter.rank: 33 is more than" in capsys.readouterr().err
