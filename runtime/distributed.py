"""Several processes, one training: torchrun --nproc-per-node 4 grpo.py ..., or two on a CPU that
grpo.py starts itself for a small model. With one process all of this is trivial.

Each rank samples, judges and scores prompts of its own, so a group is never split. Then every rank
gets all rollouts: advantages, weights and logs come from the same numbers everywhere, whatever
the number of ranks, and only the forward and backward passes are dealt out (batch.deal). Gradients
are summed, because the weights of the loss are the whole batch's.

LoRA: every rank holds the frozen model and the adapters. Full-parameter training: parameters,
gradients and optimizer state are sharded (FSDP2,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html); a whole copy stays
to sample from. Rank 0 alone writes. Between machines, the run folder must be on a disk that
all of them see.
"""

import copy
import functools
import os
import signal
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from types import MethodType
from typing import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from cli import UserError

ERROR = "error"  # key of the store: what ended rank 1 of on_two_cores()
PATIENCE = timedelta(hours=2)  # for the slowest rank: rank 0 may be writing a checkpoint

# of the two ranks of on_two_cores(): their parameters are replicated, not sharded
_store = None


@contextmanager
def on_two_cores(wanted: bool):
    """Within it, if wanted, two ranks run on this machine's CPU, one thread each: this process and
    a fork of it, before it has threads. A small model's operations are too short for threads to
    share.
    """
    global _store
    if not wanted:
        yield
        return
    receive, send = os.pipe()
    other = os.fork()  # 0 in the fork, which is rank 1
    try:
        if not other:
            os.setsid()  # Ctrl-C reaches rank 0 alone, which tells the other
            os.close(send)
        torch.set_num_threads(1)
        # a laptop's own name may lead nowhere, or to a firewall's question
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        port = 0 if other else int(os.read(receive, 9))
        master = dict(is_master=bool(other), wait_for_workers=False)
        _store = dist.TCPStore("127.0.0.1", port, 2, timeout=PATIENCE, **master)
        if other:
            os.write(send, str(_store.port).encode())
        group = dict(rank=int(not other), world_size=2, timeout=PATIENCE)
        dist.init_process_group("gloo", store=_store, **group)
        yield
    except RuntimeError:  # the other rank is gone: what it said before is the reason
        if not other or not _store or not _store.check([ERROR]):
            raise
        raise UserError(_store.get(ERROR).decode()) from None
    finally:
        if other:
            os.kill(other, signal.SIGKILL)


@contextmanager
def launched():
    """Join the ranks that torchrun has started, each with a GPU of its own where there are any.
    Of these and of the ranks of on_two_cores() rank 0 alone prints.
    """
    if dist.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1":
        _join()
    if world() == 1:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            with redirect_stdout(nowhere) if rank() else nullcontext():
                yield
    except UserError as error:
        if _store and rank():
            _store.set(ERROR, str(error))  # rank 0 says it
            os._exit(2)
        raise
    # not after an error: the others may be waiting, and torchrun ends them
    dist.destroy_process_group()
    sys.stdout.flush(), sys.stderr.flush()
    # all is saved; one exit in thirty aborts in torch's own threads ("terminate called without
    # an active exception")
    os._exit(0)


def _join() -> None:
    backend, local = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs here: "
                "one process a GPU"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


# --------------------------------------------------------------------------------------- plain data


def share(items: list) -> list:
    """This rank's part: consecutive items, as even as possible."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def gather(items: list) -> list:
    """The items of all ranks, in order of rank, on every rank."""
    if world() == 1:
        return items
    by_rank = [None] * world()
    dist.all_gather_object(by_rank, items)
    return [item for of_rank in by_rank for item in of_rank]


_alone = False  # whether rank 0 is doing what the others wait for


def on_first(function: Callable, *args):
    """What function(*args) returns on rank 0, on every rank; the others wait.
    Within such work it is an ordinary call.
    """
    global _alone
    if world() == 1 or _alone:
        return function(*args)
    result = [None]
    if rank() == 0:
        _alone = True
        try:
            result = [function(*args)]
        finally:
            _alone = False
    dist.broadcast_object_list(result, 0)
    return result[0]


def first_rank(function: Callable) -> Callable:
    """Decorator: on_first() around every call, for what reads or writes the run folder."""
    return functools.wraps(function)(functools.partial(on_first, function))


# ------------------------------------------------------------------------- parameters and gradients


def sharded(model):
    """A copy of the model for full-parameter training, sharded over the ranks; with one process,
    or the ranks of on_two_cores(), the model itself.
    """
    if world() == 1 or _store:
        return model
    learner = copy.deepcopy(model)
    mesh = init_device_mesh(model.device.type, (world(),))
    for module in (*learner.get_decoder().layers, learner):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # sum, not mean
        module.set_force_sum_reduction_for_comms(True)
    return learner


@torch.no_grad()
def copy_back(learner, model) -> None:
    """Give the model that samples the weights of its sharded copy."""
    if learner is not model:
        for own, new in zip(model.parameters(), learner.parameters(), strict=True):
            own.copy_(whole(new))


def call(model, function: Callable, *args):
    """function(model, *args);
    what a sharded model holds outside its layers is gathered around it, as around a forward().
    """
    if not isinstance(model, FSDPModule):
        return function(model, *args)
    if not hasattr(model, function.__name__):
        setattr(model, function.__name__, MethodType(function, model))
        register_fsdp_forward_method(model, function.__name__)
    return getattr(model, function.__name__)(*args)


def pass_without_rows(model, function: Callable) -> None:
    """The forward and backward pass of a rank whose share is empty: the others wait for it in each
    layer of a sharded model. function(model, ids, trained, temperature) as models.token_logprobs.
    """
    ids = torch.tensor([[0, 1]], device=model.device)
    (0 * call(model, function, ids, ids == 1, 1.0).sum()).backward()


def sum_gradients(model) -> None:
    """Sum over ranks what each has added to its .grad; FSDP has done so already."""
    if world() > 1 and not isinstance(model, FSDPModule):
        for parameter in model.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together, on every rank; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor that is on every rank, if `like` is sharded;
    otherwise the tensor itself.
    """
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
