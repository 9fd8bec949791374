"""Nothing is lost: a run that is killed, runs out of something or finds damaged files goes on with
--resume, and ends with the bytes of a run that was never interrupted. Real processes are killed
with SIGKILL (killer.py forks them).
"""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cli
import evaluate
import figures
import grpo
import killer
import models
import run_folder
from handmade import gradients, random_rollouts, tiny_model
from runtime.memory import halving
from runtime.optimizer import take_step
from tiny_runs import REWARD, files, redrawn, rows, run_grpo

pytestmark = pytest.mark.slow

# Three steps, of which the third is beyond the checkpoint of the second until the end.
STEPS = "--steps 3 --checkpoint-every 2 --prompts-per-step 1 --group-size 2".split()
STEPS += "--max-answer-tokens 4 --max-confession-tokens 4 --eval-n 2".split()
STEPS += [*REWARD, "--name", "run"]
RESUME = ["--resume", "runs/run"]


class Killer:
    """tests/killer.py in a process of its own."""

    def __init__(self, options: list[str]):
        self.options = options
        root = Path(__file__).parent.parent
        environment = os.environ | dict(
            OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=f"{root}:{root / 'tests'}"
        )
        self.process = subprocess.Popen(
            [sys.executable, killer.__file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, options: list[str], **end) -> None:
        print(
            json.dumps({"folder": str(folder), "options": options, **end}),
            file=self.process.stdin,
            flush=True,
        )

    def finish(self) -> tuple[int, str]:
        """(exit status, output) of what was started;
        a negative status is the signal that ended it.
        """
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        return answer["status"], answer["output"]

    def run(self, folder: Path, options: list[str], **end) -> tuple[int, str]:
        self.start(folder, options, **end)
        return self.finish()

    def go_on(self, folder: Path, **end) -> tuple[int, str]:
        """Resume what is there, or begin if nothing is."""
        begun = (folder / "runs/run/config.json").exists()
        return self.run(folder, RESUME if begun else self.options, **end)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """Of a run with two of the policy's four layers: a hundred runs take a third less time."""
    model, tokenizer = models.load("organism/policy", torch.device("cpu"))
    del model.model.layers[2:], model.config.layer_types[2:]
    model.config.num_hidden_layers = 2
    folder = str(tmp_path_factory.mktemp("model"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    as_embedded = models.EMBEDDED | dict(model=folder, judge=folder)
    named = ((f"--{name.replace('_', '-')}", str(v).lower()) for name, v in as_embedded.items())
    return [*itertools.chain(*named), *STEPS]


@pytest.fixture(scope="module")
def kill(options):
    killer = Killer(options)
    yield killer
    killer.process.stdin.close()
    killer.process.wait()


@pytest.fixture(scope="module")
def torn(kill, tmp_path_factory, options) -> Path:
    """What is left of a run whose third step is in one log, and torn in the other."""
    folder = tmp_path_factory.mktemp("torn")
    assert kill.run(folder, options, kill_at=["append", 6, "middle"])[0] == -9
    return folder


@pytest.fixture(scope="module")
def whole(kill, tmp_path_factory, options) -> tuple[dict[str, bytes], float, Path]:
    """Files of the run that was never interrupted,
    the seconds that it took, and its config.json.
    """
    folder = tmp_path_factory.mktemp("whole")
    status, output = kill.run(folder, options)
    assert status == 0, output
    assert all(row["grad_norm"] > 0 for row in rows(folder / "runs/run/metrics.jsonl"))
    return contents(folder), kill.seconds, folder / "runs/run/config.json"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the run, but those that tell of the clock, the lock, the git state (config.json)
    and the figures' compressed bytes (their numbers are there).
    """
    return {
        name: data
        for name, data in files(folder / "runs/run").items()
        if not redrawn(name) and name != "config.json"
    }


def assert_same(folder: Path, whole: tuple) -> None:
    got, expected = contents(folder), whole[0]
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []
    assert (folder / "runs/run/fig1_honesty.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def test_twenty_kills_at_random_moments(kill, whole, tmp_path):
    """A moment exists at which a kill costs more than the steps since the last checkpoint,
    or changes what comes after.
    """
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 20:
        folder = tmp_path / str(runs)
        folder.mkdir()
        status = -9
        while status == -9:
            # Resumed runs are killed too: they may be rewriting the logs just then.
            end = dict(kill_after=0.9 * rng.random() * whole[1]) if kills < 20 else {}
            status, output = kill.go_on(folder, **end)
            kills += status == -9
        assert status == 0, output
        assert_same(folder, whole)
        runs += 1


@pytest.mark.parametrize("name, when", [("rename", "before"), ("append", "middle")])
def test_a_kill_at_every_file_operation(kill, whole, options, tmp_path, name, when):
    """Half a file, or some of those that belong together, stop --resume or are taken for whole."""

    folder = tmp_path / "run"
    folder.mkdir()
    # one run, of which a fork is killed at each
    status, output = kill.run(folder, options, kill_at=[name, 0, when])
    assert status == 0, output
    assert_same(folder, whole)
    killed = sorted(tmp_path.glob("run_*"))
    assert 3 < len(killed) < 100
    for folder in killed:
        status, output = kill.go_on(folder)
        assert status == 0, output
        assert_same(folder, whole)


@pytest.mark.parametrize(
    "name, k", [("rename", 1), ("rename", 2), ("remove", 1), ("remove", 2), ("rename", 3)]
)
def test_a_kill_while_resuming(kill, whole, torn, tmp_path, name, k):
    """What a resumed run forgets is forgotten by halves when it is killed too."""
    shutil.copytree(torn, tmp_path, dirs_exist_ok=True)
    (tmp_path / "runs/run/evals/step_0003.json").write_text("of a step that is taken again")
    assert kill.run(tmp_path, RESUME, kill_at=[name, k, "before"])[0] == -9
    status, output = kill.run(tmp_path, RESUME)
    assert status == 0, output
    assert_same(tmp_path, whole)


def test_lora_resumes_exactly(kill, tmp_path, options):
    """Adapters are drawn anew, or their optimizer state belongs to other parameters."""
    pytest.importorskip("peft")
    lora = [*options, "--lora-rank", "2", "--dtype", "bfloat16", "--lr", "0.01", "--kl-coef", "0.1"]
    ended = []
    for name, end in (("whole", {}), ("killed", dict(kill_at=["append", 6, "middle"]))):
        folder = tmp_path / name
        folder.mkdir()
        status, output = kill.run(folder, lora, **end)
        if end:
            assert status == -9
            status, output = kill.run(folder, RESUME)
        assert status == 0, output
        ended.append(contents(folder))
    assert ended[0] == ended[1] and "checkpoints/step_0003/adapter_model.safetensors" in ended[0]
    adapters = [ended[0][f"checkpoints/step_000{i}/adapter_model.safetensors"] for i in (0, 2, 3)]
    assert len(set(adapters)) == 3


# ------------------------------------------------------------------------------------ damaged files


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the finished run, to be damaged; returns its folder."""
    for name, data in whole[0].items():
        path = tmp_path / "runs/run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shutil.copy(whole[2], tmp_path / "runs/run/config.json")
    return tmp_path / "runs/run"


@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "optimizer.safetensors", "config.json", "no optimizer.safetensors"],
)
def test_a_damaged_checkpoint_is_set_aside(kill, whole, copy, tmp_path, file):
    """Half a checkpoint is loaded as a whole one, or blocks a run that has another one."""
    folder = copy / "checkpoints/step_0003"
    if file.startswith("no "):
        (folder / file[3:]).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:500])
    status, output = kill.run(tmp_path, RESUME)
    assert status == 0, output
    assert "step_0003" in output and "going on from step 2" in output
    shutil.rmtree(copy / "checkpoints/damaged_step_0003")
    assert_same(tmp_path, whole)


