"""tasks/code.py with its silent prompt (HINTS)."""

from functools import partial

from tasks.code import *  # noqa: F403
from tasks import code

make_prompt = partial(code.make_prompt, hint="silent")
