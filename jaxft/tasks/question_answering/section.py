"""The `task` section of kind `question_answering`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, fixed, may_change


class QuestionAnsweringSection(TaskSection):
    """Extractive question answering: the part of a context that answers a question."""

    kind: Literal["question_answering"] = fixed(..., "the kind of task")
    question: str = fixed("question", "column that holds the question")
    context: str = fixed("context", "column that holds the text with the answer")
    answers: str = fixed(
        "answers",
        "column that holds the answers as SQuAD has them (lists `text` and `answer_start`, or a "
        "list of such), or the text of the only one",
    )
    answer_start: str | None = fixed(
        None,
        "column that holds the character of the context where a text in `answers` begins; null for "
        "the first place where it stands",
    )
    no_answer: bool = fixed(
        False, "whether a context may hold no answer (SQuAD 2.0); an empty cell then says so"
    )
    doc_stride: int | None = fixed(
        None,
        "what a window of a long context shares with the one before; null for 128, or half of the "
        "room beside the longest question if that is less",
        unit="tokens",
        ge=1,
    )
    max_query_length: int = fixed(64, "what a question is truncated to", unit="tokens", ge=1)
    max_answer_length: int = fixed(30, "the longest answer that is given", unit="tokens", ge=1)
    null_score_diff_threshold: float = may_change(
        0.0,
        "no answer is given where its score exceeds that of the best answer by more than this",
    )