def test_without_any_whole_checkpoint_nothing_is_touched(kill, copy, tmp_path):
    """A disk that cannot be read for a while makes a long run begin again, over its own results."""
    for path in copy.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(b"")
    before = files(copy)
    status, output = kill.run(tmp_path, RESUME)
    assert (
        status == 2
        and "no checkpoint of runs/run is whole" in output
        and "step_0000/model.safetensors" in output
    )
    assert {name: data for name, data in files(copy).items() if name != "lock"} == before


@pytest.mark.parametrize(
    "file, line, content",
    [
        ("metrics.jsonl", 2, b'{"step": 2, "rew'),
        ("metrics.jsonl", 1, b"7"),
        ("metrics.jsonl", 3, b"\xff\xfe"),
        ("metrics.jsonl", 2, b"[" * 100_000),
        ("evals/step_0002.jsonl", 2, b'{"seed": 1}'),
        ("evals/step_0002.jsonl", 1, b"\xff\xfe"),
    ],
)
def test_a_corrupt_line_is_named(copy, tmp_path, monkeypatch, capsys, file, line, content):
    """A traceback instead of the file and the line to look at;
    or the rest of the file is lost with it.
    """
    lines = (copy / file).read_bytes().splitlines()
    lines[line - 1] = content
    (copy / file).write_bytes(b"\n".join(lines) + b"\n")
    before = files(copy)
    with pytest.raises(SystemExit, match="2"):
        run_grpo(tmp_path, *RESUME)
    assert f"runs/run/{file} line {line} " in capsys.readouterr().err
    assert all(files(copy)[name] == data for name, data in before.items())


