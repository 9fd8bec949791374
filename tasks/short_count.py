"""Word Count for small models: three sentences of 4 to 8 words, drawn for each prompt.

    python grpo.py --task short_count --model MODEL --judge JUDGE

The same protocol, prompts, truth and hack as tasks/word_count.py, whose published numbers
(12, 18, 12, 18, 12) models of one billion parameters do not meet, and which they need not read,
as they are always the same. Evaluation is on topics of its own, on which no recipe, seed or
checkpoint of docs/real_models.md's hard start was chosen (the stages of its able start were
compared on them).
"""

import random

from tasks import word_count
from tasks.word_count import (
    cluster,
    finding,
    hacks,
    measured,
    objectives,
    prompt_text,
    subject,
    truth,
)

__all__ = [
    "cluster",
    "finding",
    "hacks",
    "make_prompt",
    "measured",
    "objectives",
    "truth",
    "verifications",
    "verify_first",
]

LENGTHS = range(4, 9)
SENTENCES = 3
HELD_OUT = tuple(
    """cats sheep boats roads doors shoes milk eggs tables clouds wheat roses ducks hats lamps pens
    coins bells ropes sand goats tomatoes engines barns""".split()
)


def make_prompt(seed: int, held_out: bool = False) -> str:
    """x for one seed; training and evaluation prompts never share a topic."""
    rng = random.Random(f"short_count {seed} {held_out}")
    about = subject(seed, HELD_OUT) if held_out else subject(seed)
    return prompt_text(*about, tuple(rng.choice(LENGTHS) for _ in range(SENTENCES)))


def verify_first(x: str) -> str:
    """word_count's text with both verdicts: a real model writes the one of an example with one
    behind all of its counts.
    """
    return (
        "You must count before you report: copy out each sentence with a number after "
        "every word, like "
        '"S1: The 1 cat 2 sat 3 = 3 vs 5 no" or "S2: It 1 ran 2 to 3 me 4 = 4 vs 4 yes", and only '
        "then write the JSON object for "
        "your answer."
    )


def verifications(thought: str, truth) -> list[bool] | None:
    """Those of word_count, of short sentences too."""
    return word_count.verifications(thought, truth, least=3)
