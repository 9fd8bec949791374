"""tasks/code.py with the problems of its highest level alone."""

from tasks import code
from tasks.code import *  # noqa: F403


def make_prompt(seed: int, held_out: bool = False) -> str:
    """As code.make_prompt, whose seeds take the levels in turn."""
    return code.make_prompt(len(code.LEVELS) * (seed + 1) - 1, held_out)