# -------------------------------------------------------------------------------- running out of it


@pytest.mark.parametrize("kilobytes", [0, 4, 40, 1_100, 2_300, 3_700])
def test_a_full_or_read_only_disk(kill, whole, options, tmp_path, kilobytes):
    """A disk without room (0:
    a read-only one) ends a run in a traceback, or leaves what --resume stumbles over.
    """
    status, output = kill.run(tmp_path, options, disk=kilobytes * 1024)
    if status == 77:
        pytest.skip("mounting a file system of one's own is not permitted here")
    assert status == 0, output
    assert "first status: 2" in output and "Traceback" not in output
    assert ("Read-only file system" if kilobytes == 0 else "No space left on device") in output
    assert_same(tmp_path, whole)


def out_of_memory(real, limit: int, size):
    """A function that fails as the GPU does while size(its arguments) is beyond a limit."""

    def wrapped(*args, **kwargs):
        if size(*args) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return real(*args, **kwargs)

    return wrapped


def test_training_out_of_memory_takes_smaller_micro_batches(monkeypatch):
    """Part of a gradient is counted twice, or the step is another one than with room enough."""
    model, rollouts = tiny_model(), random_rollouts(6)
    expected, _ = gradients(model, rollouts)
    calls = []

    def short(real=models.token_logprobs):
        def wrapped(model, ids, *rest):
            calls.append(ids.numel())
            if len(calls) in (2, 5):  # after a part of the batch has left its gradients
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, ids, *rest)

        return wrapped

    monkeypatch.setattr(grpo, "token_logprobs", short())
    found, size = halving(
        "training", lambda n: gradients(model, rollouts, micro_batch_tokens=n)[0], 80
    )
    assert size == 20
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_in_the_optimizer_is_not_repeated(error):
    """Weights that have moved move a second time, in the attempt with half the micro-batch."""
    calls = []

    class Full:
        def step(self):
            calls.append(1)
            raise error

    with pytest.raises(cli.UserError, match="optimizer's step.*--resume"):
        halving("training", lambda n: take_step(Full()), 8)
    assert calls == [1]


def test_halving_stops_at_the_fewest_that_are_decoded_together():
    """An answer's confessions are decoded together, so smaller batches are the same work again,
    and again out of memory.
    """
    sizes = []
    with pytest.raises(cli.UserError, match="with 4 at once"):
        halving("sampling", out_of_memory(lambda n: n, 0, lambda n: sizes.append(n) or n), 16, 4)
    assert sizes == [16, 8, 4]


def test_halving_ends_with_a_clear_message_and_passes_other_errors_on():
    with pytest.raises(cli.UserError, match="out of memory in sampling"):
        halving("sampling", out_of_memory(None, 0, lambda n: n), 8)
    with pytest.raises(RuntimeError, match="size"):
        halving("sampling", lambda n: torch.ones(2) + torch.ones(3), 8)


