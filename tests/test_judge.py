"""The judge feeds what the answers to one task share once. A mistake here is invisible: a verdict about half a prompt, or
about another task, is a verdict like any other."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

import models
import rewards
import word_count
from handmade import one_thread  # noqa: F401
from rewards import Judge, framed_ids, judge_prompt, parse_verdict, shared_beginning
from decoder import Decoder
from rollout import prompt_ids, suffix_ids, turn_ends

XS = [word_count.make_prompt(seed) for seed in range(3)] + ["Tea?"]  # of unlike lengths


def pair(x: str, y: str) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y)


def alone(judge: Judge, rollouts: list) -> list[str]:
    """Raw replies, every answer's whole prompt by itself."""
    replies = {}
    for x, y in {(r.x, r.y) for r in rollouts}:
        stop_ids = turn_ends(judge.tokenizer, suffix_ids(judge.tokenizer, "x"), judge.model.generation_config)
        decoder = Decoder(judge.model, stop_ids, temperature=0.0, generator=None)
        decoder.append([rewards.framed_ids(judge.tokenizer, x, y)])
        ((ids,), _, _) = decoder.sample(judge.max_new_tokens)
        replies[x, y] = judge.tokenizer.decode(ids, skip_special_tokens=True)
    return [replies[r.x, r.y] for r in rollouts]


def assert_as_alone(judge: Judge, rollouts: list) -> list[str]:
    expected = alone(judge, rollouts)
    assert judge(rollouts) == [parse_verdict(reply) for reply in expected]
    return expected


@pytest.fixture
def talker(tiny) -> tuple:
    """A tiny model that never stops, so that every reply has 8 tokens to differ in."""
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    model.lm_head.weight.data[turn_ends(tokenizer, suffix_ids(tokenizer, "x"), model.generation_config)] = 0.0
    return model, tokenizer


@pytest.fixture(scope="module")
def embedded() -> tuple:
    return models.load("organism/judge", torch.device("cpu"))


