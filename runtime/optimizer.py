"""AdamW, for weights in bfloat16 with stochastic rounding: what it computes in float32 is rounded
up or down at random, and right on average.

A step at a learning rate of 1e-6 is a hundredth of the distance of two bfloat16 numbers near 0.02.
Rounded to the nearest it is lost, and the model does not learn at all; rounded at random, one
weight in a hundred moves. Instead of float32 copies of weights and moments (16 bytes a parameter)
8 suffice: an 8B model trains on one GPU. Ozkara et al. 2025 (https://arxiv.org/abs/2502.20566)
find it no worse than float32 copies in pre-training up to 6.7B parameters.
"""

import functools

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from cli import UserError
from runtime.compiled import compiled
from runtime.memory import is_out_of_memory

BETAS = (0.9, 0.95)
PIECE = 2**26  # elements at a time: the float32 temporaries of a large embedding would take 20 GB


def random_bits(shape, device, generator: torch.Generator | None = None) -> torch.Tensor:
    """Numbers of 16 random bits, int32, for rounded()."""
    # the compiler knows no generator, not even None, beside sizes that it leaves open
    source = {} if generator is None else {"generator": generator}
    return torch.randint(0, 2**16, shape, dtype=torch.int32, device=device, **source)


def rounded(exact: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """float32 -> bfloat16, one of the two neighbours, with mean `exact` over random_bits()."""
    return ((exact.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()


def move(weight, mean, square, gradient, step, options: dict) -> None:
    """One step of AdamW on flat bfloat16 tensors, in place; `step`: how many came before."""
    kept = weight, mean, square
    weight, mean, square, gradient = (tensor.float() for tensor in (*kept, gradient))
    adamw([weight], [gradient], [mean], [square], [], [step.clone()], foreach=False, **options)
    for tensor, exact in zip(kept, (weight, mean, square)):
        tensor.copy_(rounded(exact, random_bits(exact.shape, exact.device)))


@functools.cache
def compiled_move():
    """move() as one kernel, which is a tenth of the time; the compiler takes seconds to import."""
    return compiled(move)


class AdamW(torch.optim.AdamW):
    """torch's AdamW with weights, gradients and both moments in bfloat16 and arithmetic
    in float32. The noise is the device's default generator's. Sharded parameters (FSDP2) are
    stepped where they lie.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            options = {
                name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")
            }
            options["beta1"], options["beta2"] = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, on_gpu = self.state[parameter], parameter.device.type == "cuda"
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(parameter),
                        torch.zeros_like(parameter),
                    )
                tensors = (parameter, state["exp_avg"], state["exp_avg_sq"], parameter.grad)
                flat = ((t.to_local() if isinstance(t, DTensor) else t).view(-1) for t in tensors)
                for pieces in zip(*(t.split(PIECE) for t in flat)):
                    before = state["step"].to(parameter.device)
                    (compiled_move() if on_gpu else move)(
                        *pieces, before, options | {"capturable": on_gpu}
                    )
                state["step"] += 1


def make_optimizer(model, lr: float) -> torch.optim.Optimizer:
    """AdamW over what is trained;
    in bfloat16 with stochastic rounding, as updates of this size would be lost.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer_class = AdamW if parameters[0].dtype == torch.bfloat16 else torch.optim.AdamW
    return optimizer_class(parameters, lr=lr, betas=BETAS, weight_decay=0.0)


def take_step(optimizer) -> None:
    try:
        optimizer.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # some weights may have moved: it cannot be repeated from here
        raise UserError(
            "out of memory in the optimizer's step: free some, then --resume from the "
            "last checkpoint"
        ) from None
