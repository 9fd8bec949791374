"""Several confessions of one answer on one KV cache. A mistake here trains confessions to answers
that they are not about.
"""

import pytest
import torch

import run_folder
from chat_template import suffix_ids
from grpo import Config, assign_advantages, span_weights
from rollout import Rollout, Sampling, sample_rollouts
from runtime import engine
from runtime.batch import make_batch
from runtime.decoder import two_turns
from tasks import word_count
from test_engine import SEEDS, SYSTEMS
from test_rollout import full_logprobs
from tiny_runs import RUN, run_grpo

pytestmark = pytest.mark.usefixtures("one_thread", "short_windows")

K = 3


@pytest.fixture(params=["qwen3", "olmo3"])
def tiny(request, tiny_models) -> tuple:
    """Full attention, and sliding windows, which the plain sampler alone knows."""
    return tiny_models[request.param]


def sample(
    tiny, sampler: str, temperature: float = 1.0, confessions: int = K, batch_size: int = 7
) -> list[Rollout]:
    sampling, generator = (
        Sampling(temperature, 12, 24, batch_size, sampler),
        torch.Generator().manual_seed(0),
    )
    return sample_rollouts(
        *tiny, word_count, SEEDS, sampling, generator, systems=SYSTEMS, confessions=confessions
    )


def assert_branched(rollouts: list[Rollout], tokenizer) -> None:
    """Each answer K times, with confessions of its own that begin where they should."""
    assert [(r.seed, r.branch) for r in rollouts] == [(seed, k) for seed in SEEDS for k in range(K)]
    for first in range(0, len(rollouts), K):
        head, *others = rollouts[first : first + K]
        suffix = suffix_ids(tokenizer, head.xc)
        # an answer that sampled the token that closes it: what stands between the turns
        # is one token less
        between, last = (
            head.token_ids[head.answer.end : head.confession.start],
            head.token_ids[head.answer.end - 1],
        )
        assert between == (suffix[1:] if last == suffix[0] else suffix)
        assert (last == suffix[0]) <= (head.answer.finish == "stop")
        for other in others:
            assert (
                other.token_ids[: other.confession.start] == head.token_ids[: head.confession.start]
            )
            assert (other.z, other.y, other.x, other.xc, other.system) == (
                head.z,
                head.y,
                head.x,
                head.xc,
                head.system,
            )
            assert other.answer == head.answer and other.answer is not head.answer
        assert all(r.confession.end == len(r.token_ids) for r in (head, *others))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_branches_equal_one_uncached_pass(tiny, temperature):
    """A branch reads another answer's cache, or positions and gaps are wrong after branching:
    the ratio is not 1.
    """
    rollouts = sample(tiny, "plain", temperature)
    assert_branched(rollouts, tiny[1])
    assert {r.answer.finish for r in rollouts} == {"stop", "length"}, "a case is missing"
    assert len({tuple(r.token_ids) for r in rollouts}) == len(rollouts), (
        "confessions of an answer are copies"
    )
    for rollout in rollouts:
        expected = full_logprobs(tiny[0], rollout.token_ids, temperature)
        for span in rollout.spans.values():
            assert span.logprobs == pytest.approx(expected[span.start : span.end], abs=1e-4)


@pytest.mark.parametrize("batch_size", [4])
def test_engine_branches_as_the_plain_sampler(tiny_models, batch_size):
    """Slots, shared blocks or the copy of an answer are wrong in the fast sampler."""
    tiny = tiny_models["qwen3"]
    mine, theirs = sample(tiny, "engine", 0.0, batch_size=batch_size), sample(tiny, "plain", 0.0)
    assert_branched(mine, tiny[1])
    assert {r.answer.finish for r in mine} == {"stop", "length"}, "a case is missing"
    assert [r.token_ids for r in mine] == [r.token_ids for r in theirs]
    for a, b in zip(mine, theirs):
        for x, y in zip(a.spans.values(), b.spans.values()):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4) and x.entropy == pytest.approx(
                y.entropy, abs=1e-4
            )
    sampled = sample(tiny, "engine", batch_size=batch_size)
    assert_branched(sampled, tiny[1])
    assert len({tuple(r.token_ids) for r in sampled}) == len(sampled), (
        "confessions of an answer are copies"
    )
    for rollout in sampled:
        assert rollout.confession.logprobs == pytest.approx(
            full_logprobs(tiny[0], rollout.token_ids, 1.0)[rollout.confession.start :], abs=1e-4
        )


def test_one_confession_is_what_it_was(tiny_models):
    """An answer's first confession, or the answers,
    change with the number of confessions where the noise does not.
    """
    tiny = tiny_models["qwen3"]
    one, several = sample(tiny, "plain", 0.0, confessions=1), sample(tiny, "plain", 0.0)
    assert [r.token_ids for r in one] == [r.token_ids for r in several[::K]]


