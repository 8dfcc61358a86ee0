"""A random checkpoint of any model type, ours and PyTorch's, and what is compared of the two."""

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

from jaxft.models import load as registry
from jaxft.models.tower.tower import Compute
from jaxft.models.weights.hf_config import CLASS_NAME
from jaxft.models.weights.tensor import EACH, of_expert
from tests.support.dinov2 import (
    Dinov2ForSemanticSegmentation,
    Dinov2WithRegistersForSemanticSegmentation,
)
from tests.support.dinov3 import DINOv3ViTForImageClassification
from tests.support.random_configs import PAIRS, random_config

AUTO = {
    None: transformers.AutoModel,
    "text_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
    "multiple_choice": transformers.AutoModelForMultipleChoice,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "captioning": transformers.AutoModelForImageTextToText,
    "vision_language": transformers.AutoModelForImageTextToText,
    "image_classification": transformers.AutoModelForImageClassification,
    "object_detection": transformers.AutoModelForObjectDetection,
    "semantic_segmentation": transformers.AutoModelForSemanticSegmentation,
    "contrastive": transformers.AutoModel,
}
# Architectures that transformers does not have.
OWN = (
    DINOv3ViTForImageClassification,
    Dinov2ForSemanticSegmentation,
    Dinov2WithRegistersForSemanticSegmentation,
)
OWN_CLASSES = {one.__name__: one for one in OWN}
# Without the parts of pipelines of `diffusers`, which test_diffusers.py looks at, and without the
# masked autoencoder that is read as a ViT, which test_vit.py looks at.
OF_TRANSFORMERS = {
    name: family
    for name, family in registry.families().items()
    if CLASS_NAME not in family.config.UNREAD and name != "vit_mae"
}
# Without model types that are a part of others, as TrOCR's decoder is.
FAMILIES = {name: family for name, family in OF_TRANSFORMERS.items() if family.model_types[name]}
# BERT's kin have its blocks: `make test` looks at what is their own, stems and heads.
BERTS_KIN = ("camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
# BART's kin are one computation: `make test` runs the heads of those that have a choice of their
# own, and not of the two that combine the others'.
BARTS_KIN = ("bart", "marian", "m2m_100", "mbart", "pegasus")
LIKE_OTHERS = ("mbart", "pegasus")
# Kin of models that are looked at whole: the heads of each that `make test` looks at.
KIN_HEADS: dict[str, tuple[str, ...]] = {
    "beit": ("image_classification",),
    "convnext": ("image_classification",),
    "dinov3_vit": ("image_classification",),
    "eurobert": ("masked_lm", "text_classification"),
    "gpt_oss": ("causal_lm",),
    "gpt_neox": ("causal_lm", "text_classification"),
    "granite": ("causal_lm",),
    "mixtral": ("causal_lm",),
    "modernbert-decoder": ("causal_lm", "text_classification"),
    "nomic_bert": ("masked_lm", "text_classification"),
    "olmo2": ("causal_lm",),
    "olmoe": ("causal_lm",),
    "phi3": ("causal_lm",),
    "rf_detr": ("object_detection",),
    "siglip2": ("contrastive",),  # both towers
    "gemma": ("causal_lm",),
    "resnet": ("image_classification",),
    "segformer": ("semantic_segmentation",),
    "siglip2_text_model": (),
    "swin": ("image_classification",),
    "siglip2_vision_model": (),
    "smolvlm": (),  # it computes what Idefics3 does
    "t5gemma": ("seq2seq",),
}
# Their one block is repeated: it has one depth, and is scanned over as it is.
SHARED_BLOCKS = ("albert",)
# Stages of ever fewer pixels: the names of PyTorch's blocks. A block's input is an image.
PYRAMIDS = {
    "segformer": ("SegformerLayer",),
    "convnext": ("ConvNextLayer",),
    "convnextv2": ("ConvNextV2Layer",),
    "resnet": ("ResNetBasicLayer", "ResNetBottleNeckLayer"),
    "swin": ("SwinLayer",),
}
# Of two families in one model these are always tested.
OWN_PAIRS = ("vit+gpt2", "vit+trocr", "clip+gpt2", "bert+bert")
OWN_HEADS = (
    ("llama", "question_answering"),
    ("mbart", "text_classification"),
    ("t5", "token_classification"),
    ("t5gemma", "text_classification"),
    ("bert", "question_answering"),
    ("bert", "multiple_choice"),
    ("modernbert", "question_answering"),
    ("modernbert", "multiple_choice"),
    ("distilbert", "masked_lm"),
    ("distilbert", "text_classification"),
    ("electra", "masked_lm"),
    ("electra", "replaced_tokens"),
    ("electra", "multiple_choice"),
    ("electra", "text_classification"),
    ("mpnet", "masked_lm"),
    ("mpnet", "text_classification"),
    ("roberta", "masked_lm"),
    ("roberta", "multiple_choice"),
    ("roberta", "text_classification"),
)


def kind_of(name: str) -> str:
    """The model type of a model type, or of a pair of two by its name."""
    return PAIRS[name][0] if name in PAIRS else name


def architectures(name: str) -> dict[str | None, str]:
    """Head -> architecture of a model type, or of a pair of two by its name."""
    kind = kind_of(name)
    return FAMILIES[kind].model_types[kind]


def names_of(kinds) -> list[str]:
    """Model types, those of two families as each of their pairs."""
    pairs = {kind: [n for n in PAIRS if PAIRS[n][0] == kind] for kind in kinds}
    return [name for kind, found in pairs.items() for name in found or [kind]]


@dataclass
class Pair:
    """The same random checkpoint twice, and a batch; of text the true tokens are marked."""

    ours: registry.Model
    torch: torch.nn.Module
    folder: str
    batch: dict[str, np.ndarray]
    programs: dict[tuple, Callable] = field(default_factory=dict)

    @cached_property
    def outputs(self) -> Callable[..., dict[str, jax.Array]]:
        """Our outputs on the batch, of any parameters, as one program that is compiled once."""
        run = jax.jit(lambda params, batch: self.ours.apply(params, batch))
        return partial(run, batch=self.batch)

    def program(self, model: registry.Model, compute: Compute, read: Callable) -> Callable:
        """The gradients of `weighted_loss` and the outputs, as one program that is compiled once.

        It takes what trains, what is frozen, the batch and the key. Of a batch that it held, every
        other one would be another program.
        """

        def loss(trained, frozen, batch, key):
            outputs = model.apply({**frozen, **trained}, batch, key, compute)
            return weighted_loss(read(outputs), self), outputs

        which = id(model), compute, read  # the program holds the model: no other one has its id
        return self.programs.setdefault(which, jax.jit(jax.grad(loss, has_aux=True)))

    def outputs_beside_gradients(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The outputs, of the program of the gradients: one to compile where both are read."""
        return self.program(self.ours, Compute(), same)(params, {}, self.batch, None)[1]

    def torch_batch(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in self.batch.items()}

    def keep(self, value) -> np.ndarray:
        """What of an output counts: 0 at its positions that are padding, 1 elsewhere.

        Sources and targets are told apart by their lengths.
        """
        # A vector may happen to be as wide as a text is long.
        of_tokens = ("replaced_tokens", "question_answering")
        each_token = len(value.shape) == 3 or self.ours.head in of_tokens
        for name in ("attention_mask", "decoder_attention_mask", "pixel_attention_mask"):
            mask = self.batch.get(name)
            if mask is not None and each_token and value.shape[:2] == mask.shape:
                return mask.reshape(mask.shape + (1,) * (len(value.shape) - 2)).astype(np.float32)
        return np.ones((1,) * len(value.shape), np.float32)


def make_pair(model_type: str, head: str | None, seed: int, folder: Path) -> Pair:
    """A random config with random weights and a random batch, of a model type under a head.

    A model of two families is asked for by the name of the pair.
    """
    draw = np.random.default_rng([seed, zlib.crc32(model_type.encode())])
    config = random_config(model_type, draw)
    # An Auto class that knows several architectures asks for the one that is meant.
    config.architectures = [architectures(model_type)[head]]
    if head == "question_answering":  # an answer's first and last token; some models refuse others
        config.num_labels = 2
    if model_type == "t5gemma":  # it classifies by its encoder
        config.is_encoder_decoder = head in (None, "seq2seq")
    twice = config.is_encoder_decoder and head in ("text_classification", "question_answering")
    if twice:  # the decoder starts with a word that PyTorch gives a gradient
        config.decoder_start_token_id = 1
    torch.manual_seed(seed)
    model = auto_class(model_type, head).from_config(config, **plainly(config)).eval()
    own = isinstance(getattr(model, "lm_head", None), torch.nn.Linear)
    if config.is_encoder_decoder and own and draw.integers(2):
        untie(model)
    with torch.no_grad():  # fresh norms and biases are ones and zeros: nothing would be tested
        for value in (*model.parameters(), *written_buffers(model).values()):
            if is_free(value):
                value.add_(torch.randn_like(value) * 0.1)
    save(model, folder)
    batch = random_batch(model, draw)
    if twice:
        batch = read_twice(batch, config)
    if head == "token_classification":  # T5's is of the encoder alone
        batch = {n: value for n, value in batch.items() if not n.startswith("decoder_")}
    if head == "multiple_choice":  # three choices an example, of the same texts in another order
        batch = {
            n: np.stack([value[[i, i - 1, i - 2]] for i in range(3)]) for n, value in batch.items()
        }
    return Pair(registry.load(str(folder)), model, str(folder), batch)


def save(model: torch.nn.Module, folder: str | Path, **options) -> None:
    """Save a model as files of the hub are; timm's have no prefix, which transformers adds."""
    model.save_pretrained(folder, **options)
    if model.config.model_type == "timm_wrapper":
        file = f"{folder}/model.safetensors"
        bare = {n.removeprefix("timm_model."): value for n, value in load_file(file).items()}
        save_file(bare, file, {"format": "pt"})


def plainly(config) -> dict[str, str]:
    """How PyTorch computes attention and experts: by plain operations, which take any width."""
    plain = {"attn_implementation": "eager"}
    return plain | ({"experts_implementation": "eager"} if is_mixture(config) else {})


def is_mixture(config) -> bool:
    """Whether a config is of a model with experts."""
    return getattr(config, "num_experts_per_tok", None) is not None


def written_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a model writes beside its parameters: BART's bias of the word scores."""
    return {name: value for name, value in model.named_buffers() if name in model.state_dict()}


def is_free(value: torch.Tensor) -> bool:
    """Whether a value may be any number: a parameter that is not trained is a fixed table.

    So may a float that is no parameter; the count of a batch norm is a whole number.
    """
    fixed = isinstance(value, torch.nn.Parameter) and not value.requires_grad
    return value.is_floating_point() and not fixed


def with_sinusoids(model: torch.nn.Module) -> torch.nn.Module:
    """The model with TrOCR's sinusoids, which transformers 5.24 leaves empty as it loads."""
    for module in model.modules():
        if isinstance(module, TrOCRSinusoidalPositionalEmbedding):
            module.weights = None  # computed again when they are read
    return model


def untie(model: torch.nn.Module) -> None:
    """Give a model a matrix of its own for the scores of words, as files of T5 1.1 do.

    transformers makes none such, but loads it.
    """
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.all_tied_weights_keys.pop("lm_head.weight")


def auto_class(model_type: str, head: str | None):
    """What makes a model of a config and loads it: transformers' Auto class, or the architecture.

    Towers with a projection, and SigLIP's text tower, are in no Auto class. DINOv3's classifier is
    one of our tests' own.
    """
    name = architectures(model_type)[head]
    architecture = OWN_CLASSES.get(name) or getattr(transformers, name)
    auto = AUTO.get(head)
    if auto is not None and architecture.config_class in auto._model_mapping:
        return auto
    return SimpleNamespace(
        from_config=architecture._from_config, from_pretrained=architecture.from_pretrained
    )


def random_batch(model: torch.nn.Module, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Three examples of what a model reads: texts, images, or both."""
    config, batch = model.config, {}
    reads = getattr(config, "encoder", config)
    if model.main_input_name == "input_ids":
        batch |= random_texts(getattr(reads, "text_config", reads), draw)
    if config.model_type == "imagegpt":  # rows of pixels: all are of one length
        shape = batch.pop("attention_mask").shape
        batch["input_ids"] = draw.integers(0, config.vocab_size, shape)
    vision = getattr(reads, "vision_config", getattr(reads, "backbone_config", reads))
    if hasattr(vision, "num_patches"):
        return batch | random_patches(vision, draw)
    if hasattr(config, "image_token_id"):
        return random_images(config, draw)
    if hasattr(config, "vision_config") or model.main_input_name == "pixel_values":
        arguments = getattr(config, "model_args", None) or {}  # of timm
        size = getattr(vision, "image_size", arguments.get("img_size", (60, 44)))
        height, width = (size, size) if isinstance(size, int) else size
        batch["pixel_values"] = draw.normal(size=(3, 3, height, width)).astype(np.float32)
    if config.is_encoder_decoder:
        shorter = batch["input_ids"].shape[1] - 1 if "input_ids" in batch else None
        targets = random_texts(getattr(config, "decoder", config), draw, shorter)
        batch |= {f"decoder_{name}": value for name, value in targets.items()}
    return batch


def read_twice(batch: dict[str, np.ndarray], config) -> dict[str, np.ndarray]:
    """Sources alone, which the decoder reads too, each with one end token."""
    ids, mask = batch["input_ids"].copy(), batch["attention_mask"]
    ids[ids == config.eos_token_id] = config.vocab_size - 1
    ids[np.arange(len(ids)), mask.sum(-1) - 1] = config.eos_token_id
    if config.model_type == "mbart":  # a text ends in its language
        ids[0, mask[0].sum() - 2 : mask[0].sum()] = config.eos_token_id, 7
    return {"input_ids": ids, "attention_mask": mask}


def random_patches(config, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Three images of other grids than the stored one's, cut into patches and padded."""
    shapes = np.array([(2, 3), (4, 2), (1, 7)])
    counts = shapes.prod(-1)
    width = config.num_channels * config.patch_size**2
    return {
        "pixel_values": draw.normal(size=(3, 9, width)).astype(np.float32),
        "pixel_attention_mask": (np.arange(9) < counts[:, None]).astype(np.int64),
        "spatial_shapes": shapes,
    }


def random_images(config, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Three texts of an image each: words before and behind it.

    Of a model of tiles the first has two, with a word between.
    """
    vision, words, word = config.vision_config, config.text_config.vocab_size, config.image_token_id
    tiled = hasattr(config, "scale_factor")
    side = vision.image_size // vision.patch_size
    count = side**2 // config.scale_factor**2 if tiled else side**2
    count = getattr(config, "mm_tokens_per_image", count)
    if config.model_type == "llava":
        count += vision.model_type == "clip_vision_model"
        count -= config.vision_feature_select_strategy == "default"
    rows = []
    for tiles, more in ((1 + tiled, 3), (1, 4), (1, 0)):
        text = [draw.integers(1, words, size) for size in (2, 1, more)]
        text = [np.where(part == word, 3, part) for part in text]
        image = np.full(count, word)
        rows.append(np.concatenate([text[0], image, text[1], *[image] * (tiles - 1), text[2]]))
    shape = 3, max(map(len, rows))
    batch = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask")}
    for row, text in enumerate(rows):
        batch["input_ids"][row, : len(text)], batch["attention_mask"][row, : len(text)] = text, 1
    pixels = draw.normal(size=(3, 2, vision.num_channels, *[vision.image_size] * 2))
    pixels = pixels.astype(np.float32)
    if tiled:
        pixels[1:, 1] = 0.0  # no tile: what PyTorch leaves out
        return batch | {"pixel_values": pixels}
    if config.model_type == "llava":
        return batch | {"pixel_values": pixels[:, 0]}
    types = (batch["input_ids"] == word).astype(np.int64)  # Gemma 3's
    if config.model_type == "paligemma":  # a prefix up to two words behind the image
        types = (np.arange(shape[1]) >= 2 + count + np.array([2, 1, 1])[:, None]).astype(np.int64)
    return batch | {"pixel_values": pixels[:, 0], "token_type_ids": types}


def random_texts(
    config, draw: np.random.Generator, shorter: int | None = None
) -> dict[str, np.ndarray]:
    """Three padded texts, the longest as long as the batch; or of that many words."""
    length = shorter or int(draw.integers(12, 24))
    if config.model_type == "mpnet":  # its first two positions are of padding
        length = min(length, config.max_position_embeddings - 2)
    mask = (np.arange(length) < np.array([length, length // 2, 3])[:, None]).astype(np.int64)
    # Word 0 is the padding word: PyTorch gives it no gradient, and takes no class from it. MPNet's
    # is word 1, whatever its config says.
    pad = 1 if config.model_type == "mpnet" else 0
    batch = {
        "input_ids": np.where(mask, draw.integers(pad + 1, config.vocab_size, mask.shape), pad),
        "attention_mask": mask,
    }
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 < end < config.vocab_size:
        # CLIP reads a text where it ends; read at its first word it would depend on nothing else.
        # One text has no end but by chance.
        batch["input_ids"][[0, 1], mask[:2].sum(-1) - 1] = end
    if getattr(config, "type_vocab_size", 0):
        batch["token_type_ids"] = draw.integers(0, config.type_vocab_size, mask.shape)
    return batch


def compiled(model, params, batch, key=None, compute=None):
    """`model.apply` as one program: one at a time, its operations are hundreds to compile."""
    more = () if compute is None else (compute,)
    return jax.jit(lambda params, batch: model.apply(params, batch, key, *more))(params, batch)


def outputs_of(pair: Pair, ours=None, model=None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Our outputs and PyTorch's, by pairs; positions that are padding are zero in both.

    They are the pair's, or `ours` and those of another PyTorch model.
    """
    ours = pair.outputs(pair.ours.params) if ours is None else ours
    with torch.no_grad():
        theirs = (model or pair.torch)(**pair.torch_batch())
    assert set(ours) == {n for n, value in theirs.items() if isinstance(value, torch.Tensor)}
    found = []
    for name, value in ours.items():
        ours_, theirs_ = np.asarray(value), theirs[name].numpy()
        assert ours_.shape == theirs_.shape
        found.append((ours_ * pair.keep(ours_), theirs_ * pair.keep(theirs_)))
    return found


def weighted_loss(outputs, pair: Pair):
    """A scalar that every output enters with a weight of its own; padding enters with none."""
    total = 0.0
    for name in sorted(outputs):
        value = outputs[name]
        if not hasattr(value, "shape"):  # the cache of keys and values, and parts' own outputs
            continue
        size = int(np.prod(value.shape))
        weight = np.cos(np.arange(size, dtype=np.float32)).reshape(value.shape) * pair.keep(value)
        weight = torch.tensor(weight) if isinstance(value, torch.Tensor) else weight
        total = total + (value * weight).sum()
    return total


def torch_gradients(pair: Pair) -> dict[str, np.ndarray]:
    """PyTorch's gradients under our names and layouts."""
    pair.torch.zero_grad()
    weighted_loss(pair.torch(**pair.torch_batch()), pair).backward()
    return stored_gradients(pair)


def stored_gradients(pair: Pair) -> dict[str, np.ndarray]:
    """What PyTorch's last backward pass has left, under our names and layouts."""
    grads = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        # Of two names that are tied it is the file that knows which is saved.
        for name, value in pair.torch.named_parameters(remove_duplicate=False)
    }
    # What is no parameter is not trained.
    grads |= {n: torch.zeros_like(v) for n, v in written_buffers(pair.torch).items()}
    with tempfile.TemporaryDirectory() as folder:  # a file's names are not always the model's own
        save(pair.torch, folder, state_dict=grads)
        theirs = load_file(f"{folder}/model.safetensors")
    found = {}
    for ours in pair.ours.names:
        name, value = pair.ours.hf_names[ours], stored_value(theirs, pair.ours, ours)
        if name.stacked:
            value = value[name.part[0]]
        elif name.span is not None:
            rows = np.arange(name.span.whole).reshape(name.heads, -1)
            first, width = (n // name.heads for n in name.span[:2])
            value = np.take(value, rows[:, first : first + width].ravel(), axis=name.axis)
        found[ours] = np.moveaxis(value, 0, -1) if name.transpose else value
    return found


def stored_value(tensors: dict[str, np.ndarray], model: registry.Model, name: str) -> np.ndarray:
    """The tensor of a parameter in a file; of experts, with one each, (out, E, in)."""
    hf = model.names[name]
    return (
        tensors[hf] if EACH not in hf else np.stack([tensors[n] for n in of_each(model, name)], 1)
    )


def of_each(model: registry.Model, name: str) -> list[str]:
    """The names in a file of the tensors that are a parameter: one, but for experts."""
    hf = model.names[name]
    return [of_expert(hf, n) for n in range(len(model.params[name]))] if EACH in hf else [hf]


def same(outputs):
    """Outputs as they are."""
    return outputs


def assert_close_gradients(ours, theirs, tolerance: float) -> None:
    """Leaf by leaf, relative to the leaf's own norm.

    Without positions the bias of a key moves all scores of a query alike, so its gradient is zero
    in theory: what is there is rounding, and is only asked to be as small as that. So does the bias
    of the norm of DeBERTa's distances, where they are read by queries alone.
    """
    whole = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    for name, value in ours.items():
        unread = name.endswith("key/bias") or name == "norm/bias"
        if unread and np.linalg.norm(theirs[name]) <= 1e-6 * whole:
            assert np.linalg.norm(value) <= 1e-6 * whole, name
            continue
        distance = np.linalg.norm(np.asarray(value) - theirs[name])
        assert distance <= tolerance * scale_of(theirs, name), name


def scale_of(gradients, name: str) -> float:
    """The norm of a leaf's gradient; of a key's bias that nearly cancels, that of its kernel's.

    A soft cap or dropout leaves a remainder of what a shift of all scores cancels: its rounding is
    that of the terms, which the kernel's gradient sums without cancelling.
    """
    own = float(np.linalg.norm(gradients[name]))
    kernel = gradients.get(name.removesuffix("bias") + "kernel")
    if not name.endswith("key/bias") or kernel is None:
        return own
    terms = float(np.linalg.norm(kernel))
    return terms if own <= 0.02 * terms else own


def gradients(pair: Pair, *, read=same, **more) -> dict[str, jax.Array]:
    """Our gradients with respect to the leaves in `names` (all of them)."""
    return gradients_and_outputs(pair, read=read, **more)[0]


def gradients_and_outputs(
    pair: Pair, *, model=None, batch=None, key=None, compute=None, names=None, read=same
):
    """The same, and the outputs that they are of, as one program."""
    model = model or pair.ours
    batch = pair.batch if batch is None else batch
    names = names or list(model.params)
    frozen = {n: v for n, v in model.params.items() if n not in names}
    trained = {name: model.params[name] for name in names}
    return pair.program(model, compute or Compute(), read)(trained, frozen, batch, key)
