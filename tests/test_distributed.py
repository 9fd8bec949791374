"""Two processes train like one:
the same gradients and statistics, the same run folder, and resuming from it.
"""

import copy
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

import grpo
import models
import run_folder
from handmade import distance, gradients, random_rollouts, tiny_model
from rewards import information_reward
from runtime import batch, distributed
from runtime.optimizer import make_optimizer
from tasks import word_count
from tiny_runs import run_grpo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

RANKS, ROOT = 2, Path(grpo.__file__).parent


def cases() -> dict[str, dict]:
    """Options of grpo.update, and rollouts; `lora` and `few` are taken out."""
    return {
        "one batch a rank": dict(micro_batch_tokens=10_000),
        "more batches than ranks": dict(micro_batch_tokens=60),
        "token mean and a reference": dict(micro_batch_tokens=100, normaliser="token", kl_coef=0.1),
        "a rank with nothing to do": dict(few=1),
        "no signal at all": dict(few=0),
        "recomputing": dict(micro_batch_tokens=60, checkpointing=True),
        "lora": dict(micro_batch_tokens=60, lora_rank=4),
        "lora, a rank with nothing to do": dict(lora_rank=4, few=1),
    }


def measure(
    lora_rank: int = 0, few: int | None = None, checkpointing: bool = False, **options
) -> tuple[dict, dict]:
    """(gradients, statistics) of one update on 9 rollouts; only the first `few` have a signal."""
    model, rollouts = tiny_model(), random_rollouts(9)
    for rollout in rollouts[few:] if few is not None else []:
        rollout.answer.advantage = rollout.confession.advantage = 0.0
    reference = tiny_model(1) if "kl_coef" in options else None
    if lora_rank:
        torch.manual_seed(0)
        model = models.add_lora(model, lora_rank)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: the gradient of A would be zero too
                torch.nn.init.normal_(parameter, std=0.1)
            parameter.requires_grad_("lora_" in name)
    learner = model if lora_rank else distributed.sharded(model)
    if checkpointing:
        learner.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    found, statistics = gradients(learner, rollouts, reference, **options)
    return {name: distributed.whole(gradient) for name, gradient in found.items()}, statistics


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    out = {
        name: measure(**options)
        for name, options in cases().items()
        if "lora" not in name or has_peft()
    }
    out["share"] = distributed.share(list(range(5)))
    out["gather"] = distributed.gather([rank] * rank)
    out["first"] = distributed.on_first(os.getpid), os.getpid()
    out["optimizer"] = optimizer_state(Path(folder) / str(rank))
    torch.save(out, f"{folder}/{rank}.pt")


def has_peft() -> bool:
    try:
        return bool(models.peft())
    except models.UserError:
        return False