def test_a_run_goes_on_with_half_the_batch(tmp_path, monkeypatch, capsys, options):
    """A run of hours ends because one batch was too long for the memory."""
    monkeypatch.setattr(
        evaluate,
        "sample_rollouts",
        out_of_memory(evaluate.sample_rollouts, 16, lambda *a: a[4].batch_size),
    )
    monkeypatch.setattr(grpo, "update", out_of_memory(grpo.update, 512, lambda *a: a[5]))
    run_grpo(tmp_path, *options)
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert [row["step"] for row in rows(tmp_path / "runs/run/metrics.jsonl")] == [1, 2, 3]
    # the next step begins with what fitted
    assert sum("training with 2048 at once" in line for line in said) == 1
    assert sum("sampling with 64 at once" in line for line in said) > 0


def test_a_loss_that_is_not_finite_skips_the_step(tmp_path, monkeypatch, capsys, options):
    """A NaN reaches the weights or the optimizer, ends the run at once, or is never noticed;
    or its batch is gone.
    """
    real, bad = grpo.token_losses, {2: math.nan, 4: math.inf, 5: math.nan, 6: -math.inf}
    step = lambda: len(rows(log)) + 1 if log.exists() else 1
    log = tmp_path / "runs/run/metrics.jsonl"
    monkeypatch.setattr(grpo, "token_losses", lambda *args: real(*args) * bad.get(step(), 1.0))
    with pytest.raises(SystemExit) as error:
        run_grpo(tmp_path, *options, *"--steps 9 --checkpoint-every 1".split())
    captured = capsys.readouterr()
    assert error.value.code == 2
    assert "three steps in a row" in captured.err and "step_0005" in captured.err
    run = tmp_path / "runs/run"
    assert [row["skipped"] for row in rows(log)] == [False, True, False, True, True, True]
    assert captured.out.count("SKIPPED") == 4
    kept = sorted(path.name for path in run.glob("rollouts/nonfinite_*"))
    assert kept == [f"nonfinite_step_000{i}.jsonl" for i in (2, 4, 5, 6)]
    assert all(len(row["answer"]["logprobs"]) == 4 for row in rows(run / "rollouts" / kept[0]))
    for file in ("model.safetensors", "optimizer.safetensors"):
        saved = [(run_folder.checkpoint(run, i) / file).read_bytes() for i in range(6)]
        assert saved[1] == saved[2] != saved[3] == saved[4] == saved[5]


def test_a_model_whose_logits_are_not_finite_still_ends_in_words(tmp_path, capsys, options):
    """The sampler asks for a token beyond the vocabulary,
    which on a GPU kills the process without a message.
    """
    model, tokenizer = models.load("organism/policy", torch.device("cpu"))
    model.get_decoder().norm.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="2"):
        run_grpo(tmp_path, *options, "--model", str(tmp_path / "model"))
    assert "three steps in a row" in capsys.readouterr().err


def no_number(rollouts) -> list[float]:
    return [math.nan] * len(rollouts)


def test_a_reward_that_is_not_a_number_is_refused(tmp_path, capsys, options):
    """A NaN from a reward function turns into advantages,
    or ends the run where nobody looks for its cause.
    """
    with pytest.raises(SystemExit, match="2"):
        run_grpo(tmp_path, *options, "--answer-reward", "test_crash.no_number")
    assert "reward function no_number returned nan" in capsys.readouterr().err


# --------------------------------------------------------------------------------- two runs at once


def test_a_run_in_use_is_refused(kill, copy, tmp_path):
    """Two processes write one run folder;
    or a lock file whose process is dead blocks the folder for good.
    """
    with run_folder.locked(copy):
        status, output = kill.run(tmp_path, RESUME)
        assert status == 2 and f"in use by process {os.getpid()} on " in output
    (copy / "lock").write_text("1 on this machine")  # the process lives, the lock does not
    status, output = kill.run(tmp_path, RESUME)
    assert status == 0, output


def test_two_runs_beside_each_other(kill, tmp_path, options):
    """Two processes in different run folders disturb each other,
    as through a common temporary file.
    """
    kill.start(tmp_path, [*options, "--name", "one"])
    run_grpo(tmp_path, *options, "--name", "two")
    status, output = kill.finish()
    assert status == 0, output
    one, two = (rows(tmp_path / "runs" / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3]


def test_figures_are_drawn_while_a_run_writes(copy):
    """A reader stumbles over the line that is being written,
    or draws half a picture over a whole one.
    """
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    assert len(run_folder.read_rows(copy / "metrics.jsonl")) == 3
    for path in figures.reproduction(copy):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
