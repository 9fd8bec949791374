"""The cells of an experiment: evaluations that are saved when they are finished, one model in memory at a time."""

import gc
import time
from pathlib import Path
from types import ModuleType
from typing import Callable

import torch
from tqdm import tqdm

import models
from evaluate import brief, save
from rollout import Rollout


class Cells:
    """Computes cells one after another. A model is loaded when a cell asks for another one than the cell before."""

    def __init__(self, task: ModuleType, device: str):
        self.task, self.device = task, device
        self.loaded = self.model = self.tokenizer = None

    def compute(
        self, path: Path, name: str, dtype: str, rollouts_of: Callable, title: str, **shown: str
    ) -> list[Rollout]:
        """rollouts_of(model, tokenizer), saved as the cell `path` (.json, rollouts beside it) and told in one line; `shown`: the
        metrics that stand in it, by the names they are given. `name`: of the model, as models.load takes it."""
        start = time.perf_counter()
        if self.loaded != (name, dtype):
            self.loaded = self.model = self.tokenizer = None  # gone from memory before the next one comes
            gc.collect()
            torch.cuda.empty_cache()
            self.model, self.tokenizer = models.load(name, models.device_of(self.device), dtype)
            self.loaded = name, dtype
        rollouts = rollouts_of(self.model, self.tokenizer)
        found = save(path, rollouts, self.task)
        tqdm.write(f"{title} | {brief(found, **shown)}, {time.perf_counter() - start:.1f}s")
        return rollouts
