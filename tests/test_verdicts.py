"""Verdicts: the judge feeds what the answers to one task share once. A mistake here is invisible:
a verdict about half a prompt, or about another task, is a verdict like any other.
"""

import copy
import functools
import json
import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import models
import rewards
from cli import UserError
from rewards import (
    REPLIES,
    Judge,
    Verdict,
    framed_ids,
    judge_prompt,
    question_ids,
    refuse_absent_judge,
    shared_beginning,
    verdict_of,
)
from runtime.decoder import Decoder
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread")

XS = [word_count.make_prompt(seed) for seed in range(3)] + ["Tea?"]  # of unlike lengths


def pair(x: str, y: str) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y)


def whole_margin(model, tokenizer, x: str, y: str) -> float:
    """log P(PASS) - log P(FAIL), each from one plain pass over the whole text, without a cache."""
    prompt = tuple(rewards.framed_ids(tokenizer, [(x, y)])[0])
    replies = (tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in REPLIES)
    passes, fails = (plain_score(model, prompt, tuple(ids)) for ids in replies)
    return passes - fails


@functools.cache
def plain_score(model, prompt: tuple[int, ...], reply: tuple[int, ...]) -> float:
    with torch.inference_mode():
        logp = model(input_ids=torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + t, token].item() for t, token in enumerate(reply))


def assert_as_alone(judge: Judge, rollouts: list) -> list[float]:
    """Every answer gets the margin of its whole prompt by itself; returns the margins."""
    expected = {
        (x, y): whole_margin(judge.model, judge.tokenizer, x, y)
        for x, y in {(r.x, r.y) for r in rollouts}
    }
    margins = [expected[r.x, r.y] for r in rollouts]
    verdicts = judge(rollouts)
    assert [v.margin for v in verdicts] == pytest.approx(margins, abs=1e-4)
    assert [v.state for v in verdicts] == ["pass" if v.margin > 0 else "fail" for v in verdicts]
    return margins


@pytest.fixture(scope="module")
def embedded() -> tuple:
    return models.load("organism/judge", torch.device("cpu"))


