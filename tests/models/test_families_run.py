"""How every family runs: scanned as unrolled, frozen for free, packed, and on eight devices."""

from dataclasses import replace
from functools import cache, partial
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import LayerDecaySection, ScheduleSection
from jaxft.engine.cost import count_flops
from jaxft.engine.recipe import optimizer_from, table_from
from jaxft.layerwise.optimizer import carry_state
from jaxft.layerwise.phases import within
from jaxft.layerwise.table import LayerTable
from jaxft.models import load as registry
from jaxft.models.adapters.low_rank import Adapter, is_adapter
from jaxft.models.tower.tower import Compute, Part
from tests.support.families import (
    BERTS_KIN,
    FAMILIES,
    KIN_HEADS,
    PYRAMIDS,
    SHARED_BLOCKS,
    Pair,
    assert_close_gradients,
    compiled,
    gradients,
    gradients_and_outputs,
    make_pair,
    torch_gradients,
)


def classifiers() -> list:
    """(model type, head) of each that can classify: the last of a file is always tested.

    But for BERT's kin, which have its blocks, and those of `KIN_HEADS`.
    """
    found = []
    for name, family in FAMILIES.items():
        heads = family.model_types[name]
        if "seq2seq" in heads or name == "rf_detr":
            continue  # two towers, and blocks of three kinds: tests of their own
        last = name == list(family.model_types)[-1] and name not in (*BERTS_KIN, *KIN_HEADS)
        marks = () if last else pytest.mark.full
        scored = ("text_classification", "image_classification", "object_detection")
        for head in scored if set(scored) & set(heads) else ("causal_lm",):
            if head in heads:
                found.append(pytest.param((name, head), marks=marks, id=f"{name}-{head}"))
    return found


@pytest.fixture(scope="module", params=classifiers())
def classifier(request, tmp_path_factory) -> Pair:
    """A pair that ends in a classifier, one for each model type."""
    return make_pair(*request.param, 0, tmp_path_factory.mktemp("source"))


class Stop(nnx.Module):
    """A top that gives back the stream."""

    def __call__(self, stream, batch, key):
        return {"stream": stream}


