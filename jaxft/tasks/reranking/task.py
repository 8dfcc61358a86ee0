"""Reranking by a cross-encoder: one score for a query and a passage, read together.

R rows of a batch, S examples a row, K pairs an example, N = S K pairs a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.ranking import ranking_scores
from jaxft.metrics.regression import regression_scores
from jaxft.models.model import Model
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Facts, Outcomes, Outputs, Sum, Task
from jaxft.tasks.parts.labels import read_rows
from jaxft.tasks.parts.metric import Metric, loss_and
from jaxft.tasks.reranking import activation
from jaxft.tasks.reranking.candidates import (
    Candidate,
    Candidates,
    label_column,
    one_by_one,
    read_candidates,
    side_by_side,
    tabulate,
)
from jaxft.tasks.reranking.lists import by_query, list_loss, list_losses, ranked_line
from jaxft.tasks.reranking.section import RerankingSection as Section

LABEL = "LABEL_0"  # what transformers calls the only output of a model
RANKING = ("mrr_at_10", "ndcg_at_10", "mean_average_precision")
CORRELATION = ("pearson", "spearman")

Rows = list[tuple[str, list[Candidate]]]


class BoundReranking(BoundTask["Reranking", Candidates]):
    """`Reranking` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        read_candidates(row, self.task.section)

    def examples(self, source: Source, *, labelled: bool = True) -> Candidates:
        rows = self._rows(source, labelled)
        table = tabulate(rows, by_text=labelled and self.task.section.positive is None)
        tokens = self.tools.encoded_by_row(
            partial(self._encode, labelled),
            source,
            kind="candidates by row",
            columns=self.task.text_columns,
        )
        every = Candidates(tokens, table, one_by_one(len(tokens)), None)
        if not labelled:
            return every
        learned = table.relevance if table.scores is None else table.scores
        every = replace(every, learned=learned)
        if self.task.section.loss != "softmax":
            return every
        lists = side_by_side(table, self.task.section.candidates)
        if not len(lists):
            raise UserError(
                f"{source.spec}: no query has both a relevant candidate and another one.",
                f"Check the columns of queries ({self.task.section.query}) and of labels.",
            )
        return replace(every, numbers=lists)

    def _rows(self, source: Source, labelled: bool) -> Rows:
        columns = self.task.columns if labelled else self.task.input_columns
        parse = partial(read_candidates, section=self.task.section, labelled=labelled)
        return read_rows(source, columns, parse)

    def _encode(
        self, labelled: bool, source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every pair, row by row; the metadata are counts and truncated tokens."""
        rows = self._rows(source, labelled)
        queries = [query for query, candidates in rows for _ in candidates]
        passages = [one.passage for _, candidates in rows for one in candidates]
        encode, most = self.tools.tokenizer.encode, self.tools.max_length
        encoded = encode(queries, passages, max_length=most)
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        examples = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        of_rows = [number for number, (_, candidates) in enumerate(rows) for _ in candidates]
        return examples, {"counts": encoded.counts, "cut": encoded.cut, "rows": of_rows}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed loss of a batch, and the number of pairs, or of queries if list-wise.

        An evaluation has the pairs of a query in several batches; its loss is that of `summarise`.
        """
        scores, relevance, present = _scores(outputs), batch["relevance"], batch["present"]
        if self.task.section.loss == "mse":
            return jnp.sum((scores - relevance) ** 2 * present), jnp.sum(present)
        if self.task.section.loss == "binary_cross_entropy":
            losses = optax.sigmoid_binary_cross_entropy(scores, relevance)
            return jnp.sum(losses * present), jnp.sum(present)
        return list_losses(scores, relevance * present, present, batch["groups"])

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the `scores` of each example's pairs before the activation: `[R, S, K]`."""
        return {"scores": _scores(outputs).reshape(*batch["weights"].shape, -1)}

    def summarise(self, outcomes: Outcomes, examples: Candidates) -> dict[str, float]:
        """Rank the candidates of each query; correlate the scores with those of a teacher."""
        scores, pairs = _flat(outcomes, examples)
        table, summary = examples.table, dict[str, float]()
        queries = table.queries[pairs]
        if self.task.section.loss == "softmax" and examples.learned is not None:
            summary["loss"] = list_loss(scores, examples.learned[pairs], queries)
        if table.relevance is not None:
            summary |= ranking_scores(scores, table.relevance[pairs], queries)
        if table.scores is not None:
            correlated = regression_scores(scores, table.scores[pairs])
            summary |= {name: correlated[name] for name in CORRELATION if name in correlated}
        return summary

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Candidates
    ) -> Iterator[dict[str, Any]]:
        """Yield a line for each query: with labels its first passages, else all and their scores.

        `before` counts the passages that are not relevant and come before the first that is.
        """
        labelled = examples.learned is not None
        rows = self._rows(source, labelled)
        texts = [one.passage for _, candidates in rows for one in candidates]
        queries = [query for query, candidates in rows for _ in candidates]
        scores, pairs = _flat(outcomes, examples)
        shown, known = self.task.activated(scores), examples.table.relevance if labelled else None
        relevance = np.zeros(len(pairs)) if known is None else known[pairs]
        for own in by_query(examples.table.queries[pairs]):
            order = own[np.lexsort((relevance[own], -scores[own]))]
            ranking = [
                {"passage": texts[pairs[at]], "score": round(float(shown[at]), 6)} for at in order
            ]
            query = queries[pairs[own[0]]]
            if known is not None:
                yield ranked_line(query, ranking, relevance[order])
            elif len(ranking) == 1:
                yield {"query": query, **ranking[0]}
            else:
                yield {"query": query, "ranking": ranking}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Turn each input, a query and one or more passages between tabs, into a row.

        Raises:
            UserError: an input has no tab.
        """
        section = self.task.section
        for number, text in enumerate(inputs, start=1):
            query, *passages = text.split("\t")
            if not passages:
                raise UserError(
                    f"line {number}: this run reads a query with passages; the line has no tab.",
                    "Put a tab after the query and between passages.",
                )
            cell: Any = passages if len(passages) > 1 else passages[0]
            if section.positive is not None and section.negatives is not None:
                yield {section.query: query, section.positive: cell, section.negatives: []}
            else:
                yield {section.query: query, section.passage: cell}


def _scores(outputs: Outputs) -> jax.Array:
    """Return the score of each pair before the activation: `[R, N]` float32."""
    return outputs["logits"][..., 0].astype(jnp.float32)


def _flat(outcomes: Outcomes, examples: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of all pairs that some examples have, and their numbers: `[pairs]`."""
    present = examples.numbers >= 0
    return outcomes["scores"][present], examples.numbers[present]


