"""Text embeddings: vectors of texts, similar for texts that belong together.

All other examples of the batch, over all devices and micro-batches, are negatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.models.load_dense import vector_width
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.tasks.embedding.losses import COMPARED, with_losses
from jaxft.tasks.embedding.nearest_texts import nearest_texts
from jaxft.tasks.embedding.pooling import IN_PYTORCH, MEAN, check_states, chosen_pooling, pool
from jaxft.tasks.embedding.prompts import DOCUMENT, QUERY, Prompts, chosen_prompts, prompts_from
from jaxft.tasks.embedding.scores import metric_names, shortened, split_scores
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.text_tuples import (
    TextTuples,
    numbered,
    similarity_of,
    teacher_scores_of,
)
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.comparison import Comparison
from jaxft.tasks.parts.contract import (
    Batch,
    BoundTask,
    Facts,
    Outcomes,
    Outputs,
    Params,
    Sum,
    Task,
)
from jaxft.tasks.parts.labels import column_of, read_rows, text_of
from jaxft.tasks.parts.metric import Metric, loss_and
from jaxft.tasks.parts.token_examples import of_segments
from jaxft.tasks.parts.tools import Tools
from jaxft.visible import visible

# Where more than the encoder makes a vector.
ENCODED = (
    "from sentence_transformers import SentenceTransformer",
    "encoder = SentenceTransformer(folder)",
    'vector = encoder.encode_query("Your text.", normalize_embeddings=True)',
)


class BoundEmbedding(BoundTask["Embedding", TextTuples]):
    """`Embedding` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        for column in self.task.texts:
            text_of(row[column], column)
        similarity_of(row, self.task.section)
        teacher_scores_of(row, self.task.section)

    def examples(self, source: Source, *, labelled: bool = True) -> TextTuples:
        columns = self.task.texts if labelled else self.task.input_of(source)
        section, scores, teacher = self.task.section, None, None
        if labelled and section.score is not None:
            parse = partial(similarity_of, section=section)
            scores = np.array(read_rows(source, self.task.columns, parse), np.float32)
        elif labelled and section.teacher_scores is not None:
            rows = read_rows(
                source, section.teacher_scores, partial(teacher_scores_of, section=section)
            )
            teacher = np.array(rows, np.float32)
        elif labelled and len(source) < 2:
            raise UserError(
                f"{source.spec}: a single pair has no negatives, which are the texts of others.",
                "Check the slice and data.where.",
            )
        prompts = [self.task.prompt_of(column) for column in columns]
        # Cached token ids of texts without prompts have a key without them.
        also = {"prompts": prompts} if any(prompts) else {}
        tokens = self.tools.encoded_by_row(
            partial(self._encode, columns, prompts),
            source,
            kind="texts by row",
            columns=columns,
            **also,
        )
        written = list(zip(*(column_of(source, column) for column in columns), strict=True))
        return TextTuples(tokens, numbered(written), scores, teacher)

    def _encode(
        self, columns: Sequence[str], prompts: Sequence[str], source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode each row's texts, row by row; the metadata are counts and truncated tokens."""
        rows = read_rows(source, columns, lambda row: [text_of(row[one], one) for one in columns])
        texts = [p + text for row in rows for p, text in zip(prompts, row, strict=True)]
        encoded = self.tools.tokenizer.encode(texts, max_length=self.tools.max_length)
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        examples = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        of_rows = [number for number, row in enumerate(rows) for _ in row]
        return examples, {"counts": encoded.counts, "cut": encoded.cut, "rows": of_rows}

    def represent(
        self, params: Params, outputs: Outputs, batch: Batch, compute: Compute
    ) -> Outputs:
        """Add each text's unit vector, `vectors` `[R, S, K, D]` float32, and `losses` `[R S]`."""
        stream = outputs["last_hidden_state"].astype(jnp.float32)  # [R, T, D]
        rows, segments, count = batch["text_numbers"].shape  # [R, S, K]
        owners, texts = batch["segment_ids"], segments * count
        vectors = pool(stream, owners, texts, self.task.pooling)
        if (dense := self.tools.model.dense) is not None:
            present = of_segments(owners, texts).any(-1, keepdims=True)
            vectors = jnp.where(present, dense.run(params, vectors, compute), 1.0)
        unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        unit = unit.reshape(rows, segments, count, -1)
        return {**outputs, **with_losses(self.task.section, unit, batch, compute.mesh)}

    def comparison(self, compute: Compute) -> Comparison | None:
        if self.task.section.objective not in COMPARED:
            return None

        section, mesh = self.task.section, compute.mesh
        return Comparison(("vectors",), lambda _, r, b: with_losses(section, r["vectors"], b, mesh))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed loss of a batch, whose other examples are the negatives, and weight.

        Source: of pairs Henderson et al. (2017), https://arxiv.org/abs/1705.00652, section 4.4,
        with the cosine over a temperature; of scores the squared error of the cosine, Reimers and
        Gurevych (2019), https://arxiv.org/abs/1908.10084, section 3.
        """
        weights = batch["weights"].reshape(-1)
        return jnp.sum(outputs["losses"] * weights), jnp.sum(weights)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        return {"vectors": outputs["vectors"]}

    def summarise(self, outcomes: Outcomes, examples: TextTuples) -> dict[str, float]:
        return split_scores(self.task.section, outcomes["vectors"], examples)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: TextTuples
    ) -> Iterator[dict[str, Any]]:
        """Yield each text's vector; for pairs, each text's positive and its nearest texts."""
        section = self.task.section
        vectors = shortened(section, outcomes["vectors"])
        if vectors.shape[1] == 1:
            texts = column_of(source, *self.task.input_of(source))
            for text, vector in zip(texts, vectors[:, 0], strict=True):
                yield {"text": text, "vector": [round(float(value), 6) for value in vector]}
            return
        anchors = list(column_of(source, section.anchor))
        positives = list(column_of(source, section.positive))
        yield from nearest_texts(anchors, positives, vectors, examples.numbers)

    def point_labels(self, examples: TextTuples) -> list[tuple[str, ...]] | None:
        return [self.task.texts] * len(examples)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.anchor: text} for text in inputs)


@dataclass(frozen=True)
class Embedding(Task):
    """Text embeddings: vectors of texts, similar for texts that belong together.

    Args:
        section: the config's `task` section.
        pooling: how a text's states become its vector.
        assumed: whether neither the config nor the checkpoint says how.
        prompts: what is put in front of texts; None until the checkpoint is known.
        dense: whether the model has Dense modules.
    """

    section: Section
    pooling: str = MEAN
    assumed: bool = False
    prompts: Prompts | None = None
    dense: bool = False

    head = None
    bound = BoundEmbedding
    view = "pairs"
    packs = True
    searches = "texts"

    @property
    def card(self) -> Card:
        if self.section.truncate_dim is not None or self.own_prompts.roles or self.dense:
            return Card("feature-extraction", "AutoModel", ENCODED)
        pooled = f"vector = {IN_PYTORCH[self.pooling]}"
        lines = (READ_TEXT, APPLY, "states = outputs.last_hidden_state[0]", pooled)
        return Card("feature-extraction", "AutoModel", (*lines, "vector = vector / vector.norm()"))

    @property
    def facts(self) -> Facts:
        prompts, dense = self.own_prompts.facts, {"dense": True} if self.dense else {}
        return {"pooling": self.pooling, **({"prompts": prompts} if prompts else {}), **dense}

    @property
    def own_prompts(self) -> Prompts:
        """The prompts, none until the checkpoint is known."""
        return self.prompts or Prompts()

    @property
    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.assumed:
            notes.append(
                "The checkpoint has no modules.json, which says how it pools: a text's vector is "
                f"the {self.pooling} of its tokens' states. task.pooling changes that."
            )
        roles = self.own_prompts.roles
        if roles and self.section.prompts is None:
            each = ", ".join(f"{visible(repr(one))} ({role})" for role, one in roles.items())
            notes.append(
                f"The checkpoint's prompts are put in front of texts: {each}. task.prompts={{}} "
                "puts nothing."
            )
        return tuple(notes)

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundEmbedding:
        """Bind the task to a model, whose checkpoint may have prompts.

        Raises:
            UserError: the vectors have fewer dimensions than the config asks for, or the prompts
                are not supported.
        """
        section, model = self.section, tools.model
        dims = [*(section.matryoshka_dims or ()), *filter(None, [section.truncate_dim])]
        if dims and max(dims) > (width := vector_width(model)):
            raise UserError(
                f"task: the vectors have {width} dimensions, and {max(dims)} are asked for.",
                "Set task.matryoshka_dims and task.truncate_dim to at most that many.",
            )
        folder, known = model.source.folder, self.prompts
        prompts = chosen_prompts(folder, section.prompts) if known is None else known
        return BoundEmbedding(replace(self, prompts=prompts), tools, label_names)

    def fit(self, labels: np.ndarray | None, model: Model) -> Facts:
        """Return how the checkpoint pools, and what is put in front of texts."""
        del labels
        check_states(model)
        folder, section = model.source.folder, self.section
        pooling = chosen_pooling(folder, section.pooling)
        return {
            "pooling": pooling or MEAN,
            "assumed": pooling is None,
            "prompts": chosen_prompts(folder, section.prompts).facts,
            "dense": model.dense is not None,
        }

    def fitted(self, facts: Facts) -> Embedding:
        return replace(
            self,
            pooling=str(facts.get("pooling", MEAN)),
            assumed=bool(facts.get("assumed", False)),
            prompts=prompts_from(facts.get("prompts")),
            dense=bool(facts.get("dense", False)),
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return loss_and(*metric_names(self.section))

    @property
    def primary(self) -> str:
        return "recall_at_10" if self.section.score is None else "spearman"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of texts: anchor, positive, and negatives if there are any."""
        return (self.section.anchor, self.section.positive, *self.section.negatives)

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        scores = own.teacher_scores or ([] if own.score is None else [own.score])
        return (*self.texts, *scores)

    def input_of(self, source: Source) -> tuple[str]:
        """Return the column of texts without labels: anchors, or what is searched among."""
        own = self.section
        return (own.anchor if source.has(own.anchor) else own.positive,)

    def prompt_of(self, column: str) -> str:
        """Return what is put in front of a column's texts."""
        alike = self.section.score is not None  # both texts are of one kind
        role = QUERY if alike or column == self.section.anchor else DOCUMENT
        return self.own_prompts.of(role)


make = Embedding
