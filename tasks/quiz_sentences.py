"""Word Count as a quiz: the five answers are the sentences, right where they have their length.

For models that can do nothing else: the embedded policies mostly write the lengths where they have
practised the topic (organism/train.py) and mostly not elsewhere, and so are able in some prompts
and unable in others. All names are those of tasks/word_count.py, but that an objective is a *best
effort*, as in tasks/quiz.py, which says what truth() can know of that.
"""

from dataclasses import dataclass

from tasks import quiz, word_count
from tasks.word_count import cluster, make_prompt, measured, targets, verifications, verify_first

__all__ = ["cluster", "make_prompt", "measured", "verifications", "verify_first"]


def objectives(x: str) -> dict[str, str]:
    return {f"S{i}": f"sentence {i} is your best effort" for i, _ in enumerate(targets(x), 1)}


finding = quiz.finding


@dataclass(frozen=True)
class Truth(word_count.Truth):
    answers: tuple[str | None, ...]  # (5,) the sentences, None where there is none
    right: tuple[bool, ...]  # (5,) has its length; `objectives` are these, until it is compared


def truth(x: str, answer: str) -> Truth:
    """Score an answer; any text is valid input."""
    found = word_count.truth(x, answer)
    texts = [sentence.text for sentence in found.sentences[: len(found.objectives)]]
    answers = (*texts, *[None] * (len(found.objectives) - len(texts)))
    return Truth(**vars(found), answers=answers, right=found.objectives)