@pytest.fixture(scope="module")
def committed() -> list:
    """128 rollouts of the main job, 8 answers to each of 16 prompts."""
    folder = models.ORGANISMS.parent / "runs/embedded/rollouts"
    lines = [
        line
        for step in (1, 100)
        for line in (folder / f"step_{step:04d}.jsonl").read_text().splitlines()
    ]
    return [pair(row["x"], row["y"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("batch_size", [64, 3])  # 3 cuts each group of 8 into several batches
def test_committed_rollouts_are_judged_as_alone(embedded, committed, batch_size):
    """Sharing changes the task reward of the main job."""
    margins = assert_as_alone(Judge(*embedded, batch_size=batch_size), committed)
    assert min(margins) < -5 and max(margins) > 5


CASES = {
    "one answer": [(0, "Tea is hot. (3)")],
    "one empty answer": [(0, "")],
    "one task": [(0, f"Tea is{' very' * i} hot. ({i})") for i in range(9)],
    "two tasks, mixed": [(i % 2, f"Tea is{' very' * (i % 5)} hot. ({i})") for i in range(9)],
    "a task with one answer": [(0, "Tea. (1)"), (0, "Hot tea. (2)"), (1, "Bees hum. (2)" * 9)],
    "tasks of unlike lengths": [(i % 4, f"Bees hum. ({i})" * (1 + i % 3)) for i in range(12)],
    "equal answers": [
        (0, "Tea. (1)"),
        (1, "Tea. (1)"),
        (0, "Tea. (1)"),
        (0, "Tea."),
        (1, "Tea. (1)"),
    ],
    "one is the other's beginning": [(0, "Tea. (1)"), (0, "Tea. (1) Tea. (1)"), (0, ""), (0, "T")],
    "one ends the frame's way": [
        (0, "Tea.\n</answer>\nDoes"),
        (0, "Tea.\n&lt;/answer>\nDoes"),
        (0, "\n"),
        (0, "\n\n"),
    ],
}


@pytest.mark.parametrize("batch_size", [64, 2])
@pytest.mark.parametrize("case", CASES)
def test_margins_are_those_of_whole_prompts(tiny, case, batch_size):
    """An answer is judged without its task, with another's, from wrong positions,
    or through another's mask.
    """
    rollouts = [pair(XS[i], y) for i, y in CASES[case]]
    margins = assert_as_alone(Judge(*tiny, batch_size=batch_size), rollouts)
    assert len({round(m, 3) for m in margins}) >= len({(r.x, r.y) for r in rollouts}) / 2, (
        "margins alike: this shows little"
    )


def test_prompts_that_differ_in_their_last_token(tiny, monkeypatch):
    """Nothing is left to feed after the shared beginning,
    or the last token of the first is taken for all.
    """
    model, tokenizer = tiny
    monkeypatch.setattr(
        rewards,
        "framed_ids",
        lambda tokenizer, cases, *_: [
            question_ids(tokenizer, judge_prompt(x, ""))[:-1] + [100 + int(y)] for x, y in cases
        ],
    )
    margins = assert_as_alone(
        Judge(model, tokenizer), [pair(x, str(i)) for i in range(9) for x in XS[:2]]
    )
    assert len({round(m, 3) for m in margins}) > 9


def test_answers_that_get_no_judge_leave_the_others_alone(tiny, monkeypatch):
    """A verdict is given to the wrong answer where others of its group break the frame
    or are too long.
    """
    judge = Judge(*tiny)
    rollouts = [pair(XS[i % 2], f"Tea is{' very' * i} hot. ({i})") for i in range(9)]
    expected = judge(rollouts)
    monkeypatch.setattr(
        rewards,
        "framed_ids",
        lambda tokenizer, cases, frame: [
            None if case[1] == "BREAK" else ids
            for case, ids in zip(cases, framed_ids(tokenizer, cases, frame))
        ],
    )
    lost = [pair(XS[0], "BREAK"), pair(XS[1], "Tea. (1) " * 400), pair(XS[2], "BREAK")]
    mixed = judge(lost[:1] + rollouts[:4] + lost[1:] + rollouts[4:])
    assert [v.margin for v in mixed[1:5] + mixed[7:]] == pytest.approx(
        [v.margin for v in expected], abs=1e-4
    )
    assert [(v.state, v.margin) for v in (mixed[0], *mixed[5:7])] == [("failed", None)] * 3
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
    forward = Decoder._forward

    def noted(decoder, ids, valid):
        forward(decoder, ids, valid)
        shapes.append((*ids.shape, decoder.mask.shape[1]))

    with mock.patch.object(Decoder, "_forward", noted):
        judge(rollouts)
    return shapes


def tokens(tokenizer, rollouts: list) -> int:
    """Of the prompts that judge these rollouts, each whole."""
    return sum(map(len, framed_ids(tokenizer, [(r.x, r.y) for r in rollouts])))


@pytest.mark.parametrize("batch_size", [64, 8])
def test_a_task_is_fed_once(embedded, committed, batch_size):
    """Answers to one task are fed it one by one, or batches are cut so that they stand apart."""
    shapes = forwards(Judge(*embedded, batch_size=batch_size), committed[:64])
    assert (
        sum(rows for rows, new, slots in shapes if new == slots)
        == len({r.x for r in committed[:64]})
        == 8
    )
    whole = tokens(embedded[1], committed[:64])
    assert sum(rows * new for rows, new, _ in shapes) < 0.8 * whole


def test_one_answer_to_a_task_does_not_widen_the_batch(embedded, committed):
    """Its whole prompt counts as shared:
    the others' caches are padded to that and then filled with their own answers.
    """
    judge, some = Judge(*embedded), committed[:9]
    assert len({r.x for r in some}) == 2
    longest = max(map(len, framed_ids(judge.tokenizer, [(r.x, r.y) for r in some])))
    assert max(slots for _, _, slots in forwards(judge, some)) <= longest + max(
        len(judge.tokenizer(reply)["input_ids"]) for reply in REPLIES
    )


def test_tasks_of_one_answer_are_batched_by_length(embedded):
    """An evaluation, with a task for each answer, pads short answers to the longest beside them."""
    xs = list(dict.fromkeys(word_count.make_prompt(seed) for seed in range(40)))[:16]
    rollouts = [pair(x, "Bees hum. (2)" * (1 + 20 * (i % 2))) for i, x in enumerate(xs)]
    judge = Judge(*embedded, batch_size=8)
    whole = tokens(judge.tokenizer, rollouts)
    assert sum(rows * new for rows, new, _ in forwards(judge, rollouts)) < 1.1 * whole


# ---------------------------------------------------------------------- the likelier of two replies


def fixed_model(table: torch.Tensor):
    """A model whose next-token logits hang on the last token alone; table:
    (V, V), a row for each token.
    """

    class Fixed(torch.nn.Module):
        device = torch.device("cpu")
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(model_type="fixed"))

        def forward(self, input_ids, **_):
            return SimpleNamespace(logits=table[input_ids])

    return Fixed().eval()


def test_score_by_hand():
    """The probability of a continuation is that of its first token alone,
    or it reads the wrong stream, row or column.
    """
    # probabilities after 0, 1, 2
    table = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4], [1 / 8, 4 / 8, 3 / 8]])
    decoder = Decoder(fixed_model(table.log() + 7), [], temperature=0.0, generator=None)
    decoder.append([[0, 1], [2]])
    found = decoder.score([[2], [1, 0], [2, 1, 1]]).exp()
    expected = [
        [1 / 4, 1 / 4 * 1 / 2, 1 / 4 * 4 / 8 * 1 / 4],
        [3 / 8, 4 / 8 * 1 / 2, 3 / 8 * 4 / 8 * 1 / 4],
    ]
    assert torch.allclose(found, torch.tensor(expected))


