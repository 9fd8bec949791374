"""tasks/code.py with its paraphrased prompt (HINTS)."""

from functools import partial

from tasks import code
from tasks.code import *  # noqa: F403

make_prompt = partial(code.make_prompt, hint="paraphrased")
