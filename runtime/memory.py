"""Out of memory is no reason to lose a run: the same work is done in smaller pieces,
and the log says so.
"""

import gc
from typing import Callable

import torch
from tqdm import tqdm

from cli import UserError


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch.OutOfMemoryError is a RuntimeError; on the CPU it is a plain one."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halving(what: str, work: Callable, size: int, smallest: int = 1) -> tuple:
    """(work(size), size): whenever memory runs out, `size` is halved and the work begun again;
    UserError at `smallest`.
    """
    while True:
        try:
            return work(size), size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here, after the handler, are the tensors of the failed attempt free: the
        # traceback held them.
        if size <= smallest:
            raise UserError(
                f"out of memory in {what} with {size} at once, and no fewer are possible here: "
                "shorten the token budgets, lower --micro-batch-tokens or --batch-size, or take "
                "a smaller model"
            )
        gc.collect()  # compiled layers of a failed attempt refer to themselves
        torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory in {what} with {size} at once: going on with {max(size // 2, smallest)}"
        )
        size = max(size // 2, smallest)