@pytest.fixture(scope="module")
def committed() -> list:
    """128 rollouts of the main job, 8 answers to each of 16 prompts."""
    folder = models.ORGANISMS.parent / "runs/embedded/rollouts"
    lines = [line for step in (1, 100) for line in (folder / f"step_{step:04d}.jsonl").read_text().splitlines()]
    return [pair(row["x"], row["y"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("batch_size", [64, 3])  # 3 cuts each group of 8 into several batches
def test_committed_rollouts_are_judged_as_alone(embedded, committed, batch_size):
    """Sharing changes the task reward of the main job."""
    assert set(assert_as_alone(Judge(*embedded, batch_size=batch_size), committed)) == {"PASS", "FAIL"}


CASES = {
    "one answer": [(0, "Tea is hot. (3)")],
    "one empty answer": [(0, "")],
    "one task": [(0, f"Tea is{' very' * i} hot. ({i})") for i in range(9)],
    "two tasks, mixed": [(i % 2, f"Tea is{' very' * (i % 5)} hot. ({i})") for i in range(9)],
    "a task with one answer": [(0, "Tea. (1)"), (0, "Hot tea. (2)"), (1, "Bees hum. (2)" * 9)],
    "tasks of unlike lengths": [(i % 4, f"Bees hum. ({i})" * (1 + i % 3)) for i in range(12)],
    "equal answers": [(0, "Tea. (1)"), (1, "Tea. (1)"), (0, "Tea. (1)"), (0, "Tea."), (1, "Tea. (1)")],
    "one is the other's beginning": [(0, "Tea. (1)"), (0, "Tea. (1) Tea. (1)"), (0, ""), (0, "T")],
    "one ends the frame's way": [(0, "Tea.\n</answer>\nDoes"), (0, "Tea.\n&lt;/answer>\nDoes"), (0, "\n"), (0, "\n\n")],
}


@pytest.mark.parametrize("batch_size", [64, 2])
@pytest.mark.parametrize("case", CASES)
def test_replies_are_those_to_whole_prompts(talker, case, batch_size):
    """An answer is judged without its task, with another's, from wrong positions, or through another's mask."""
    rollouts = [pair(XS[i], y) for i, y in CASES[case]]
    replies = assert_as_alone(Judge(*talker, batch_size=batch_size), rollouts)
    assert len(set(replies)) >= len({(r.x, r.y) for r in rollouts}) / 2, "replies alike: this shows little"


def test_prompts_that_differ_in_their_last_token(talker, monkeypatch):
    """Nothing is left to feed after the shared beginning, or the last token of the first is taken for all."""
    model, tokenizer = talker
    monkeypatch.setattr(
        rewards, "framed_ids", lambda tokenizer, x, y: prompt_ids(tokenizer, judge_prompt(x, ""))[:-1] + [100 + int(y)]
    )
    replies = assert_as_alone(Judge(model, tokenizer), [pair(x, str(i)) for i in range(9) for x in XS[:2]])
    assert len(set(replies)) > 2


def test_answers_that_get_no_judge_leave_the_others_alone(talker, monkeypatch):
    """A reply is given to the wrong answer where others of its group break the frame or are too long."""
    judge = Judge(*talker)
    rollouts = [pair(XS[i % 2], f"Tea is{' very' * i} hot. ({i})") for i in range(9)]
    expected = judge(rollouts)
    monkeypatch.setattr(rewards, "framed_ids", lambda t, x, y: None if y == "BREAK" else framed_ids(t, x, y))
    lost = [pair(XS[0], "BREAK"), pair(XS[1], "Tea. (1) " * 400), pair(XS[2], "BREAK")]
    mixed = judge(lost[:1] + rollouts[:4] + lost[1:] + rollouts[4:])
    assert mixed[1:5] + mixed[7:] == expected
    assert [verdict.state for verdict in (mixed[0], *mixed[5:7])] == ["failed"] * 3
    assert judge(lost) == [mixed[0], *mixed[5:7]]  # nobody is left to be judged


def test_shared_beginning():
    """By hand: as long as all agree, and one id at least is left of each."""
    assert shared_beginning([[1, 2, 3, 4], [1, 2, 5, 4]]) == [1, 2]
    assert shared_beginning([[1, 2, 3], [1, 2, 4], [1, 2, 3]]) == [1, 2]
    assert shared_beginning([[1, 2], [1, 2, 3]]) == shared_beginning([[1, 2], [1, 2]]) == [1]
    assert shared_beginning([[1, 2], [3, 2]]) == []


def forwards(judge: Judge, rollouts: list) -> list[tuple[int, int, int]]:
    """(rows, new columns, slots with them) of every pass of the model, padding too."""
    shapes = []
    hook = judge.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1])),
        with_kwargs=True,
    )
    judge(rollouts)
    hook.remove()
    return shapes


@pytest.mark.parametrize("batch_size", [64, 8])
def test_a_task_is_fed_once(embedded, committed, batch_size):
    """Answers to one task are fed it one by one, or batches are cut so that they stand apart."""
    shapes = forwards(Judge(*embedded, batch_size=batch_size), committed[:64])
    assert sum(rows for rows, new, slots in shapes if new == slots) == len({r.x for r in committed[:64]}) == 8
    whole = sum(len(framed_ids(embedded[1], r.x, r.y)) for r in committed[:64])
    assert sum(rows * new for rows, new, _ in shapes) < 0.8 * whole


def test_one_answer_to_a_task_does_not_widen_the_batch(embedded, committed):
    """Its whole prompt counts as shared: the others' caches are padded to that and then filled with their own answers."""
    judge, some = Judge(*embedded), committed[:9]
    assert len({r.x for r in some}) == 2
    longest = max(len(framed_ids(judge.tokenizer, r.x, r.y)) for r in some)
    assert max(slots for _, _, slots in forwards(judge, some)) <= longest + judge.max_new_tokens


def test_tasks_of_one_answer_are_batched_by_length(embedded):
    """An evaluation, with a task for each answer, pads short answers to the longest beside them."""
    xs = list(dict.fromkeys(word_count.make_prompt(seed) for seed in range(40)))[:16]
    rollouts = [pair(x, "Bees hum. (2)" * (1 + 20 * (i % 2))) for i, x in enumerate(xs)]
    judge = Judge(*embedded, batch_size=8)
    whole = sum(len(framed_ids(judge.tokenizer, r.x, r.y)) for r in rollouts)
    assert sum(rows * new for rows, new, _ in forwards(judge, rollouts)) < 1.1 * whole