def test_hidden_states_are_pytorchs_after_every_part(classifier):
    ((name, tower),) = classifier.ours.towers.items()
    blocks = torch_blocks(classifier)
    assert len(blocks) == len(tower.blocks)
    streams = []
    hooks = [blocks[0].register_forward_pre_hook(lambda _, given: streams.append(given[0]))]
    for block in blocks:  # a few give more than the stream
        hooks.append(
            block.register_forward_hook(
                lambda _, given, out: streams.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    with torch.no_grad():
        classifier.torch(**classifier.torch_batch())
    for hook in hooks:
        hook.remove()
    if classifier.ours.model_type in SHARED_BLOCKS:  # only what goes in and what comes out is ours
        streams = [streams[0], streams[-1]]
    for count, expected in enumerate(streams):
        part = replace(tower, blocks=tower.blocks[:count], top=Part(Stop()))
        model = replace(classifier.ours, towers={name: part})
        stream = np.asarray(model(**classifier.batch)["stream"])
        keep = classifier.keep(stream)
        expected = channels_last(expected.numpy()).reshape(stream.shape)
        # A ResNet's stream has no norm of its own: what cancels is as exact as what it is made of.
        largest = np.abs(expected).max() if classifier.ours.model_type in PYRAMIDS else 1.0
        most = 2e-5 * max(1.0, float(largest))
        np.testing.assert_allclose(stream * keep, expected * keep, atol=most)


def torch_blocks(pair: Pair) -> list[torch.nn.Module]:
    """PyTorch's blocks in order; of a pyramid those of all stages, one list each."""
    if pair.ours.model_type in PYRAMIDS:
        kind = PYRAMIDS[pair.ours.model_type]
        return [m for m in pair.torch.modules() if type(m).__name__ in kind]
    if pair.ours.model_type == "timm_wrapper":
        return list(pair.torch.timm_model.blocks)
    # A head may have a list of layers too, behind the blocks.
    return next(m for m in pair.torch.modules() if isinstance(m, torch.nn.ModuleList))


def channels_last(stream: np.ndarray) -> np.ndarray:
    """An image [B, C, H, W] as [B, H, W, C]; a row of positions as it is."""
    return np.moveaxis(stream, 1, -1) if stream.ndim == 4 else stream


def test_first_block_alone_has_pytorchs_gradient(classifier):
    names = [name for name in classifier.ours.params if name.startswith("blocks/0/")]
    compute = Compute(trainable=frozenset(names))
    theirs = torch_gradients(classifier)
    for scan, remat in ((False, "none"), (True, "full")):
        run = replace(compute, scan=scan, remat=remat)
        ours = gradients(classifier, compute=run, names=names)
        assert set(ours) == set(names)
        assert_close_gradients(ours, theirs, 1e-4)


def pack(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The padded examples of `batch` one after another in one row, four positions left over."""
    lengths = batch["attention_mask"].sum(1)
    total = int(lengths.sum()) + 4
    packed = {
        name: np.zeros((1, total), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    }
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = (0, slice(start, start + length))
        packed["input_ids"][here] = batch["input_ids"][number, :length]
        if "token_type_ids" in batch:
            packed["token_type_ids"][here] = batch["token_type_ids"][number, :length]
        packed["position_ids"][here] = np.arange(length)
        packed["segment_ids"][here] = number + 1
    return packed | {"read_positions": starts[None].astype(np.int32)}


def test_packed_equals_unpacked(classifier):
    if classifier.ours.head != "text_classification":
        return  # only texts are packed
    packed = pack(classifier.batch)
    alone = classifier.outputs(classifier.ours.params)["logits"]  # [B, C]
    together = classifier.ours(**packed)["logits"]  # [1, B, C]
    np.testing.assert_allclose(together[0], alone, atol=1e-5)
    ours = gradients(classifier, batch=packed, read=lambda out: {"logits": out["logits"][0]})
    assert_close_gradients(ours, jax.tree.map(np.asarray, gradients(classifier)), 1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_scan_equals_unrolled(classifier, remat, frozen):
    assert_scan_equals_unrolled(classifier, remat, frozen)


def assert_scan_equals_unrolled(pair: Pair, remat: str, frozen: int) -> None:
    """With dropout on: block i draws the same mask wherever it runs."""
    names = [name for name, depth in pair.ours.depths.items() if depth >= frozen]
    results = []
    for compute in (Compute(), Compute(scan=True, remat=remat)):
        compute = replace(compute, trainable=frozenset(names))
        results.append(gradients(pair, key=jax.random.key(1), compute=compute, names=names))
    unrolled, scanned = (jax.tree.map(np.asarray, result) for result in results)
    # A leaf's gradient may be a small sum of large parts, as a bias's below a scaled branch is,
    # and then shows their rounding: 1e-6 is asked of the whole. Gemma's blocks, of four norms, part
    # by 0.9e-6 to 1.6e-6 of it, on whichever processor; all others by 2e-7 at most.
    assert_close_gradients(scanned, unrolled, 5e-6)
    distance = {name: scanned[name] - value for name, value in unrolled.items()}
    most = 5e-6 if "gemma" in pair.ours.model_type else 1e-6
    assert length(distance) <= most * length(unrolled)


def length(gradients: dict[str, np.ndarray]) -> float:
    """The norm of all of them as one vector."""
    return float(np.sqrt(sum(np.square(value).sum() for value in gradients.values())))


def test_starting_where_the_trunk_ends_equals_the_whole(classifier):
    """With dropout on above the trunk."""
    names = [name for name, depth in classifier.ours.depths.items() if depth >= 2]
    compute = Compute(scan=True, trainable=frozenset(names))
    run = partial(gradients, classifier, key=jax.random.key(1), compute=compute, names=names)
    trunk = jax.jit(partial(classifier.ours.trunk, compute=compute))
    streams = trunk(classifier.ours.params, classifier.batch)
    if any(tower.balanced for tower in classifier.ours.towers.values()):
        assert streams == {}  # a loss reads more of every block than the trunk's stream
        return
    assert list(streams) == ["trunk"]
    whole = jax.tree.map(np.asarray, run())
    assert_close_gradients(run(batch=classifier.batch | streams), whole, 1e-5)


def table_of(pair: Pair) -> LayerTable:
    """Everything trains, each depth at 0.9 of the rate of the one above, without weight decay."""
    model = pair.ours
    return table_from(
        model.params,
        depths=model.depths,
        tops=model.tops,
        no_decay=sorted(model.no_decay),
        groups=[],
        layer_decay=LayerDecaySection(rate=0.9),
        optimizer=OptimizerSection(weight_decay=0.0),
        schedule=ScheduleSection(),
    )


def test_a_phase_switch_keeps_what_trained_and_starts_the_rest_afresh(classifier):
    """The top block and above for a step, then everything."""
    model, whole = classifier.ours, table_of(classifier)
    top = [name for name, depth in model.depths.items() if depth >= model.num_depths - 2]
    first = within(whole, top, None, 0)
    params, state = dict(model.params), None
    for table in (first, within(whole, list(params), first, 1)):
        names = list(table.trainable)
        trained = {name: params[name] for name in names}
        optimizer = optimizer_from(table, OptimizerSection(clip=None, weight_decay=0.0))
        before, state = state, jax.jit(optimizer.init)(trained)
        if before is not None:
            state = carry_state(before, state)
            moved, kept = leaves_by_path(state), leaves_by_path(before)
            assert {path: moved[path].tobytes() for path in kept} == {
                path: leaf.tobytes() for path, leaf in kept.items()
            }
            assert not any(leaf.any() for path, leaf in moved.items() if path not in kept)
        grads = gradients(classifier, names=names)
        updates, state = jax.jit(optimizer.update)(
            grads,
            state,
            trained,
            rates=jnp.full(len(table.training_groups), 1e-3),
            multipliers=jnp.asarray(table.multipliers()),
            weight_decay=jnp.zeros(len(table.training_groups)),
        )
        params |= {name: params[name] + update for name, update in updates.items()}
    # Adam's first step is of the rate: under the count of what has trained, it would be larger.
    steps = dict(zip(table.trainable, 1e-3 * table.multipliers(), strict=True))
    moved = [
        np.abs(np.asarray(updates[name]) / steps[name])[np.abs(np.asarray(grads[name])) > 1e-5]
        for name in set(names) - set(top)
    ]
    assert np.median(np.concatenate(moved)) == pytest.approx(1, abs=1e-3)


def leaves_by_path(tree) -> dict[str, np.ndarray]:
    """Every array by its path."""
    return {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree.leaves_with_path(tree)}


def test_adapters_attach_and_merge(classifier):
    """Beside every kernel of the blocks: nothing at first, and then as good as in the kernels."""
    plain, batch = classifier.ours, classifier.batch
    if plain.model_type == "resnet":
        return  # it has convolutions alone, and adapters are of linear maps
    model = registry.load(classifier.folder, adapter=Adapter(2, 4.0, (".*/kernel",)))
    adapted = jax.jit(lambda params: model.apply(params, batch)["logits"])
    logits = classifier.outputs(plain.params)["logits"]
    distance = np.linalg.norm(adapted(model.params) - logits)
    assert distance <= 1e-6 * np.linalg.norm(logits)
    shaken = {
        name: value + 0.1 * jax.random.normal(jax.random.key(0), value.shape)
        if is_adapter(name)
        else value
        for name, value in model.params.items()
    }
    merged = model.with_params(shaken).merged().params
    for name in merged.keys() - model.adapted.kernels.keys():
        np.testing.assert_array_equal(merged[name], plain.params[name])
    logits = classifier.outputs(merged)["logits"]
    np.testing.assert_allclose(logits, adapted(shaken), rtol=1e-5, atol=1e-5)
    assert np.abs(adapted(shaken) - adapted(model.params)).max() > 1e-3


def test_scan_compiles_one_body_for_alike_blocks(classifier):
    model = classifier.ours
    blocks = model.num_depths - 2
    trainable = frozenset(name for name, depth in model.depths.items() if depth >= blocks)

    def jaxpr(compute):
        return jax.make_jaxpr(lambda p: model.apply(p, classifier.batch, None, compute))(
            model.params
        )

    def scans(compute):
        return [e.params["length"] for e in jaxpr(compute).eqns if e.primitive.name == "scan"]

    def alike(count):  # the first blocks in runs that one body can serve
        ((_, tower),) = model.towers.items()
        runs = [len(list(run)) for _, run in groupby(tower.blocks[:count], key=id)]
        return [run for run in runs if run > 1]

    if model.model_type in SHARED_BLOCKS:
        assert scans(Compute()) == scans(Compute(scan=True)) == [model.config.blocks]
        return
    assert scans(Compute()) == []
    assert scans(Compute(scan=True)) == alike(blocks)
    assert scans(Compute(scan=True, trainable=trainable)) == alike(blocks - 1)


def test_dropout_is_for_what_is_trained(classifier):
    model, batch, key = classifier.ours, classifier.batch, jax.random.key(0)
    plain = classifier.outputs(model.params)["logits"]

    @cache
    def program(*names):
        compute = Compute(trainable=frozenset(names))
        return jax.jit(lambda params, key: model.apply(params, batch, key, compute)["logits"])

    def logits(*names, key=key):
        return program(*names)(model.params, key)

    shared = model.model_type in SHARED_BLOCKS
    first, second = kernels_of_blocks(model)
    assert np.array_equal(logits(), plain)
    assert np.array_equal(logits(first, key=None), plain)
    if "convnext" in model.model_type:  # whole branches alone are dropped, hardly one of three
        assert not np.array_equal(logits(second), plain)
        return
    if model.model_type == "resnet":  # nothing is dropped
        assert np.array_equal(logits(second), plain)
        return
    assert not np.array_equal(logits(first), plain)
    assert shared or not np.array_equal(logits(first), logits(second))
    assert np.array_equal(logits(first), logits(first))
    assert not np.array_equal(logits(first), logits(first, key=jax.random.key(1)))
    # BERT's classifier has a dropout of its own, its kin's and timm's too; the others' none.
    own = ("bert", "albert", "modernbert", "modernbert-decoder", "deberta-v2", "nomic_bert")
    drops = model.model_type in (*own, *BERTS_KIN, "timm_wrapper")
    assert np.array_equal(logits("head/kernel"), plain) is not drops


def kernels_of_blocks(model) -> list[str]:
    """A kernel of each of two blocks; of a pyramid the last two, for none of the first is dropped.

    The rate of dropped paths rises from 0.
    """
    if model.model_type not in PYRAMIDS:
        return [f"blocks/{i}/attention/query/kernel" for i in (0, 1)]
    last = model.num_depths - 3
    kernels = [n for n in model.params if n.endswith("kernel")]
    return [next(n for n in kernels if n.startswith(f"blocks/{i}/")) for i in (last - 1, last)]


def test_a_frozen_block_costs_its_forward_pass_only(classifier):
    assert_frozen_blocks_cost_their_forward_pass(classifier)


def assert_frozen_blocks_cost_their_forward_pass(pair: Pair) -> None:
    """The backward pass of a block is twice its forward pass, and gone when it is frozen."""
    model = pair.ours
    ((tower_name, tower),) = model.towers.items()
    blocks = len(tower.blocks)

    @cache
    def forward(count):
        part = replace(tower, blocks=tower.blocks[:count])
        if model.model_type in PYRAMIDS:  # the top reads the last stage alone
            part = replace(part, top=Part(Stop()))
        cut = replace(model, towers={tower_name: part})
        return count_flops(cut.apply, model.params, pair.batch)

    @cache
    def step(frozen):
        names = [name for name, depth in model.depths.items() if depth > frozen]
        compute = Compute(trainable=frozenset(names))
        return count_flops(partial(gradients, pair, compute=compute, names=names))

    last = forward(blocks) - forward(blocks - 1)
    assert last > 0
    for frozen in range(blocks - 1):
        alike = tower.blocks[frozen] is tower.blocks[-1]
        block = last if alike else forward(frozen + 1) - forward(frozen)
        saved = 2 * block + unlike_twice_the_forward_pass(pair, frozen)
        if model.model_type in PYRAMIDS:
            # What a convolution reads beyond an edge is counted in its forward pass alone, and
            # sums of products by channel in neither.
            assert block < step(frozen) - step(frozen + 1) < 1.1 * saved
            continue
        assert step(frozen) - step(frozen + 1) == saved


def unlike_twice_the_forward_pass(pair: Pair, frozen: int) -> int:
    """FLOPs of a block's backward pass beyond twice those of its forward pass, by family."""
    model, config = pair.ours, pair.ours.config
    rows, length = pair.batch["input_ids"].shape if "input_ids" in pair.batch else (0, 0)
    if model.model_type.startswith("modernbert") and frozen == 0:
        # Its first block has no norm: its maps' input needs no gradient.
        inward = ("query", "key", "value")
        kernels = [model.params[f"blocks/{frozen}/attention/{n}/kernel"] for n in inward]
        return -2 * rows * length * sum(kernel.size for kernel in kernels)
    if model.model_type == "deberta-v2":
        # The vectors of distances are the stem's, and frozen with it: their maps' input needs no
        # gradient. Nor does that of the convolution, which is the first block's input.
        width = config.fields["hidden_size"]
        vectors = int(np.ptp(config.buckets.rows(length))) + 1
        maps = -2 * vectors * width**2 * len(config.relative)
        convolution = 2 * rows * length * width**2 * config.fields["conv_kernel_size"]
        return maps - (convolution if frozen == 0 else 0)
    return 0


def on_eight_devices(pair: Pair):
    """The model cut over a mesh of 2 x 2 x 2, and what a batch's rows are cut by."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    rules = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

    def sharding(name, shape, axes):
        spec = [
            rules.get(axis) if size % 2 == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    many = registry.load(pair.folder, sharding=sharding)
    whole = [n for n in many.params if "blocks/" in n and n.endswith("query/kernel")]
    if pair.ours.model_type in PYRAMIDS:
        whole = [n for n in many.params if n.endswith("kernel") and divides(many, n)]
    kernel = many.params[whole[0]]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    for name, value in pair.ours.params.items():
        np.testing.assert_array_equal(value, many.params[name])
    return many, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def whole_mesh(rows: NamedSharding) -> Mesh:
    """The mesh of some rows with all axes that a run's mesh has."""
    devices = rows.mesh.devices.reshape(2, 2, 1, 2, 1)
    return Mesh(devices, ("data", "fsdp", "expert", "tensor", "context"))


def divides(model, name: str) -> bool:
    """Whether both axes of a kernel that a mesh cuts are even."""
    axes = dict(zip(model.axes[name], model.params[name].shape, strict=True))
    return all(axes.get(axis, 1) % 2 == 0 for axis in ("embed", "mlp"))


def fourfold(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Twelve examples of three: what four ways divide."""
    return {name: np.concatenate([value] * 4) for name, value in batch.items()}


def test_eight_devices_compute_what_one_does(classifier):
    both = assert_eight_devices_compute_what_one_does(classifier, *on_eight_devices(classifier))
    largest = max(1.0, float(np.abs(both[1]["logits"]).max()))
    relative = largest if classifier.ours.model_type in PYRAMIDS else 1.0
    np.testing.assert_allclose(*(outputs["logits"] for outputs in both), atol=1e-5 * relative)


def assert_eight_devices_compute_what_one_does(pair: Pair, many, rows) -> tuple:
    """Outputs, which are returned, and gradients, with dropout on; each relative to its norm."""
    batch, key = fourfold(pair.batch), jax.random.key(0)
    placed = {name: jax.device_put(value, rows) for name, value in batch.items()}
    theirs, expected = gradients_and_outputs(pair, batch=batch, key=key)
    # As in a run. Without its mesh XLA moves rows to the wrong devices: of images, and those of a
    # convolution of DeBERTa under dropout (`layers.partition.gathered`).
    compute = Compute(mesh=whole_mesh(rows))
    more = {"batch": placed, "key": key, "compute": compute}
    ours, outputs = gradients_and_outputs(pair, model=many, **more)
    for name, value in expected.items():
        assert np.linalg.norm(outputs[name] - value) <= 1e-5 * np.linalg.norm(value)
    # A ResNet's stream grows to a hundred without a norm of its own, and so does its rounding.
    most = 3e-5 if pair.ours.model_type == "resnet" else 1e-5
    assert_close_gradients(ours, jax.tree.map(np.asarray, theirs), most)
    return outputs, expected


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 10))
@pytest.mark.parametrize("which", classifiers())
def test_more_configs_run_alike(which, seed, tmp_path):
    """Nine more drawn configs of each model type: all that a loop asks of a model."""
    pair = make_pair(*which, seed, tmp_path)
    assert_frozen_blocks_cost_their_forward_pass(pair)
    assert_scan_equals_unrolled(pair, "full", 2)
    assert_eight_devices_compute_what_one_does(pair, *on_eight_devices(pair))
    test_starting_where_the_trunk_ends_equals_the_whole(pair)
    test_a_phase_switch_keeps_what_trained_and_starts_the_rest_afresh(pair)
    test_adapters_attach_and_merge(pair)


def test_bfloat16_stays_near_float32(classifier):
    model = classifier.ours
    params, batch = model.params, classifier.batch
    exact = classifier.outputs(params)["logits"]
    rough = compiled(model, params, batch, compute=Compute(dtype="bfloat16"))["logits"]
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.02 * np.abs(exact).max() + 0.02