def arguments(tiny, budgets=(40, 40), batch_size=64) -> tuple:
    rollouts = sample(tiny, "plain", 0.0, confessions=1)
    prompts = [r.token_ids[: r.answer.start] for r in rollouts]
    suffixes = [suffix_ids(tiny[1], r.xc) for r in rollouts]
    return prompts, suffixes, [suffixes[0][0]], Sampling(0.0, *budgets, batch_size), None


def test_branches_share_blocks(tiny_models):
    """Each confession has an answer's cache of its own:
    K times the memory and the prompt's work.
    """
    tiny = tiny_models["qwen3"]
    e = engine.Engine(tiny[0], *arguments(tiny), K)
    with engine.running(e), torch.inference_mode():
        while not any(job.turn == 1 and job.rollout % K for job in e.jobs.values()):
            e.start_jobs()
            e.window()
        e.start_jobs()
    branches = [job for job in e.jobs.values() if job.rollout % K]
    assert branches
    for job in branches:
        whole = (len(e.prompts[job.rollout]) + e.lengths[job.rollout][0]) // engine.BLOCK
        assert whole > 2 and all(e.shared[block] > 1 for block in job.blocks[:whole])


def test_eviction_of_branches_changes_nothing(tiny_models):
    """A branch that gave up its blocks goes on from others' tokens,
    or blocks are lost or freed twice.
    """
    tiny = tiny_models["qwen3"]
    prompts, *rest = arguments(tiny)
    expected = two_turns(tiny[0], prompts, *rest, K)
    longest = max(map(len, prompts)) + 80 + max(map(len, rest[0]))
    small = engine.Engine(tiny[0], prompts, *rest, K, blocks=-(-longest // engine.BLOCK) + 4)
    found = small.run()
    assert small.evictions > 3, "the cache was large enough"
    assert [(a[0], joint, c[0]) for a, joint, c in found] == [
        (a[0], joint, c[0]) for a, joint, c in expected
    ]
    assert sorted(small.free) == list(range(1, len(small.shared))) and not any(small.shared), (
        "blocks are lost"
    )


def test_groups_and_tokens_of_branches(tiny_models):
    """Confessions are compared with those of another answer, answers with their own copies, or
    an answer is trained K times.
    """
    rollouts = sample(tiny_models["qwen3"], "plain")[: 4 * K]
    for i, rollout in enumerate(rollouts):
        rollout.answer.reward, rollout.confession.reward = (
            [1.0, 0.0, 0.5, 0.5][i // K],
            [0.0, 0.3, 0.9][i % K] + i // K,
        )
    config = Config(group_size=2, confessions_per_answer=K, confession_advantage_scale="none")
    without_signal = assign_advantages(rollouts, config)
    assert without_signal == {"answer": 0.5, "confession": 0.0}
    assert [r.confession.advantage for r in rollouts] == pytest.approx([-0.4, -0.1, 0.5] * 4)
    assert [r.answer.advantage for r in rollouts] == pytest.approx(
        [1.0] * K + [-1.0] * K + [0.0] * 2 * K, abs=1e-3
    )
    weights = {
        name: span_weights(rollouts, name, 1.0, "token") for name in ("answer", "confession")
    }
    answers, confessions = ([len(r.spans[name].logprobs) for r in rollouts] for name in weights)
    total = sum(answers[::K])
    assert weights["answer"] == pytest.approx([1 / total, 0, 0] * 2 + [0.0] * 2 * K)
    assert weights["confession"] == pytest.approx([1 / sum(confessions)] * 4 * K)
    batch = make_batch(rollouts, weights, torch.device("cpu"))
    assert int(batch.trained.sum()) == sum(answers[: 2 * K : K]) + sum(confessions)


def test_a_run_with_several_confessions_resumes_to_the_same_bytes(tmp_path):
    """Branches are lost on the way to the file, or the run cannot be gone on with."""
    options = [
        "--confessions-per-answer",
        "2",
        "--group-size",
        "2",
        "--confession-advantage-scale",
        "none",
    ]
    run_grpo(tmp_path, *RUN, *options)
    run = tmp_path / "runs" / "run"
    steps = sorted(run.glob("rollouts/step_*.jsonl"))
    for path in steps:
        rollouts = run_folder.load_rollouts(path, word_count)
        assert [r.branch for r in rollouts] == [0, 1] * (len(rollouts) // 2) and len(
            rollouts
        ) % 4 == 0
        for a, b in zip(rollouts[::2], rollouts[1::2]):
            assert (a.seed, a.y, a.answer) == (
                b.seed,
                b.y,
                b.answer,
            ) and a.confession != b.confession
            assert a.confession.advantage == pytest.approx(-b.confession.advantage) != 0.0
    before = steps[-1].read_bytes()
    last = run_folder.checkpoint_steps(run)[-1]
    run_folder.checkpoint(run, last).rename(tmp_path / "aside")
    run_grpo(tmp_path, "--resume", "runs/run")
    assert steps[-1].read_bytes() == before