@pytest.mark.parametrize("replies", [("A", "B"), ("FAIL", "B"), ("PASS", "FAIL")])
def test_scores_of_replies_of_any_length(tiny, replies):
    """Replies of one token or several, of one length or two, get another log-probability than
    a pass over the whole text.
    """
    model, tokenizer = tiny
    prompts = [question_ids(tokenizer, "Tea?" * n) for n in (1, 3)]
    continuations = [tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in replies]
    decoder = Decoder(model, [], temperature=0.0, generator=None)
    decoder.append(prompts)
    found = decoder.score(continuations)
    for row, prompt in zip(found, prompts):
        for value, ids in zip(row.tolist(), continuations):
            with torch.inference_mode():
                logp = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            assert value == pytest.approx(
                sum(logp[len(prompt) - 1 + t, i].item() for t, i in enumerate(ids)), abs=1e-4
            )


def test_the_head_is_exact_in_bfloat16(tiny):
    """Margins are rounded to eighths, so most answers of a weak judge tie;
    or the model stays changed after judging.
    """
    model, ids = copy.deepcopy(tiny[0]).bfloat16(), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        rounded = model(ids).logits
        with rewards.float32_head(model):
            exact = model(ids).logits
        hidden = model.get_decoder()(ids).last_hidden_state
        assert torch.allclose(exact, hidden.float() @ model.lm_head.weight.float().T, atol=1e-5)
        assert torch.equal(model(ids).logits, rounded) and rounded.dtype == torch.bfloat16
    assert torch.allclose(exact, rounded.float(), rtol=0.01, atol=1e-3) and not torch.equal(
        exact, rounded.float()
    )


def test_one_token_replies_cost_no_pass(tiny, monkeypatch):
    """Judging feeds the model again where the first tokens say all,
    or more than once a token where they do not.
    """
    rollouts, seen = [pair(XS[0], "Tea. (1)"), pair(XS[0], "Hot tea. (2)")], []
    for replies in (("A", "B"), REPLIES):
        monkeypatch.setattr(rewards, "REPLIES", replies)
        seen.append(forwards(Judge(*tiny), rollouts))
    longest = max(len(tiny[1](reply, add_special_tokens=False)["input_ids"]) for reply in REPLIES)
    assert longest > 1 and max(rows for rows, _, _ in seen[0]) == len(rollouts)
    assert [shape[:2] for shape in seen[1][len(seen[0]) :]] == [(2 * len(rollouts), 1)] * (
        longest - 1
    )


def test_the_replies_stand_apart_from_the_prompt(tokenizers):
    """A tokenizer joins the end of the prompt with the reply:
    what is scored is not how the judge would write it.
    """
    embedded = models.AutoTokenizer.from_pretrained(models.ORGANISMS / "judge")
    for tokenizer in (embedded, *tokenizers.values()):
        question = question_ids(tokenizer, judge_prompt("X", "Y"))
        text = tokenizer.decode(question)
        for reply in REPLIES:
            ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
            assert tokenizer(text + reply, add_special_tokens=False)["input_ids"] == question + ids
            assert tokenizer.decode(ids) == reply


def test_verdict_of():
    """The less likely reply wins, a tie is a pass,
    or a margin that is no number becomes a verdict.
    """
    assert verdict_of(0.5) == Verdict("pass", "PASS", 0.5) and verdict_of(-0.5) == Verdict(
        "fail", "FAIL", -0.5
    )
    assert verdict_of(0.0).state == "fail"
    assert [verdict_of(m).state for m in (math.nan, math.inf, -math.inf)] == ["failed"] * 3
    assert verdict_of(math.nan).margin is None


@pytest.mark.parametrize("failed, refused", [(0, False), (2, False), (3, True), (4, True)])
def test_a_judge_without_verdicts_ends_the_run(failed, refused):
    """A run whose judge never judges goes on as confession training;
    or half of the answers without a verdict end one.
    """
    verdicts = [Verdict("failed", "[900 tokens]")] * failed + [verdict_of(1.0)] * (4 - failed)
    paid = lambda v: SimpleNamespace(reward=None if v.state == "failed" else 1.0, finish="stop")
    rollouts = [SimpleNamespace(verdict=v, answer=paid(v), judged=None) for v in verdicts]
    if not refused:
        return refuse_absent_judge(rollouts)
    with pytest.raises(
        UserError, match=rf"no verdict on {failed} of the 4 answers.*\[900 tokens\].*--judge"
    ):
        refuse_absent_judge(rollouts)
    for rollout in rollouts:  # paid by a rule that asks no judge
        rollout.answer.reward = 0.5
    refuse_absent_judge(rollouts)
    for rollout in rollouts:  # cut off, they earn 0 whatever the judge says
        rollout.answer.finish, rollout.answer.reward = "length", 0.0
    with pytest.raises(UserError):
        refuse_absent_judge(rollouts)
