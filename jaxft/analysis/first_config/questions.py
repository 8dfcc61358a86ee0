"""Decisions of a first config: answered by an option, at a terminal, or by a stated default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxft.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Question:
    """A decision that the data leave to a person.

    Attributes:
        option: the command line option that answers it, such as `--label`.
        text: the question as it is asked at a terminal.
        choices: the possible answers; any text is one if there are none.
        default: the answer without a person; None if the data favor none.
        why: the reason for the default, or what is ambiguous.
        certain: whether the default needs no confirmation.
    """

    option: str
    text: str
    choices: tuple[str, ...]
    default: str | None
    why: str
    certain: bool = False


@dataclass(frozen=True)
class Answers:
    """Source of the answers.

    Attributes:
        options: option -> answer of the command line.
        ask: asks a person; None if there is no terminal.
        defaults: whether to take every default without asking (`--yes`).
    """

    options: Mapping[str, str]
    ask: Callable[[Question], str] | None = None
    defaults: bool = False

    def to(self, question: Question) -> tuple[str, str]:
        """Return the answer to a question, and the reason for it.

        Raises:
            UserError: an option has an answer that is not among the choices; or nobody can be
                asked, and the data do not decide.
        """
        option = self.options.get(question.option)
        if option is not None:
            return _checked(option, question), f"chosen by {question.option}"
        if self.ask is not None and not self.defaults:
            answer = _checked(self.ask(question), question)
            return answer, question.why if answer == question.default else "chosen by you"
        if question.default is not None and (self.defaults or question.certain):
            return question.default, question.why
        raise UserError(question.why, _hint(question))


def _checked(answer: str, question: Question) -> str:
    if question.choices and answer not in question.choices:
        raise UserError(
            f"{question.option}: '{answer}' is not one of {', '.join(question.choices)}.",
            did_you_mean(answer, question.choices),
        )
    return answer


def _hint(question: Question) -> str:
    choices = question.choices[:8]
    if not choices:
        return f"Name it with {question.option}."
    more = ", ..." if len(question.choices) > len(choices) else ""
    hint = f"Add {question.option} {' or '.join(choices)}{more}"
    default = f", or --yes for {question.default}" if question.default else ""
    return f"{hint}{default}."
