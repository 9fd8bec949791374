"""Word Count for small models: three sentences of 4 to 12 words, drawn for each prompt.

    python grpo.py --task short_count --model MODEL --judge JUDGE

The same protocol, prompts, truth and hack as word_count.py, whose published numbers (12, 18, 12, 18, 12) models of one
billion parameters do not meet, and which they need not read, as they are always the same.
"""

import random

from word_count import cluster, finding, measured, objectives, prompt_text, subject, truth, verifications, verify_first

__all__ = ["cluster", "finding", "make_prompt", "measured", "objectives", "truth", "verifications", "verify_first"]

LENGTHS = range(4, 13)
SENTENCES = 3


def make_prompt(seed: int, held_out: bool = False) -> str:
    """x for one seed; training and evaluation prompts never share a topic."""
    rng = random.Random(f"short_count {seed} {held_out}")
    return prompt_text(*subject(seed, held_out), tuple(rng.choice(LENGTHS) for _ in range(SENTENCES)))
