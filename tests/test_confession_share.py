"""Confessions on a share of the prompts: what is drawn, what is sampled, and what counts. A mistake
here lets a rollout confess because of its answer, or counts silence as a confession.
"""

import json
from types import SimpleNamespace

import pytest
import torch

import grpo
import run_folder
import transcripts
from grpo import Config, span_weights
from handmade import one_turn, random_rollouts, told_rollouts
from metrics import OF_ANSWERS, rates
from rollout import Sampling, sample_rollouts
from runtime.progress import format_example
from tasks import word_count
from test_rollout import full_logprobs
from tiny_runs import RUN, rows, run_grpo

pytestmark = pytest.mark.usefixtures("one_thread", "short_windows")


def drawn(monkeypatch, step: int, share: float, prompts: int = 8, **options) -> dict[int, int]:
    """{prompt: confessions of each of its answers} that grpo.generate asks for at a step."""
    seen, noises = {}, []

    def sample_in_memory(model, tokenizer, task, seeds, sampling, noise, variant, confessions):
        seen.update({seed: confessions for seed in seeds})
        noises.append(noise)
        return [], sampling

    monkeypatch.setattr(grpo, "sample_in_memory", sample_in_memory)
    config = Config(confession_share=share, prompts_per_step=prompts, **options)
    names = dict.fromkeys(("model", "tokenizer", "task", "sampling"))
    grpo.generate(SimpleNamespace(config=config, **names), step)
    assert len(set(noises)) == 2, "both parts draw the same numbers"
    return seen


def test_prompts_are_drawn_by_seed_and_step(monkeypatch):
    """The draw depends on something sampled, always hits the same places, or is of another size."""
    steps = [drawn(monkeypatch, step, 0.25, confessions_per_answer=3) for step in range(1, 201)]
    assert all(sorted(found.values()) == [0] * 6 + [3] * 2 for found in steps)
    assert steps[4] == drawn(monkeypatch, 5, 0.25, confessions_per_answer=3)
    hits = [0] * 8
    for step, found in enumerate(steps, 1):
        for seed, confessions in found.items():
            hits[seed - 8 * step] += bool(confessions)
    assert min(hits) > 30 and max(hits) < 70  # of 200, a quarter each
    other = [drawn(monkeypatch, step, 0.25, seed=1) for step in range(1, 21)]
    places = lambda found, seed: [p - 1_000_000 * seed for p in sorted(found) if found[p]]
    assert [places(f, 0) for f in steps[:20]] != [places(f, 1) for f in other]
    assert list(drawn(monkeypatch, 1, 0.01).values()).count(1) == 1
    assert set(drawn(monkeypatch, 1, 1.0).values()) == {1}


def test_ranks_agree_on_the_draw(monkeypatch):
    """Each process draws for itself, so more or fewer prompts confess than were asked for."""
    whole, parts = drawn(monkeypatch, 3, 0.25), {}
    for rank in (0, 1, 2):
        monkeypatch.setattr(grpo.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(grpo.distributed, "world", lambda: 3)
        parts |= drawn(monkeypatch, 3, 0.25)
    assert parts == whole


@pytest.mark.parametrize("sampler, architecture", [("plain", "olmo3"), ("engine", "qwen3")])
def test_one_turn_alone(tiny_models, sampler, architecture):
    """Without a second turn something is sampled or kept of it, or the answers' log-probabilities
    are not the model's.
    """
    model, tokenizer = tiny_models[architecture]
    sampling = Sampling(1.0, 12, 24, 5, sampler)
    rollouts = sample_rollouts(
        *(model, tokenizer, word_count, [0, 0, 1, 2, 2, 3], sampling),
        torch.Generator().manual_seed(0),
        confessions=0,
    )
    assert [r.seed for r in rollouts] == [0, 0, 1, 2, 2, 3]
    for r in rollouts:
        assert not r.confesses and r.finite and (r.xc, r.zc, r.yc) == ("", "", "")
        assert r.confession.start == r.confession.end == r.answer.end == len(r.token_ids)
        whole = full_logprobs(model, r.token_ids, 1.0)[r.answer.start : r.answer.end]
        assert r.answer.logprobs == pytest.approx(whole, abs=1e-4)


def test_rates_count_rollouts_that_confess(tokenizers):
    """Silence counts as a report that does not parse, or answers without a confession do not
    count as answers.
    """
    confessing = told_rollouts(tokenizers["organism"], seed=0)
    silent = [one_turn(r) for r in told_rollouts(tokenizers["organism"], seed=1)]
    mixed = rates([*silent, *confessing], word_count)
    alone, everything = (
        rates(confessing, word_count),
        rates([*told_rollouts(tokenizers["organism"], seed=1), *confessing], word_count),
    )
    for name in OF_ANSWERS:
        assert mixed[name] == pytest.approx(everything[name]), name
    for name in {*mixed} - {*OF_ANSWERS, "judge_kappa"}:
        assert mixed[name] == pytest.approx(alone[name]), name
    assert alone["parsed"] not in (0, 1)
    assert "not asked" in format_example(silent[0], word_count)
    page = transcripts.transcript(silent[0], word_count)
    assert page["asked"] is False and page["reason"] is None and page["yc"] == ""


def test_the_confession_loss_is_a_mean_over_those_that_confess():
    """Its weight shrinks with the share, or empty spans divide by zero."""
    rollouts = random_rollouts(6)
    mixed = [one_turn(r) if i >= 4 else r for i, r in enumerate(rollouts)]
    for normaliser in ("sequence", "token"):
        of = lambda rollouts, span: span_weights(rollouts, span, 1.0, normaliser, kl_coef=0.1)
        assert of(mixed, "confession") == of(rollouts[:4], "confession") + [0.0, 0.0]
        assert of(mixed, "answer") == of(rollouts, "answer")


def test_a_run_on_half_of_the_prompts(tmp_path):
    """A step, its log or its page breaks on a rollout that does not confess, or the evaluation
    confesses on a share.
    """
    run_grpo(tmp_path, *RUN, "--prompts-per-step", "2", "--confession-share", ".5")
    run = tmp_path / "runs/run"
    for step in (1, 2):
        rollouts = run_folder.load_rollouts(run / f"rollouts/step_{step:04d}.jsonl", word_count)
        assert [r.confesses for r in rollouts] == [True, True, False, False]
        assert len({r.seed for r in rollouts[:2]}) == 1
        assert all(r.confession.reward is None and r.report is None for r in rollouts[2:])
    assert all(
        r.confesses for r in run_folder.load_rollouts(run / "evals/step_0002.jsonl", word_count)
    )
    row = rows(run / "metrics.jsonl")[-1]
    assert row["parsed"] == 0 and row["unparsed"] and row["reports_alike"] == 0
    own = [r.confession.reward for r in rollouts[:2]]
    assert row["reward_confession"] == pytest.approx(sum(own) / 2)
    assert json.loads((run / "config.json").read_text())["config"]["confession_share"] == 0.5
    index, _ = transcripts.collect(run, word_count)
    unparsed = 1 << list(transcripts.FLAGS).index("unparsed")
    # two steps of two that confess and two that do not
    flagged = [bool(flags & unparsed) for flags in index["rows"]["flags"]]
    assert flagged[:8] == [True, True, False, False] * 2


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_a_share_that_is_none(tmp_path, capsys, share):
    """Nobody ever confesses, and the log is empty."""
    with pytest.raises(SystemExit):
        run_grpo(tmp_path, *RUN, "--confession-share", share)
    assert "--confession-share" in capsys.readouterr().err
