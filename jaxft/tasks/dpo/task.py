"""Direct preference optimization: the chosen one of two answers becomes likelier.

The reference model is the initial one. Its log-probabilities of every answer are computed once,
before training, and kept in the cache of examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.source import Source
from jaxft.data.text.answers import Conversation, Exchange
from jaxft.errors import UserError
from jaxft.models.model import Model
from jaxft.tasks.dpo.loss import REFERENCE, answer_log_probs, preference_losses, rewards
from jaxft.tasks.dpo.pairs import Pair, Pairs, answer_of, encode_pairs, prompt_of, sampled_answers
from jaxft.tasks.dpo.section import DpoSection as Section
from jaxft.tasks.parts.arrays import Facts
from jaxft.tasks.parts.card import GENERATE, WRITE, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Sums, Task
from jaxft.tasks.parts.frozen_outputs import frozen_outputs
from jaxft.tasks.parts.labels import BadValue, read_rows
from jaxft.tasks.parts.metric import LOWER, loss_and
from jaxft.tasks.parts.tools import ending_files

MEANS = ("preference_accuracy", "likelihood_accuracy", "reward_margin", "reward_chosen")
METRICS = {**loss_and(*MEANS), "reward_rejected": LOWER}


class BoundDpo(BoundTask["Dpo", Pairs]):
    """`Dpo` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        self._read(row)

    def examples(self, source: Source, *, labelled: bool = True) -> Pairs:
        template, tools = self.tools.chat_template, self.tools
        tokens = tools.encoded_once(
            self._encode,
            source,
            kind="preference pairs",
            template=[template.text, dict(template.tokens), sorted(tools.end_ids)],
            columns=[*self.task.columns, self.task.section.rejected is None],
        )
        pairs = Pairs(tokens)
        if not labelled:
            return pairs
        return replace(pairs, reference=self._reference(pairs))

    def _reference(self, pairs: Pairs) -> np.ndarray:
        """Return the log-probabilities of the answers under the initial model: `[pairs, 2]`."""
        if new := self.tools.model.plain().report.new:
            raise UserError(
                f"model.checkpoint: '{new[0]}' is not in the checkpoint, or is re-initialized, "
                "and the reference of dpo is the checkpoint's model.",
                "Fine-tune it with task.kind=causal_lm first, and set model.reinit=0.",
            )
        outputs = frozen_outputs(
            self.tools, self.tools.model, pairs, _reference_arrays, kind="dpo reference"
        )
        return np.concatenate([outputs[number]["log_probs"] for number in range(len(pairs))])

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode the sequences of every pair, and the metadata of the whole."""
        tools, places = self.tools, [source.place(row) for row in range(len(source))]
        pairs = self._pairs(source)
        examples, about = encode_pairs(
            pairs,
            tools.chat_template,
            tools.tokenizer,
            tools.max_length,
            places,
            tools.end_ids,
        )
        if not examples:
            raise UserError(
                f"{source.spec}: no row has tokens of both answers within {tools.max_length} "
                "tokens.",
                "Raise data.max_length: a prompt that fills it leaves no room for the answers.",
            )
        return examples, about

    def _pairs(self, source: Source) -> list[Pair]:
        """Return each row's prompt and answers; the rejected one is sampled if it has no column."""
        rows = read_rows(source, self.task.columns, self._read)
        if self.task.section.rejected is not None:
            return [Pair(prompt, chosen, rejected) for prompt, chosen, rejected in rows]
        sampled = sampled_answers([row[0] for row in rows], [row[1] for row in rows])
        pairs = []
        for number, ((prompt, chosen, _), other) in enumerate(zip(rows, sampled, strict=True)):
            if other is None:
                raise UserError(
                    f"{source.place(number)}: no other row has an answer to another prompt.",
                    "Name a column of rejected answers: task.rejected.",
                )
            pairs.append(Pair(prompt, chosen, other))
        return pairs

    def _read(self, row: Mapping[str, Any]) -> tuple[Conversation, str, str]:
        """Read a row's prompt, chosen and rejected answer (empty if sampled)."""
        own = self.task.section
        prompt = prompt_of(row[own.prompt], own.prompt)
        chosen = answer_of(row[own.chosen], own.chosen)
        if own.rejected is None:
            return prompt, chosen, ""
        rejected = answer_of(row[own.rejected], own.rejected)
        if chosen == rejected:
            raise BadValue(
                f"has the same answer in {own.chosen} and {own.rejected}",
                "Leave the row out, or say data.on_bad_row=skip.",
            )
        return prompt, chosen, rejected

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        losses = preference_losses(self.task.section, self._rewards(outputs, batch))
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return accuracies, in which a tie counts half, and the means of the rewards."""
        weights, own = batch["weights"], self._rewards(outputs, batch)
        log_probs, _ = answer_log_probs(outputs, batch)
        values = {
            "preference_accuracy": _first_is_higher(own),
            "likelihood_accuracy": _first_is_higher(log_probs),
            "reward_margin": own[..., 0] - own[..., 1],
            "reward_chosen": own[..., 0],
            "reward_rejected": own[..., 1],
        }
        return {name: (jnp.sum(one * weights), jnp.sum(weights)) for name, one in values.items()}

    def _rewards(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Return the implicit rewards of a batch's answers: `[R, S, 2]`."""
        log_probs, counts = answer_log_probs(outputs, batch)
        return rewards(self.task.section, log_probs, batch[REFERENCE], counts)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        own = self._rewards(outputs, batch)
        return {"rewards": own, "loss": preference_losses(self.task.section, own)}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Pairs
    ) -> Iterator[dict[str, Any]]:
        pairs = self._pairs(source)
        for row, own, loss in zip(
            examples.rows, outcomes["rewards"], outcomes["loss"], strict=True
        ):
            pair = pairs[row]
            yield {
                "prompt": pair.prompt[-1]["content"],
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "reward_chosen": float(own[0]),
                "reward_rejected": float(own[1]),
                "loss": float(loss),
            }

    def exchanges(self, source: Source, examples: Pairs, most: int) -> Iterator[Exchange]:
        """Yield the first prompts with their chosen answers."""
        for _, row in source.each(self.task.columns, examples.rows[:most].tolist()):
            prompt, chosen, _ = self._read(row)
            yield Exchange(prompt, chosen)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError(
            "This run compares two answers to a prompt; a text alone has none.",
            "jaxft predict RUN PROMPT writes an answer.",
        )


def _first_is_higher(values: jax.Array) -> jax.Array:
    """Return 1 if the chosen answer's value is higher, 0.5 if both are equal: `[R, S]`."""
    return (1 + jnp.sign(values[..., 0] - values[..., 1])) / 2


def _reference_arrays(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """Return the summed log-probabilities of a batch of one pair per row: `[R, 2]`."""
    return {"log_probs": answer_log_probs(outputs, batch)[0][:, 0]}


class Dpo(Task):
    """Direct preference optimization of a causal model."""

    section: Section

    head = "causal_lm"
    bound = BoundDpo
    card = Card(
        "text-generation",
        "AutoModelForCausalLM",
        ('inputs = tokenizer("Your prompt", return_tensors="pt")', GENERATE, WRITE),
    )
    primary = "preference_accuracy"
    packs = True
    truncates = False
    metrics = METRICS

    @property
    def columns(self) -> tuple[str, ...]:
        own = (self.section.prompt, self.section.chosen, self.section.rejected)
        return tuple(column for column in own if column is not None)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.columns

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        del labels
        return ending_files(model)


make = Dpo
