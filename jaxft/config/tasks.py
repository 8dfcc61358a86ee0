"""The `task` section: one kind a task, told apart by `kind`.

What tells classes or a number of an example is in `config/classes.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.classes import ImageClassification, TextClassification
from jaxft.config.fields import Section, key


class TokenClassification(Section):
    """Entities in a text, tagged word by word."""

    kind: Literal["token_classification"] = key(..., "what is learned", resume="fixed")
    tokens: str = key("tokens", "column that holds the words, a list", resume="fixed")
    tags: str = key(
        "tags", "column that holds their tags, a list: O, B-TYPE, I-TYPE", resume="fixed"
    )
    labels: Annotated[list[str], Field(min_length=2)] | None = key(
        None, "tags in order of id; null takes those of the data", resume="fixed"
    )
    scheme: Literal["iob2", "iob1"] = key(
        "iob2", "whether every entity begins with B- (iob2), or with I- too (iob1)", resume="fixed"
    )


class MaskedLm(Section):
    """Hidden tokens of a text, told from what stands around them."""

    kind: Literal["masked_lm"] = key(..., "what is learned", resume="fixed")
    text: str = key("text", "column that holds the text", resume="fixed")
    mask: float = key(
        0.15,
        "share of a text's tokens to be told in training, drawn anew in each epoch: 80% of them "
        "become the mask token, 10% any token, 10% stay",
        resume="fixed",
        gt=0,
        lt=1,
    )
    whole_words: bool = key(False, "choose words, each with all of its tokens", resume="fixed")
    scored_at_once: int = key(
        1,
        "tokens of a text that are hidden at a time where it is scored: a text takes as many "
        "turns as it has tokens, divided by this",
        resume="fixed",
        ge=1,
    )


class CausalLm(Section):
    """The next token of documents, or of the answers in conversations."""

    kind: Literal["causal_lm"] = key(..., "what is learned", resume="fixed")
    text: str | None = key(None, "column that holds a document", resume="fixed")
    messages: str | None = key(
        None, "column that holds a conversation: a list of {role, content}", resume="fixed"
    )
    prompt: str | None = key(None, "column that holds what is asked", resume="fixed")
    answer: str | None = key(None, "column that holds what is answered", resume="fixed")

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> CausalLm:
        pair = (self.prompt is not None, self.answer is not None)
        kinds = [self.text is not None, self.messages is not None, any(pair)]
        if sum(kinds) != 1 or (any(pair) and not all(pair)):
            raise ValueError("it names text, or messages, or prompt and answer")
        return self


class Embedding(Section):
    """Texts as vectors: those of two texts that belong together are alike."""

    kind: Literal["embedding"] = key(..., "what is learned", resume="fixed")
    anchor: str = key("anchor", "column that holds what is asked", resume="fixed")
    positive: str = key("positive", "column that holds what belongs to it", resume="fixed")
    negative: str | None = key(
        None, "column that holds what is nearly right and is not", resume="fixed"
    )
    score: str | None = key(
        None,
        "column that says how alike the two texts are; null makes every other row of a batch a "
        "wrong answer",
        resume="fixed",
    )
    score_range: Annotated[list[float], Field(min_length=2, max_length=2)] = key(
        [0.0, 1.0], "the lowest and the highest score", resume="fixed"
    )
    temperature: float = key(0.05, "the cosines of pairs are divided by it", resume="fixed", gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Embedding:
        if self.score is not None and self.negative is not None:
            raise ValueError("score says how alike two texts are: it takes no negative")
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range goes from a lower to a higher score")
        return self


class Seq2Seq(Section):
    """A text written from another: a translation, a summary, an answer."""

    kind: Literal["seq2seq"] = key(..., "what is learned", resume="fixed")
    source: str = key("source", "column that holds the text that is read", resume="fixed")
    target: str = key("target", "column that holds the text that is written", resume="fixed")
    prefix: str = key(
        "", "what every source is put behind (`translate English to German: `)", resume="fixed"
    )
    max_target_length: Annotated[int, Field(ge=2)] | None = key(
        None,
        "most tokens of a target, its end included; a longer one is an error; null has no limit",
        resume="fixed",
    )


class Captioning(Section):
    """What is to be seen in an image, written as a text."""

    kind: Literal["captioning"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    text: str = key("text", "column that holds the text that is written", resume="fixed")


class Contrastive(Section):
    """Which text belongs to which image, among all of a batch."""

    kind: Literal["contrastive"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    text: str = key("text", "column that holds the text", resume="fixed")
    loss: Literal["softmax", "sigmoid"] = key(
        "softmax", "over each row of scores (CLIP), or of each score alone (SigLIP)", resume="fixed"
    )
    hard_negatives: float = key(
        0.0,
        "how much more a wrong answer of the batch counts that scores high; 0 counts all alike",
        resume="fixed",
        ge=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> Contrastive:
        if self.hard_negatives and self.loss == "sigmoid":
            raise ValueError("hard_negatives weigh what a softmax compares: loss is softmax")
        return self


class ObjectDetection(Section):
    """Boxes around things in an image, and what they are."""

    kind: Literal["object_detection"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    objects: str = key(
        "objects", "column that holds what is in it: bbox and label, a list each", resume="fixed"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "classes in order of id; null takes those of the data", resume="fixed"
    )
    box_format: Literal["pascal_voc", "coco", "tfds"] = key(
        "pascal_voc",
        "what a box is told by: left, top, right, bottom in pixels (also those of boxes: and "
        "coco: files); left, top, width, height; or top, left, bottom, right as shares",
        resume="fixed",
    )
    match: Literal["box", "place"] = key(
        "box",
        "which detection is to find a thing: by the boxes that they find, each thing one (DETR's "
        "matching); or by place, all that look where it is, for detection tokens that a plain "
        "ViT was given",
        resume="fixed",
    )
    tile: int | None = key(
        None,
        "height of the pieces that pictures are cut into; null takes each whole",
        resume="fixed",
        unit="pixels",
        ge=1,
    )
    overlap: float = key(
        0.25, "share of a piece that the next one has too", resume="fixed", ge=0, lt=1
    )
    merge: float = key(
        0.5,
        "overlap (intersection over union) from which two boxes of one class are one, where "
        "pieces of one picture, or several detections by place, found them",
        resume="fixed",
        gt=0,
        le=1,
    )


class ImageGeneration(Section):
    """Images drawn pixel by pixel, each pixel a colour out of the checkpoint's list."""

    kind: Literal["image_generation"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    label: str | None = key(
        None, "column that holds the class an image is drawn by; null draws without", resume="fixed"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "classes in order of id; null takes those of the data", resume="fixed"
    )
    samples: int = key(
        16,
        "images drawn at each evaluation, and held-out ones completed from their upper half",
        resume="fixed",
        ge=0,
    )
    features: str | None = key(
        None,
        "checkpoint of a ViT, in whose features the Frechet distance between the images drawn and "
        "as many held-out ones is taken; null takes none",
        resume="fixed",
    )
    feature_size: int | None = key(
        None,
        "height and width of the images there; null is that checkpoint's own",
        resume="fixed",
        unit="pixels",
        ge=1,
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageGeneration:
        if self.labels is not None and self.label is None:
            raise ValueError("labels are the classes of a column: name it in label")
        if self.features is not None and self.samples < 2:
            raise ValueError("features compare images that are drawn: samples is 2 or more")
        if self.features is None and self.feature_size is not None:
            raise ValueError("feature_size is of features: name a checkpoint there")
        return self


TaskSection = (
    TextClassification
    | TokenClassification
    | MaskedLm
    | CausalLm
    | Embedding
    | Seq2Seq
    | ImageClassification
    | ObjectDetection
    | Captioning
    | Contrastive
    | ImageGeneration
)
