"""The prediction story: texts in, what the run's best checkpoint says of each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.text import load_tokenizer
from jaxft.engine.build import check_vocabulary, max_length
from jaxft.engine.process import prepare_process
from jaxft.engine.trained import Trained, open_trained

# Texts a batch, and the multiple that its length is rounded up to: few shapes to compile.
TEXTS, STRIDE = 32, 32


def predict(run: Path, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Say of each text what the run learned to say.

    Args:
        run: the run folder.
        texts: one text each; a pair is two texts with a tab between them.

    Yields:
        `text`, then what the task says (`label`, `probabilities`), and `cut` with the number of
        tokens that the model's positions did not hold.

    Raises:
        UserError: it is no run, or a text is not as it has to be.
    """
    prepare_process()
    trained = open_trained(run)
    tokenizer = load_tokenizer(trained.model.tokenizer_folder)
    check_vocabulary(tokenizer, trained.model)
    run_batch = jax.jit(
        lambda params, batch: trained.task.outcomes(trained.model.apply(params, batch), batch)
    )
    waiting = iter(texts)
    while part := list(islice(waiting, TEXTS)):
        yield from _label(trained, tokenizer, run_batch, part)


def _label(trained: Trained, tokenizer, run_batch, texts: list[str]) -> Iterator[dict[str, Any]]:
    rows = trained.task.rows_from_text(texts)
    columns = trained.task.columns[:-1]  # the last is the label
    firsts = [row[columns[0]] for row in rows]
    seconds = [row[columns[1]] for row in rows] if len(columns) > 1 else None
    longest = max_length(trained.config, trained.model)
    whole = tokenizer.encode(firsts, seconds, max_length=None)
    encoded = tokenizer.encode(firsts, seconds, max_length=longest)
    width = -(-max(len(ids) for ids in encoded.ids) // STRIDE) * STRIDE
    shape = (TEXTS, min(width, trained.model.max_positions))
    batch = {
        name: np.zeros(shape, np.int32)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    batch["attention_mask"][len(rows) :, 0] = 1  # a row without a text still attends somewhere
    for row, (ids, types) in enumerate(zip(encoded.ids, encoded.type_ids, strict=True)):
        batch["input_ids"][row, : len(ids)] = ids
        batch["token_type_ids"][row, : len(ids)] = types
        batch["attention_mask"][row, : len(ids)] = 1
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}
    outcomes = jax.device_get(run_batch(trained.model.params, arrays))
    kept = {name: values[: len(rows)] for name, values in outcomes.items()}
    said = trained.task.describe(kept, trained.label_names)
    for text, one, long, short in zip(texts, said, whole.ids, encoded.ids, strict=True):
        result = {"text": text, "label": one["predicted"], "probabilities": one["probabilities"]}
        yield result | ({"cut": len(long) - len(short)} if len(long) > len(short) else {})
