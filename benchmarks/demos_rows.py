"""The rows of `benchmarks.demos`: one a config, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The frozen checkpoint: logistic regression on its features, its head trained alone, or as it is.
Frozen = Literal["features", "head", "as it is"]


@dataclass(frozen=True)
class Demo:
    """A config and what it is held against.

    Attributes:
        name: of the file in `configs/`.
        data: what the rows are, in a few words.
        assets: what `jaxft assets` brings for it.
        metric: of the test rows.
        frozen: what the frozen checkpoint is scored by.
        quick: overrides that keep a row below five minutes on two quiet cores.
        scratch: overrides for the twin from scratch: all of it trains, at one rate.
        table: whether the columns themselves are there to be learned from too.
    """

    name: str
    data: str
    assets: tuple[str, ...]
    metric: str
    frozen: Frozen
    quick: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ("groups=[]", "layer_decay.rate=1")
    table: bool = False


DEMOS = (
    Demo(
        "sentiment",
        "film reviews",
        ("minilm", "reviews"),
        "accuracy",
        "features",
        quick=("data.train=csv:assets/reviews/train.csv[:2000]",),
    ),
    Demo(
        "ner",
        "tweets, ten types of entities",
        ("minilm", "tweets"),
        "f1",
        "head",
        quick=("data.train=conll:assets/tweets/train.conll[:800]",),
    ),
    Demo(
        "fraud",
        "loans as text, 5.2% bad",
        ("minilm", "lending_club"),
        "average_precision",
        "features",
        table=True,
    ),
    Demo(
        "risk",
        "credits as text, 28% bad",
        ("minilm", "credit_data"),
        "average_precision",
        "features",
        quick=("data.train=csv:assets/credit_data/train.csv[:1500]",),
        table=True,
    ),
    Demo(
        "disease",
        "tumours as text, 37% malignant",
        ("minilm", "breast_cancer"),
        "average_precision",
        "features",
        table=True,
    ),
    Demo(
        "digits",
        "handwritten digits",
        ("vits", "digits"),
        "accuracy",
        "features",
        quick=("data.train=images:assets/digits/train[:800]",),
    ),
    Demo(
        "visual_search",
        "emoji and their names",
        ("dinov2", "minilm", "emoji"),
        "recall_at_10",
        "as it is",
        quick=("data.train=csv:assets/emoji/train.csv[:500]", "train.length=4 epochs"),
    ),
    Demo(
        "caption",
        "emoji and their names, written",
        ("dinov2", "tiny_mlm", "emoji"),
        "chrf",
        "as it is",
        quick=(
            "train.length=16 epochs",
            "train.evaluate_every=8 epochs",
            "checkpoint.every=8 epochs",
        ),
        # All of it trains, so an epoch takes about what 24 of the config's take.
        scratch=(
            "groups=[]",
            "train.length=1 epochs",
            "train.evaluate_every=1 epochs",
            "checkpoint.every=1 epochs",
        ),
    ),
    Demo(
        "chat",
        "questions and answers",
        ("smollm2", "dialogues"),
        "perplexity",
        "as it is",
        quick=("data.train=jsonl:assets/dialogues/train.jsonl[:300]",),
    ),
    Demo(
        "dpo",
        "answers against those to other questions",
        ("smollm2", "dialogues"),
        "preference_accuracy",
        "as it is",
        quick=("data.train=jsonl:assets/dialogues/train.jsonl[:100]",),
    ),
    Demo(
        "domain_adapt",
        "words left out of film reviews",
        ("tiny_mlm", "reviews"),
        "pseudo_perplexity",
        "as it is",
        quick=("data.train=csv:assets/reviews/train.csv[:2000]",),
    ),
    Demo(
        "embed",
        "questions and their answers",
        ("minilm", "dialogues"),
        "recall_at_10",
        "as it is",
        quick=("train.length=4 epochs",),
    ),
    Demo(
        "rerank",
        "the right answer among ten",
        ("minilm", "candidates"),
        "ndcg_at_10",
        "head",
        quick=("train.length=4 epochs",),
    ),
    Demo(
        "qa",
        "which entity of a type a tweet names, if any",
        ("minilm", "questions"),
        "f1",
        "head",
        quick=("train.length=2 epochs", "train.evaluate_every=1 epochs"),
    ),
    Demo(
        "choices",
        "the right answer among four",
        ("minilm", "choices"),
        "accuracy",
        "head",
        quick=("train.length=2 epochs",),
    ),
    Demo(
        "segment",
        "scenes of emoji, six classes of pixels",
        ("dinov2", "emoji_masks"),
        "miou",
        "head",
        quick=(
            "data.train=masks:assets/emoji_masks/train[:200]",
            "data.test=masks:assets/emoji_masks/test[:80]",
        ),
    ),
    Demo(
        "detect",
        "tree crowns in aerial photos",
        ("detector", "trees"),
        "map_50",
        "as it is",
        # All of it trains: an epoch takes what the config's eight take.
        scratch=(
            "groups=[]",
            "train.length=1 epochs",
            "train.evaluate_every=1 epochs",
            "checkpoint.every=1 epochs",
        ),
    ),
    Demo(
        "translate",
        "verses out of Spanish into English",
        ("flan_t5", "verses"),
        "chrf",
        "as it is",
        quick=(
            "data.train=jsonl:assets/verses/train.jsonl[:5%]",
            "data.test=jsonl:assets/verses/test.jsonl[:20%]",
        ),
    ),
    Demo(
        "generate_images",
        "flags by name, from a DiT that knows all other emoji",
        ("emoji_dit", "emoji_drawings", "vits"),
        "frechet_distance",
        "as it is",
    ),
    Demo(
        "imagegpt",
        "handwritten nines, from a model that knows 0 to 8",
        ("imagegpt", "digits", "vits"),
        "bits_per_dimension",
        "as it is",
    ),
)
# Configs that show a way to train on rows of another; they have a README row and no row here.
RECIPES = (
    "auto_freeze",
    "chat_gemma",
    "distill",
    "freeze_out",
    "gradual_unfreezing",
    "instruct_lora",
    "lp_ft",
)
# Configs whose data no package brings.
ELSEWHERE = ("medical",)
