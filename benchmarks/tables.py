"""What a table's own models reach: logistic regression and boosted trees on all the columns.

`python -m benchmarks.tables CONFIG [key=value...]` fits both on the training rows of a config with
`task.template` and prints their scores on its test rows. They see every column as it is, and the
model of the config a text made of some.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from jaxft.config.load import Config, load_config
from jaxft.data.sources.open import open_source
from jaxft.data.sources.source import Source
from jaxft.data.text.template import is_missing
from jaxft.errors import UserError
from jaxft.metrics.classification import classification_scores
from jaxft.tasks.text_classification.section import TextClassificationSection

LOGISTIC, TREES = "logistic regression on the columns", "boosted trees on the columns"


def table_scores(config: Config) -> dict[str, dict[str, float]]:
    """Test scores by the model's name.

    Args:
        config: its task tells classes of rows that a template writes as text; its rows are used.

    Raises:
        UserError: it has another task, or no test rows.
    """
    task, data = config.task, config.data
    if (
        not isinstance(task, TextClassificationSection)
        or task.template is None
        or data.test is None
    ):
        raise UserError("A table's models are for text_classification with task.template and test.")
    if not isinstance(data.train, str):
        raise UserError("A table's models take one source of rows.", "Give data.train as one text.")
    assert isinstance(task.label, str)  # one class an example
    train, test = (
        open_source(spec, where=data.where, seed=config.run.seed.data)
        for spec in (data.train, data.test)
    )
    names = task.labels or sorted({str(row[task.label]) for row in _rows(train)})
    columns = [column for column in train.columns if column != task.label]
    numeric = [column for column in columns if _is_numeric(train, column)]
    (x, y), (x_test, y_test) = (
        _arrays(source, columns, numeric, task.label, names) for source in (train, test)
    )
    found = {}
    for name, model in _models([column in numeric for column in columns]).items():
        model.fit(x, y)
        chances = model.predict_proba(x_test)
        right = float((chances.argmax(axis=1) == y_test).mean())
        found[name] = {"accuracy": right, **classification_scores(chances, y_test)}
    return found


def _models(numeric: Sequence[bool]) -> dict[str, Any]:
    numbers = [place for place, is_number in enumerate(numeric) if is_number]
    words = [place for place, is_number in enumerate(numeric) if not is_number]
    scaled = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    linear = make_column_transformer((scaled, numbers), (one_hot, words))
    trees = make_column_transformer(("passthrough", numbers), (one_hot, words))
    boosted = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=100, random_state=0)
    return {
        LOGISTIC: make_pipeline(linear, LogisticRegression(max_iter=5000)),
        TREES: make_pipeline(trees, boosted),
    }


def _rows(source: Source) -> list[dict[str, Any]]:
    return source.rows(range(len(source)))


def _is_numeric(source: Source, column: str) -> bool:
    try:
        for row in source.rows(range(len(source)), [column]):
            if not is_missing(row[column]):
                float(row[column])
    except ValueError:
        return False
    return True


def _arrays(
    source: Source, columns: Sequence[str], numeric: Sequence[str], label: str, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Cells `[rows, columns]`, numbers as such and all else as words, and class ids `[rows]`."""
    cells = np.empty((len(source), len(columns)), object)
    rows = _rows(source)
    for place, column in enumerate(columns):
        if column in numeric:
            cells[:, place] = [
                np.nan if is_missing(row[column]) else float(row[column]) for row in rows
            ]
        else:
            cells[:, place] = ["" if is_missing(row[column]) else str(row[column]) for row in rows]
    index = {name: number for number, name in enumerate(names)}
    return cells, np.array([index[str(row[label])] for row in rows])


def main() -> None:
    """Print the scores of a config's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    for name, scores in table_scores(load_config(given.config, given.overrides)).items():
        print(name, *(f"{metric} {score:.3f}" for metric, score in scores.items()), sep="  ")


if __name__ == "__main__":
    main()
