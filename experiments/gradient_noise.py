"""How many confessions should an answer get? The noise of the confession span's gradient, at
equal sampled tokens.

    python -m experiments.gradient_noise   # the embedded policy: 1, 4, 8 confessions an answer
    python -m experiments.gradient_noise --model MODEL --batches 8   # any other one

More confessions of an answer share its tokens and their baseline shares its truth; fewer answers
then fit into the same tokens. For each K: gradients of independent batches (information reward,
no scaling, no step taken) and from them the gradient noise scale, trace of the covariance / squared
norm of the mean (https://arxiv.org/abs/1812.06162), times the sampled tokens of a batch: the tokens
after which noise and signal are alike. Smaller is better; the last column is the same in seconds
(medians; of sampling both turns and of training the confessions, no judge). The mean's squared
norm is estimated without bias by the products of different batches, and is noise itself where
the reports hold no information: then no scale is given. Intervals: jackknife over batches, 95%.
"""

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass

import torch

import cli
import grpo
import models
from evaluate import sample_in_memory
from intervals import student_t
from options import INFORMATION, SamplingOptions
from rewards import Verdict, information_reward, judge_reward, score_rollouts
from rollout import Sampling, sampled_tokens
from tasks import word_count


@dataclass(frozen=True)
class Config(SamplingOptions):
    model: str = cli.option("organism/policy", "a Hugging Face name, a folder or a .gguf file")
    confessions: str = cli.option("1,4,8", "confessions an answer to compare")
    batches: int = cli.option(16, "independent batches for each", at_least=3)
    prompts: int = cli.option(8, "prompts a batch", at_least=1)
    answers: int = cli.option(4, "answers a prompt", at_least=2)
    device: str = cli.option("auto", "auto, cpu or cuda")


class KeepGradient:
    """Stands in for the optimizer: keeps the gradient and leaves the weights as they are. A batch
    without signal takes no step: its gradient is 0.
    """

    def __init__(self, model):
        self.model = model
        self.gradient = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad))

    def step(self) -> None:
        self.gradient = torch.cat(
            [p.grad.float().flatten().cpu() for p in self.model.parameters() if p.requires_grad]
        )

    def zero_grad(self) -> None:
        self.model.zero_grad()


def noise_scale(products: torch.Tensor) -> float:
    """Trace of the covariance over the squared norm of the mean, from the (M, M) inner products
    of M batches' gradients; NaN where that norm is not above 0.
    """
    m = len(products)
    squared = float(products.diagonal().mean())
    mean = float(products.sum() - products.diagonal().sum()) / (m * (m - 1))
    return (squared - mean) / mean if mean > 0 else math.nan


def jackknife(products: torch.Tensor) -> float:
    """Half the 95% interval of the logarithm of noise_scale:
    what it does when one batch is left out.
    """
    m = len(products)
    rows = torch.arange(m)
    left_out = [math.log(noise_scale(products[rows != i][:, rows != i])) for i in range(m)]
    mean = sum(left_out) / m
    return student_t(m - 1) * math.sqrt((m - 1) / m * sum((v - mean) ** 2 for v in left_out))


def measure(model, tokenizer, options: Config, config: grpo.Config, sampling: Sampling) -> str:
    """A line of the table for config.confessions_per_answer."""
    gradients, seconds, tokens = [], [], 0
    for batch in range(-1, options.batches):  # the first is not counted: something may compile
        start = time.perf_counter()
        seeds = [
            max(batch, 0) * options.prompts + i
            for i in range(options.prompts)
            for _ in range(options.answers)
        ]
        k = config.confessions_per_answer
        rollouts, sampling = sample_in_memory(
            model, tokenizer, word_count, seeds, sampling, batch + 1, confessions=k
        )
        sampled = time.perf_counter() - start
        score_rollouts(
            rollouts,
            [Verdict("failed", "[no judge]")] * len(rollouts),
            word_count,
            judge_reward,
            information_reward,
        )
        grpo.assign_advantages(rollouts, config)
        start = time.perf_counter()
        keep = KeepGradient(model)
        grpo.update(model, None, keep, rollouts, config)
        if batch < 0:
            continue
        seconds.append((sampled, time.perf_counter() - start))
        gradients.append(keep.gradient)
        tokens += sampled_tokens(rollouts)
    g = torch.stack(gradients)
    products = (g @ g.T).double()
    sample, train = map(statistics.median, zip(*seconds))
    tokens /= options.batches
    scale = noise_scale(products) * tokens
    reach = math.exp(jackknife(products))
    if math.isnan(scale + reach):
        found = f"{'-':>32} {'-':>9}"
    else:
        interval = f"{scale:,.0f} [{scale / reach:,.0f}, {scale * reach:,.0f}]"
        found = f"{interval:>32} {scale / tokens * (sample + train):9.1f}"
    return (
        f"{k:2} {options.prompts * options.answers:8} {tokens:14,.0f} {sample:9.2f} "
        f"{train:9.2f} {found}"
    )


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        counts = options.confessions.split(",")
        if not all(k.strip().isdecimal() and int(k) for k in counts):
            raise cli.UserError(
                f"--confessions {options.confessions!r}: give whole numbers of 1 and more, "
                "such as 1,4,8"
            )
        sampled = {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(SamplingOptions)
        }
        config = grpo.resolve(
            grpo.Config(
                **sampled,
                model=options.model,
                judge="never loaded",
                compile=False,
                group_size=options.answers,
                task_weight=0.0,
                max_grad_norm=1e9,
                confession_reward=INFORMATION,
                device=options.device,
            )
        )
        model, tokenizer = models.load(config.model, models.device_of(config.device), config.dtype)
        model = models.with_lora(model, config.lora_rank)
        if config.gradient_checkpointing:
            models.recompute_activations(model)
        print(
            f"{'K':>2} {'answers':>8} {'sampled tokens':>14} {'sample s':>9} {'train s':>9} "
            f"{'noise scale, tokens':>32} {'seconds':>9}"
        )
        for k in counts:
            of_k = dataclasses.replace(config, confessions_per_answer=int(k))
            print(
                measure(model, tokenizer, options, of_k, Sampling.of(dataclasses.asdict(config))),
                flush=True,
            )


if __name__ == "__main__":
    main()