def optimizer_state(run: Path) -> tuple[dict, dict, list]:
    """(saved state after two steps, saved state of a fresh optimizer that loaded it, weights after
    a third step of each).
    """
    torch.manual_seed(0)
    kept = [distributed.sharded(tiny_model().bfloat16()) for _ in range(2)]
    first, second = (make_optimizer(learner, 1e-3) for learner in kept)

    def step(learner, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in learner.parameters():
            parameter.grad = torch.ones_like(parameter) * seed
        optimizer.step()

    for seed in (1, 2):
        step(kept[0], first, seed)
    saved = run_folder.optimizer_tensors(first)
    with torch.no_grad():
        for mine, theirs in zip(kept[1].parameters(), kept[0].parameters()):
            mine.copy_(theirs)
    run_folder.checkpoint(run, 1).mkdir(parents=True)
    run_folder.save_file(
        distributed.gather([saved])[0], run_folder.checkpoint(run, 1) / "optimizer.safetensors"
    )
    run_folder.load_optimizer(run, 1, second)
    again = run_folder.optimizer_tensors(second)
    for learner, optimizer in zip(kept, (first, second)):
        step(learner, optimizer, 3)
    return (
        saved,
        again,
        [[distributed.whole(p.detach()) for p in learner.parameters()] for learner in kept],
    )


def forks():
    """A context whose processes are forks of one that has imported all this, and that has two
    threads of which it has started none, as `python grpo.py` on two cores.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.qwen3.modeling_qwen3"])
    with pytest.MonkeyPatch.context() as patch:
        # the server finds modules there, and skips what it does not find
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patch.setenv("OMP_NUM_THREADS", "2")
        forkserver.ensure_running()
    return context


def fork_ranks(main, *args) -> None:
    """main(rank, *args) in RANKS processes."""
    method = forks().get_start_method()
    torch.multiprocessing.start_processes(main, args, nprocs=RANKS, start_method=method)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    fork_ranks(rank_main, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("name", cases())
def test_same_gradients_and_statistics_as_one_process(ranks, name):
    """A rank's gradients are left out, counted twice or averaged;
    or what is logged is one rank's.
    """
    if "lora" in name and not has_peft():
        pytest.skip("peft is not installed")
    expected, statistics = measure(**cases()[name])
    for rank in ranks:
        found, seen = rank[name]
        assert seen == {
            key: value and pytest.approx(value, rel=1e-5) for key, value in statistics.items()
        }
        if expected:
            assert distance(found, expected) < 1e-5
        else:
            assert name == "no signal at all" and not found


def test_plain_data(ranks):
    """Ranks share prompts with gaps or overlaps, or see different rollouts."""
    assert [rank["share"] for rank in ranks] == [[0, 1], [2, 3, 4]]
    assert all(rank["gather"] == [1] for rank in ranks)
    assert {rank["first"][0] for rank in ranks} == {ranks[0]["first"][1]}


def test_optimizer_state_is_saved_whole_and_sharded_again(ranks):
    """A checkpoint holds one rank's part of the moments, or a resumed rank gets another's."""
    saved, again, (one, other) = ranks[0]["optimizer"]
    model = tiny_model()
    assert {tuple(saved[f"{i}.exp_avg"].shape) for i in range(3)} <= {
        tuple(p.shape) for p in model.parameters()
    }
    assert saved.keys() == again.keys() and all(torch.equal(saved[k], again[k]) for k in saved)
    assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert not ranks[1]["optimizer"][0]


@pytest.mark.parametrize("batches, ranks", [(1, 2), (2, 2), (3, 2), (7, 4), (64, 3)])
def test_deal_leaves_nothing_out(monkeypatch, batches, ranks):
    """A rollout is dealt twice or not at all, a micro-batch is too large,
    or ranks do not have equally many.
    """
    lengths = {i: 40 + (i * 37) % 60 for i in range(batches)}
    monkeypatch.setattr(distributed, "world", lambda: ranks)
    dealt = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        dealt.append(batch.deal(lengths, 300))
    assert len({len(part) for part in dealt}) == 1
    rows = [i for part in dealt for batch in part for i in batch]
    assert sorted(rows) == sorted(lengths)
    assert all(
        len(batch) * max(lengths[i] for i in batch) <= 300
        for part in dealt
        for batch in part
        if batch
    )
    assert len(dealt[0]) == -(-len(batch.micro_batches(lengths, 300)) // ranks)


# -------------------------------------------------------------------------------- as a user runs it


def torchrun(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """`torchrun grpo.py options` in a folder."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(RANKS),
        ROOT / "grpo.py",
    ]
    # torch keeps its logs in a new folder of the system's /tmp otherwise
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    return subprocess.run(
        [*command, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def grpo_rank(rank: int, folder: Path, port: int, options: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "forked", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    run_grpo(folder, *options)


def forked(folder: Path, *options: str) -> None:
    """The same without the launcher: its environment and its store, and ranks that need no imports
    of their own.
    """
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    fork_ranks(grpo_rank, folder, store.port, options)


OPTIONS = (
    "--model organism/policy --steps 2 --prompts-per-step 3 --group-size 2 --checkpoint-every 1 "
    "--eval-n 3 --name two --confessions-per-answer 2 --max-confession-tokens 200 "
    "--confession-reward rewards.information_reward"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two steps in two processes, full-parameter training."""
    folder = tmp_path_factory.mktemp("torchrun")
    done = torchrun(folder, *OPTIONS.split())
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("figure: ") >= 1  # rank 0 alone prints
    return folder / "runs" / "two"


def test_run_folder_is_one_of_any_run(run):
    """Ranks write over each other, lose rollouts, or save a shard of the model."""
    rows = run_folder.read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    lines = [
        json.loads(line) for line in (run / "rollouts" / "step_0002.jsonl").read_text().splitlines()
    ]
    # one rank's group and the other's two, in order
    assert [line["seed"] for line in lines] == [6] * 4 + [7] * 4 + [8] * 4
    assert len({line["z"] + line["y"] for line in lines}) > 2  # with noise of their own
    rollouts = run_folder.load_rollouts(run / "rollouts" / "step_0002.jsonl", word_count)
    assert [r.branch for r in rollouts] == [0, 1] * 6 and all(
        a.y == b.y for a, b in zip(rollouts[::2], rollouts[1::2])
    )
    # of whole groups, as one process has it
    rollouts += run_folder.load_rollouts(run / "rollouts" / "step_0001.jsonl", word_count)
    rewards = [r.confession.reward for r in rollouts]
    assert information_reward(rollouts) == rewards and len(set(rewards)) > 2
    assert len((run / "evals" / "step_0002.jsonl").read_text().splitlines()) == 3
    states = []
    for step in (0, 2):
        model, _ = models.load(str(run_folder.checkpoint(run, step)), torch.device("cpu"))
        states.append(model.state_dict())
    assert all(a.shape == b.shape for a, b in zip(*(state.values() for state in states)))
    assert any(not torch.equal(a, b) for a, b in zip(*(state.values() for state in states)))


def without_step_2(run: Path, folder: Path) -> Path:
    again = folder / "runs" / "two"
    shutil.copytree(run, again)
    shutil.rmtree(run_folder.checkpoint(again, 2))
    return again


def test_resumed_run_repeats_an_uninterrupted_one(run, tmp_path):
    """A resumed rank gets another's noise, prompts or moments."""
    again = without_step_2(run, tmp_path)
    forked(tmp_path, "--resume", "runs/two")
    for before, after in zip(
        *(run_folder.read_rows(folder / "metrics.jsonl") for folder in (run, again)), strict=True
    ):
        # sums over a vocabulary may round otherwise in a new process
        for name in ("answer_entropy", "confession_entropy"):
            assert after.pop(name) == pytest.approx(before.pop(name), rel=1e-6)
        assert after == before
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [run_folder.checkpoint(folder, 2) / name for folder in (run, again)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_another_number_of_processes_goes_on(run, tmp_path):
    """A checkpoint depends on how many ranks made it."""
    again = without_step_2(run, tmp_path)
    config = grpo.Config(**run_folder.read_config(again))
    grpo.train(config, again, resume=True)
    assert run_folder.checkpoint_steps(again) == [0, 1, 2]
    rows, before = (run_folder.read_rows(folder / "metrics.jsonl") for folder in (again, run))
    assert rows[0] == before[0] and [row["step"] for row in rows] == [1, 2]


def as_program(folder: Path, options: tuple[str, ...]) -> None:
    """What the interpreter does for `python grpo.py options` in a folder after the imports."""
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["grpo.py", *options]
    runpy.run_path(grpo.__file__, run_name="__main__")


def started(folder: Path, *options: str) -> torch.multiprocessing.Process:
    """`python grpo.py options` in a folder, on two cores; its output goes to files there."""
    process = forks().Process(target=as_program, args=(folder, options))
    process.start()
    return process


def on_two_cores(folder: Path, *options: str) -> tuple[int, str]:
    """(exit status, what it said on stderr)"""
    process = started(folder, *options)
    process.join(timeout=300)
    return process.exitcode, (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def two_of_its_own(tmp_path_factory) -> Path:
    if sys.platform != "linux":
        pytest.skip("elsewhere it stays one process")
    folder = tmp_path_factory.mktemp("forked")
    done = subprocess.run(
        [sys.executable, Path(grpo.__file__), *OPTIONS.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("step    1 |") == 1  # rank 0 alone prints
    return folder / "runs/two"


def test_two_processes_of_its_own_train_like_two_of_torchrun(run, two_of_its_own):
    """A small model on two cores: a rank trains alone, or on its own gradients."""
    ours, theirs = (
        run_folder.read_rows(folder / "metrics.jsonl") for folder in (two_of_its_own, run)
    )
    for a, b in zip(ours, theirs, strict=True):
        for name, value in b.items():
            # differences of sums that round otherwise in sharded gradients
            close = dict(rel=1e-3, abs=1e-6) if isinstance(value, float) else {}
            assert a[name] == (pytest.approx(value, **close) if close else value), name


def no_number_for_the_second_prompt(rollouts) -> list[float]:
    return [math.nan if rollout.seed % 3 == 2 else 0.0 for rollout in rollouts]


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--max-answer-tokens 9999", "9999 answer"),
        # of which the second process alone knows
        ("--answer-reward test_distributed.no_number_for_the_second_prompt", "nan"),
    ],
)
def test_what_ends_a_run_is_said_once(tmp_path, options, reason):
    """Each process says it, or none, or one of them stays and waits for the other."""
    status, errors = on_two_cores(tmp_path, *OPTIONS.split(), *options.split())
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(said) == 1 and reason in said[0], errors
    assert "Traceback" not in errors


def parent_of(process: Path) -> int | None:
    try:
        return int(re.search(r"PPid:\s+(\d+)", (process / "status").read_text())[1])
    except OSError:  # it has just ended
        return None


def test_a_killed_run_of_two_processes_leaves_none_and_goes_on(two_of_its_own, tmp_path):
    """The second process stays for ever, or the resumed run draws other noise."""
    killed = started(tmp_path, *OPTIONS.split())
    run = tmp_path / "runs/two"
    waited_for = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < waited_for:
        time.sleep(0.05)
    children = [p for p in Path("/proc").glob("[0-9]*") if parent_of(p) == killed.pid]
    killed.kill(), killed.join()
    while any(child.exists() for child in children):
        assert time.monotonic() < waited_for, "the second process is still there"
        time.sleep(0.05)
    assert len(children) == 1
    status, errors = on_two_cores(tmp_path, "--resume", "runs/two")
    assert status == 0, errors[-2_000:]
    metrics = lambda folder: run_folder.read_rows(folder / "metrics.jsonl")
    assert metrics(run) == metrics(two_of_its_own)


def test_two_processes_only_where_they_are_one(monkeypatch):
    """Weights in bfloat16 are rounded by the noise of each process: they would part."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    in_two = lambda **options: grpo.in_two(grpo.Config(device="cpu", **options))
    assert in_two() == (sys.platform == "linux")
    assert not in_two(dtype="bfloat16") and not in_two(prompts_per_step=1)
    assert not in_two(model="someone/1B")


def test_rounding_at_random_keeps_small_steps():
    """Steps below the distance of two bfloat16 numbers are lost, or rounding is biased."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.full((40_000,), 0.02, dtype=torch.bfloat16))
    exact = torch.nn.Parameter(weight.detach().float())
    nearest = copy.deepcopy(weight)
    optimizers = [make_optimizer(torch.nn.ParameterList([p]), 1e-6) for p in (weight, exact)]
    optimizers.append(torch.optim.AdamW([nearest], lr=1e-6, weight_decay=0.0))
    for _ in range(50):
        for p, optimizer in zip((weight, exact, nearest), optimizers):
            p.grad = torch.ones_like(p)
            optimizer.step()
    moved = exact.detach()[0] - 0.02001953125
    assert float(moved) == pytest.approx(-5e-5, rel=0.01)
    assert float(weight.detach().float().mean() - 0.02001953125) == pytest.approx(
        float(moved), rel=0.05
    )
    assert torch.equal(nearest, torch.full_like(nearest, 0.02))