@dataclass(frozen=True)
class Reranking(Task):
    """Reranking by a cross-encoder: one score for a query and a passage, read together.

    Args:
        section: the config's `task` section.
        activation: of a score, a key of `activation.MODULES`.
    """

    section: Section
    activation: str = activation.SIGMOID

    head = "text_classification"
    bound = BoundReranking
    packs = True

    @property
    def card(self) -> Card:
        read = READ_TEXT.replace('"Your text."', '"Your query.", "A passage."')
        score = ".sigmoid()" if self.activation == activation.SIGMOID else ""
        lines = (read, APPLY, f"print(outputs.logits{score})")
        return Card("text-ranking", "AutoModelForSequenceClassification", lines)

    @property
    def ranks(self) -> bool:
        """True if the relevance of candidates is known in training and evaluation."""
        return self.section.positive is not None or label_column(self.section) is not None

    @property
    def view(self) -> str | None:
        return "pairs" if self.ranks else None

    @property
    def metrics(self) -> Mapping[str, Metric]:
        correlation = CORRELATION if self.section.score is not None else ()
        return loss_and(*(RANKING if self.ranks else ()), *correlation)

    @property
    def primary(self) -> str:
        return "ndcg_at_10" if self.ranks else "spearman"

    @property
    def input_columns(self) -> tuple[str, ...]:
        own = self.section
        if own.positive is not None and own.negatives is not None:
            return (own.query, own.positive, own.negatives)
        return (own.query, own.passage)

    @property
    def columns(self) -> tuple[str, ...]:
        more = (label_column(self.section), self.section.score)
        return (*self.input_columns, *(column for column in more if column is not None))

    def label_names(self, source: Source) -> tuple[str, ...]:
        """Return the name of the only output, so that a trained cross-encoder keeps its head."""
        del source
        return (LABEL,)

    @property
    def facts(self) -> Facts:
        return {"activation": self.activation}

    def fit(self, labels: np.ndarray | None, model: Model) -> Facts:
        """Return the activation: the checkpoint's own, or that of the loss.

        Raises:
            UserError: the checkpoint has one that is not supported.
        """
        del labels
        if self.section.loss == "mse":
            return {"activation": activation.IDENTITY}
        own = activation.read_activation(model.source.folder, model.fields)
        return {"activation": own or activation.SIGMOID}

    def fitted(self, facts: Facts) -> Reranking:
        return replace(self, activation=str(facts.get("activation", activation.SIGMOID)))

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """Return scores as `CrossEncoder.predict` has them: `[pairs]`."""
        wide = scores.astype(np.float64)
        return expit(wide) if self.activation == activation.SIGMOID else wide

    def in_units(self, model: Model) -> Model:
        """Return the model whose config.json states the activation."""
        return replace(model, fields=activation.with_activation(model.fields, self.activation))

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        del model, labels
        return {activation.FILE: activation.activation_file(self.activation)}


make = Reranking
