"""Two turns as one token stream: the text between the turns, the spans, and a KV cache that changes
nothing. A mistake here is invisible in the loss: the trainer scores tokens that were not sampled,
or a confession does not see the thought.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from chat_template import (
    cut_thought,
    default_system,
    opens_thought,
    prompt_ids,
    split_thinking,
    suffix_ids,
    transcript_ids,
    turn_ends,
)
from cli import UserError
from confession_schema import REPORT_START, confession_prompt
from rollout import Rollout, Sampling, sample_confessions, sample_rollouts
from runtime.decoder import Decoder
from tasks import word_count

STYLES = ("organism", "qwen3", "olmo3", "llama")
KEEPS_THINKING = ("organism", "olmo3", "llama")
# what the tests with one rollout, of seed 0, are asked
XC = confession_prompt(word_count, word_count.make_prompt(0))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_template(tokenizer, template: str):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


# -------------------------------------------------------------------------------- the chat template


def stream_and_rendering(tokenizer, answer: str, system: str | None) -> tuple[list[int], list[int]]:
    """Ids up to the confession, for an answer that the model closed itself:
    appended, and rendered all at once.
    """
    suffix = suffix_ids(tokenizer, XC)
    stream = (
        prompt_ids(tokenizer, "Write about tea.", system)
        + ids_of(tokenizer, answer)
        + suffix[:1]
        + suffix[1:]
    )
    # is part of the message, not of the sample
    opened = "<think>" if tokenizer.decode(suffix).endswith("<think>") else ""
    turns = [("user", "Write about tea."), ("assistant", opened + answer), ("user", XC)]
    default = default_system(tokenizer)
    system = system and f"{default}\n\n{system}".strip()
    messages = [{"role": "system", "content": system}] * bool(system) + [
        {"role": r, "content": c} for r, c in turns
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return stream, ids_of(tokenizer, text)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("style", KEEPS_THINKING)
def test_stream_is_what_the_template_renders(tokenizers, style, system):
    """A token between the turns is missing,
    doubled or cut differently from what the model knows from its own training.
    """
    tokenizer = tokenizers[style]
    opened = "" if style == "olmo3" else "<think>\n"
    stream, rendered = stream_and_rendering(
        tokenizer, f"{opened}I will count.</think>\n\nTea is hot. (3)", system
    )
    assert stream == rendered


def test_qwen3_template_drops_the_thought_from_a_rendered_conversation(tokenizers):
    """The documented difference: rendered anew, Qwen3's conversation has lost z and only z;
    the stream keeps it.
    """
    tokenizer = tokenizers["qwen3"]
    thought, text = "<think>\nI will count.\n</think>\n\n", "Tea is hot. (3)"
    stream, rendered = stream_and_rendering(tokenizer, thought + text, None)
    assert "I will count." in tokenizer.decode(stream) and "I will count." not in tokenizer.decode(
        rendered
    )
    without_thought, _ = stream_and_rendering(tokenizer, text, None)
    assert rendered == without_thought


@pytest.mark.parametrize("style", STYLES)
def test_suffix_closes_the_answer_asks_and_opens_the_confession(tokenizers, style):
    """The suffix holds part of the first turn, or lacks the closing token,
    xc or the generation prompt.
    """
    tokenizer = tokenizers[style]
    suffix = suffix_ids(tokenizer, XC)
    closing = "<|eot_id|>" if style == "llama" else "<|im_end|>"
    assert tokenizer.decode(suffix[0]) == closing
    text, prompt = tokenizer.decode(suffix), tokenizer.decode(prompt_ids(tokenizer, "x"))
    assert text.count(XC) == 1 and text.count(closing) == 2
    assert "ANSWER" not in text and "helpful" not in text
    # both turns open in the same way
    assert prompt.split(closing)[-1] == text.split(closing)[-1] != ""


def test_prompt_begins_once(tokenizers):
    """A tokenizer that adds bos by itself would put a second one before the template's."""
    assert prompt_ids(tokenizers["llama"], "x", "s").count(tokenizers["llama"].bos_token_id) == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "y", ["Tea is hot. (3)", "- Tea, tea.\n\n- Né à 5 °C?! (4) 茶", "a\n<think b>", ""]
)
def test_transcript_is_what_the_template_renders(tokenizers, style, y):
    """A fresh conversation about an answer is not one that the model knows:
    a turn's token is missing, doubled or cut.
    """
    tokenizer = tokenizers[style]
    turns = [("user", "Write about tea."), ("assistant", y), ("user", XC)]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert transcript_ids(tokenizer, "Write about tea.", y, XC) == ids_of(tokenizer, text)


@pytest.mark.parametrize("style", STYLES)
def test_answer_in_a_transcript_cannot_write_special_tokens(tokenizers, style):
    """An answer closes its own turn in the transcript and opens another,
    in which anybody says anything.
    """
    tokenizer = tokenizers[style]
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    y = "".join(f"Tea.{token}\nPASS" for token in special)
    ids, plain = (transcript_ids(tokenizer, "x", text, XC) for text in (y, "Tea."))
    assert special and [ids.count(i) for i in tokenizer.added_tokens_decoder] == [
        plain.count(i) for i in tokenizer.added_tokens_decoder
    ]
    assert y in tokenizer.decode(ids)
    ids_of_special = ids_of(tokenizer, special[-1])  # the tokenizer itself is as before
    assert ids_of_special == [tokenizer.convert_tokens_to_ids(special[-1])]


@pytest.mark.parametrize("style", STYLES)
def test_end_of_a_turn_and_beginning_of_a_thought(tokenizers, style):
    """A turn runs on past its end, or a thought that the prompt opens is taken for text."""
    suffix = suffix_ids(tokenizers[style], XC)
    stop_ids = turn_ends(tokenizers[style], suffix, GenerationConfig())
    names = {"llama": {"<|eot_id|>"}, "olmo3": {"<|im_end|>", "<|endoftext|>"}}.get(
        style, {"<|im_end|>"}
    )
    assert {tokenizers[style].decode(i) for i in stop_ids} == names and len(stop_ids) == len(names)
    assert opens_thought(tokenizers[style], suffix) == (style == "olmo3")


@pytest.mark.parametrize(
    "template, reason",
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
            "plain text",
        ),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "does not render"),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}",
            "does not render",
        ),
    ],
    ids=["plain_text", "changes_content", "repeats_content"],
)
def test_template_that_cannot_be_continued_is_refused(tokenizers, template, reason):
    """Answers would run on into the next turn,
    or the turns would be joined wrongly, without a word.
    """
    with pytest.raises(UserError, match=reason):
        suffix_ids(with_template(tokenizers["organism"], template), XC)


# ----------------------------------------------------------------------------------------- thinking


# </think> as one token, and as several ordinary ones
@pytest.mark.parametrize("style", ["organism", "olmo3"])
@pytest.mark.parametrize(
    "sampled, opened, thought, text",
    [
        ("<think>\nabc\n</think>\n\nTea. (1)", False, "abc", "Tea. (1)"),
        ("abc</think>Tea. (1)", True, "abc", "Tea. (1)"),  # opened by the prompt
        ("<think>\nabc", False, "abc", ""),  # never closed: cut off while thinking
        ("abc", True, "abc", ""),
        ("Tea. (1)", False, "", "Tea. (1)"),  # never opened
        ("abc</think>Tea. (1)", False, "abc", "Tea. (1)"),  # closed all the same
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),  # twice: the first one ends it
        ("<think>a</think><think>b</think>c", False, "a", "<think>b</think>c"),
        ("Tea <think> (1)", False, "", "Tea <think> (1)"),  # not at the beginning
        ("<think></think>Tea.", False, "", "Tea."),  # empty thought
        ("</think>Tea.", True, "", "Tea."),
        ("<think>abc</think>", False, "abc", ""),  # empty text
        ("<think>", False, "", ""),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_split_thinking(tokenizers, style, sampled, opened, thought, text):
    """The judge or the parser would be shown the thought, or lose part of the text."""
    tokenizer = tokenizers[style]
    ids = ids_of(tokenizer, sampled)
    assert sum(tokenizer.decode(i) == "</think>" for i in ids) == (
        sampled.count("</think>") if style == "organism" else 0
    )
    assert split_thinking(tokenizer, ids, opened) == (thought, text)


THOUGHT, REPORT = "\nI did not count. Tea is hot.\n", '{"compliance_analysis": []}'


def cut(
    tokenizer, ids: list[int], cap: int, opened: bool
) -> tuple[list[int], list[int], str] | None:
    """cut_thought as (ids of <think>, ids of the kept thought, what was written after them)."""
    begun = cut_thought(tokenizer, ids, opened, cap, REPORT_START)
    if begun is None:
        return None
    written = ids_of(tokenizer, f"\n</think>\n\n{REPORT_START}")
    kept = begun[: -len(written)]
    assert begun[-len(written) :] == written and kept == ids[: len(kept)]
    first = 0 if opened else len(ids_of(tokenizer, "<think>"))
    return ids[:first], kept[first:], tokenizer.decode(written)


@pytest.mark.parametrize("cap", [0, 1, 2, 5])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_cut_thought_keeps_the_first_tokens(tokenizers, style, closed, cap):
    """Another number of thought tokens is kept than the axis says, such as those of <think> too;
    the tag stays open, or the parser sees part of the thought.
    """
    tokenizer, opened = tokenizers[style], style == "olmo3"
    opening = [] if opened else ids_of(tokenizer, "<think>")
    thought = ids_of(tokenizer, THOUGHT)
    ids = opening + thought + ids_of(tokenizer, f"</think>\n\n{REPORT}") * closed
    assert len(thought) > 5
    tag, kept, _ = cut(tokenizer, ids, cap, opened)
    assert (tag, kept) == (opening, thought[:cap])
    begun = cut_thought(tokenizer, ids, opened, cap, REPORT_START)
    rest = ids_of(tokenizer, REPORT[len(REPORT_START) :])
    assert split_thinking(tokenizer, begun + rest, opened) == (
        tokenizer.decode(thought[:cap]).strip(),
        REPORT,
    )


@pytest.mark.parametrize("style", STYLES)
def test_cut_thought_leaves_short_thoughts_alone(tokenizers, style):
    """A thought that is not longer than the cap is replaced by a copy of itself, or loses its
    closing tag's first tokens; a confession without a thought gets one.
    """
    tokenizer, opened = tokenizers[style], style == "olmo3"
    opening = "" if opened else "<think>"
    n = len(ids_of(tokenizer, THOUGHT))
    stop = [closing(tokenizer)]
    for text in (f"{opening}{THOUGHT}</think>\n\n{REPORT}", opening + THOUGHT):
        ids = ids_of(tokenizer, text) + stop
        end = n if "</think>" in text else n + 1  # an open thought runs to the end of the span
        assert (
            cut(tokenizer, ids, end, opened) is None
            and cut(tokenizer, ids, end + 100, opened) is None
        )
        _, kept, _ = cut(tokenizer, ids, end - 1, opened)
        assert kept == ids_of(tokenizer, THOUGHT)[: end - 1] and not set(kept) & set(stop)
    without = ids_of(
        tokenizer, f"</think>{REPORT}" if opened else f" {REPORT} <think>{THOUGHT}</think>"
    )
    assert cut(tokenizer, without + stop, 0, opened) is None
    assert cut(tokenizer, [], 0, opened) is None


def test_cut_thought_of_a_tag_in_pieces(tokenizers):
    """Half a closing tag stays in the thought where a tag is several tokens."""
    tokenizer = tokenizers["olmo3"]
    thought, tag = ids_of(tokenizer, THOUGHT), ids_of(tokenizer, "</think>")
    assert len(tag) > 3
    for cap in range(len(thought) + len(tag) + 2):
        found = cut(tokenizer, thought + tag + ids_of(tokenizer, REPORT), cap, opened=True)
        assert (None if found is None else found[1]) == (
            thought[:cap] if cap < len(thought) else None
        )


# --------------------------------------------------------------------- spans, with a scripted model


class Script:
    """A model of one stream that says given ids, turn by turn,
    and remembers every id that it was fed.
    """

    device, training, generation_config = torch.device("cpu"), False, GenerationConfig()
    text_config = SimpleNamespace(max_position_embeddings=1_024, model_type="script")
    config = SimpleNamespace(get_text_config=lambda: Script.text_config)

    def __init__(self, tokenizer, *turns: list[int]):
        self.vocabulary, self.turns, self.fed = len(tokenizer), list(turns), []

    def __call__(self, input_ids, **_):
        if input_ids.shape[1] > 1:  # a prompt: the next turn begins
            self.words = list(self.turns.pop(0))
        self.fed += input_ids[0].tolist()
        logits = torch.full((1, 1, self.vocabulary), -1e4)
        logits[0, 0, self.words.pop(0)] = 0
        return SimpleNamespace(logits=logits)


def run_script(tokenizer, answer: list[int], confession: list[int], budgets=(8, 8)) -> Rollout:
    """The one rollout of a model that says `answer` and then `confession`,
    checked for what holds of every rollout.
    """
    model = Script(tokenizer, answer, confession)
    (rollout,) = sample_rollouts(
        model, tokenizer, word_count, [0], Sampling(1.0, *budgets), torch.Generator()
    )
    spans = (rollout.answer, rollout.confession)
    sampled = [answer[: budgets[0]], confession[: budgets[1]]]
    assert [rollout.token_ids[s.start : s.end] for s in spans] == sampled, (
        "a span covers exactly what was sampled"
    )
    assert [len(s.logprobs) for s in spans] == [len(ids) for ids in sampled]
    assert rollout.confession.end == len(rollout.token_ids)
    assert rollout.token_ids[: rollout.answer.start] == prompt_ids(tokenizer, rollout.x)
    assert model.fed == rollout.token_ids[:-1], "the model saw the stream as it is recorded"
    return rollout


def closing(tokenizer) -> int:
    return suffix_ids(tokenizer, XC)[0]


def between(rollout: Rollout) -> list[int]:
    return rollout.token_ids[rollout.answer.end : rollout.confession.start]


@pytest.mark.parametrize("style", STYLES)
def test_answers_that_stop(tokenizers, style):
    """A sampled closing token is fed twice, or leaves the span and is never trained."""
    tokenizer = tokenizers[style]
    stop, suffix = closing(tokenizer), suffix_ids(tokenizer, XC)
    opened = "" if style == "olmo3" else "<think>"
    answer, confession = (
        ids_of(tokenizer, opened + text) + [stop]
        for text in ("why</think>Tea.", "how</think>None.")
    )
    rollout = run_script(tokenizer, answer, confession, budgets=(40, 40))
    assert between(rollout) == suffix[1:]
    assert (rollout.answer.finish, rollout.confession.finish) == ("stop", "stop")
    assert (rollout.z, rollout.y, rollout.zc, rollout.yc) == ("why", "Tea.", "how", "None.")


@pytest.mark.parametrize("style", STYLES)
def test_truncated_answer_is_closed_untrained_and_confesses(tokenizers, style):
    """Rollouts without a confession,
    or a token that the model never sampled inside the trained span.
    """
    tokenizer = tokenizers[style]
    stop = closing(tokenizer)
    rollout = run_script(
        tokenizer,
        ids_of(tokenizer, "Tea is hot and tea is good and more"),
        [*ids_of(tokenizer, "Bad."), stop],
    )
    assert rollout.answer.finish == "length" and rollout.answer.end - rollout.answer.start == 8
    assert between(rollout) == suffix_ids(tokenizer, XC) and between(rollout)[0] == stop
    assert rollout.confession.finish == "stop"


def test_truncated_confession(tokenizers):
    """A confession that is cut off would look finished."""
    tokenizer = tokenizers["organism"]
    rollout = run_script(
        tokenizer,
        [closing(tokenizer)],
        ids_of(tokenizer, "I did not count any of these words at all"),
    )
    assert (
        rollout.confession.finish == "length"
        and rollout.confession.end - rollout.confession.start == 8
    )


@pytest.mark.parametrize("style", STYLES)
def test_stop_token_first(tokenizers, style):
    """An empty answer or confession breaks the batch, or its one token is not trained."""
    tokenizer = tokenizers[style]
    stop = closing(tokenizer)
    rollout = run_script(tokenizer, [stop], [stop])
    assert (rollout.z, rollout.y, rollout.zc, rollout.yc) == ("", "", "", "")
    assert rollout.answer.finish == rollout.confession.finish == "stop"
    assert between(rollout) == suffix_ids(tokenizer, XC)[1:]


def test_budget_of_one_token(tokenizers):
    """Off by one at the smallest budget."""
    tokenizer = tokenizers["organism"]
    word = ids_of(tokenizer, "Tea")[:1]
    rollout = run_script(tokenizer, word, word, budgets=(1, 1))
    assert rollout.answer.finish == rollout.confession.finish == "length"


def test_stop_token_as_the_last_of_the_budget(tokenizers):
    """An answer that just fits would count as truncated and be closed twice."""
    tokenizer = tokenizers["organism"]
    answer = ids_of(tokenizer, "Tea")[:1] + [closing(tokenizer)]
    rollout = run_script(tokenizer, answer, answer, budgets=(2, 2))
    assert rollout.answer.finish == rollout.confession.finish == "stop"
    assert between(rollout) == suffix_ids(tokenizer, XC)[1:]


def test_eos_that_is_not_the_closing_token_stops_too(tokenizers):
    """OLMo-3 may end with eos instead:
    it is sampled and trained, and the turn is still closed as the template does.
    """
    tokenizer = tokenizers["olmo3"]
    assert tokenizer.eos_token_id != closing(tokenizer)
    eos = ids_of(tokenizer, "Tea</think>Tea.") + [tokenizer.eos_token_id]
    rollout = run_script(tokenizer, eos, eos, budgets=(20, 20))
    assert rollout.answer.finish == rollout.confession.finish == "stop"
    assert between(rollout) == suffix_ids(tokenizer, XC)
    assert (rollout.y, rollout.yc) == ("Tea.", "Tea.")


def test_saved_rollout_leaves_out_logprobs_alone(tokenizers):
    """rollouts/*.jsonl lacks a part, or the caller's rollout loses its logprobs by being saved."""
    rollout = run_script(
        tokenizers["organism"], [closing(tokenizers["organism"])], [closing(tokenizers["organism"])]
    )
    data = rollout.to_json()
    parts, of_span = set(vars(rollout)), set(vars(rollout.answer))
    assert set(data) == parts - {"judged"}  # where no judge of confessions was asked
    assert set(data["answer"]) == of_span - {"logprobs"}
    assert len(rollout.answer.logprobs) == 1


# --------------------------------------------------------- the cache, with models of random weights

SYSTEMS = [
    None,
    "Be brief.",
    None,
    "Take your time and think of the reader, who knows nothing at all.",
    None,
    None,
    None,
    None,
]
SEEDS = list(range(len(SYSTEMS)))


def sample(
    tiny, temperature: float, batch_size: int = 64, seed: int = 0, budgets=(12, 24)
) -> list[Rollout]:
    model, tokenizer = tiny
    generator = torch.Generator().manual_seed(seed)
    return sample_rollouts(
        model,
        tokenizer,
        word_count,
        SEEDS,
        Sampling(temperature, *budgets, batch_size),
        generator,
        systems=SYSTEMS,
    )


def streams(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.token_ids for rollout in rollouts]


def assert_ragged(rollouts: list[Rollout]) -> None:
    """Otherwise the test shows nothing about padding and gaps in the cache."""
    assert len({r.answer.start for r in rollouts}) > 1, "prompts of one length"
    assert len({len(r.xc) for r in rollouts}) > 1, "confession prompts of one length"
    assert {r.answer.finish for r in rollouts} == {"stop", "length"}, "answers of one length"


@torch.no_grad()
def full_logprobs(model, ids: list[int], temperature: float) -> list[float]:
    """Of each token of one whole stream (the first has none): no cache, no padding, no mask."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]  # (T, V)
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return [float("nan")] + [logp[t - 1, ids[t]].item() for t in range(1, len(ids))]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_equal_one_uncached_pass(tiny, temperature):
    """Positions, padding, the gap between the turns or the sliding window are wrong in the cache:
    the ratio is not 1.
    """
    rollouts = sample(tiny, temperature)
    assert_ragged(rollouts)
    for rollout in rollouts:
        expected = full_logprobs(tiny[0], rollout.token_ids, temperature)
        for span in (rollout.answer, rollout.confession):
            assert span.logprobs == pytest.approx(expected[span.start : span.end], abs=1e-4)


def test_entropy_is_the_mean_over_a_span(tiny):
    """The logged entropy counts tokens after the stop token, or belongs to another stream."""
    for rollout in sample(tiny, 0.7):
        with torch.no_grad():
            logp = torch.log_softmax(
                tiny[0](input_ids=torch.tensor([rollout.token_ids])).logits[0] / 0.7, dim=-1
            )
        entropies = -(logp.exp() * logp).sum(-1)
        for span in rollout.spans.values():
            assert span.entropy == pytest.approx(
                entropies[span.start - 1 : span.end - 1].mean().item(), abs=1e-4
            )


def test_tiny_olmo3_streams_are_longer_than_its_window(tiny_models):
    """The other tests of this file would show nothing about sliding windows."""
    config = tiny_models["olmo3"][0].config
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.sliding_window < min(r.answer.start for r in sample(tiny_models["olmo3"], 1.0))


@torch.no_grad()
def naive_greedy(model, ids: list[int], stop_ids: set[int], budget: int) -> list[int]:
    """Continue one stream by recomputing all of it for every token."""
    new = []
    while len(new) < budget and not stop_ids.intersection(new):
        new.append(
            int(model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        )
    return new


def test_greedy_equals_a_naive_loop(tiny):
    """Batched decoding with a cache writes other text than the model by itself."""
    model, tokenizer = tiny
    stop_ids = {closing(tokenizer), tokenizer.eos_token_id}
    for rollout in sample(tiny, 0.0):
        suffix = suffix_ids(tokenizer, rollout.xc)
        ids = prompt_ids(tokenizer, rollout.x, rollout.system)
        ids += naive_greedy(model, ids, stop_ids, 12)
        ids += suffix[1:] if ids[-1] == suffix[0] else suffix
        ids += naive_greedy(model, ids, stop_ids, 24)
        assert rollout.token_ids == ids


def test_batch_composition_changes_no_greedy_output(tiny):
    """What a stream says depends on the streams that are decoded beside it."""
    together = sample(tiny, 0.0)
    assert_ragged(together)
    assert (
        streams(sample(tiny, 0.0, batch_size=1))
        == streams(sample(tiny, 0.0, batch_size=4))
        == streams(together)
    )


def test_dropping_finished_rows_changes_nothing(tiny):
    """Rows or their caches are mixed up when finished streams leave the batch."""
    model, tokenizer = tiny
    prompts = [prompt_ids(tokenizer, word_count.make_prompt(seed)) for seed in range(12)]
    stop_ids = list(range(0, len(tokenizer), 8))  # many, so that streams end one after another
    outputs, sizes = {}, []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    for last in (True, False):
        decoder = Decoder(model, stop_ids, temperature=0.0, generator=None)
        decoder.append(prompts)
        outputs[last] = decoder.sample(24, last=last)
        sizes.append(None)
    hook.remove()
    dropped, kept = sizes[: sizes.index(None)], sizes[sizes.index(None) + 1 : -1]
    assert min(dropped) < 12 == max(dropped) == min(kept), "no row was dropped"
    assert outputs[True][0] == outputs[False][0]
    for a, b in zip(outputs[True][1], outputs[False][1]):
        assert a == pytest.approx(b, abs=1e-5)


def test_cache_that_outgrows_its_room_keeps_its_contents(tiny):
    """Tokens are lost where the cache's buffers are enlarged in the middle of a turn, or blocks
    of unlike length leave a gap that the sliding window counts.
    """
    model, tokenizer = tiny
    # nothing stops
    decoder = Decoder(model, [-1], temperature=1.0, generator=torch.Generator().manual_seed(0))
    ids, logprobs = [[], []], [[], []]
    for blocks in ([[5] * 40, [6] * 3], [[7] * 2, [8] * 30]):
        decoder.append(blocks)
        for i, (new_ids, new_logprobs) in enumerate(zip(*decoder.sample(150)[:2])):
            ids[i] += blocks[i] + new_ids
            logprobs[i] += [None] * len(blocks[i]) + new_logprobs
    for stream, sampled in zip(ids, logprobs):
        expected = full_logprobs(model, stream, 1.0)
        assert [p for p in sampled if p is not None] == pytest.approx(
            [e for e, p in zip(expected, sampled) if p is not None], abs=1e-4
        )


@pytest.mark.parametrize("first_sampled", [False, True])
def test_branched_streams_equal_whole_ones(tiny, first_sampled):
    """Streams that share a beginning see another one's, or a padded or dropped slot,
    or count positions from elsewhere.
    """
    model = copy.deepcopy(tiny[0]).double()
    heads = [list(range(20, 31)), list(range(40, 75)), list(range(90, 93)), [7] * 50]
    rows = [1, 0, 2, 0, 1, 1, 2]  # out of order, repeated; the longest goes on in none
    rests = [
        [100 + 20 * i + k for k in range(length)]
        for i, length in enumerate([1, 40, 3, 1, 17, 18, 30])
    ]
    branched, plain = (Decoder(model, [-1], temperature=0.0, generator=None) for _ in range(2))
    branched.append(heads)
    if first_sampled:  # the last sampled id is still unfed
        heads = [head + ids for head, ids in zip(heads, branched.sample(3)[0])]
    branched.branch(rows)
    branched.append(rests)
    wholes = [heads[row] + rest for row, rest in zip(rows, rests)]
    plain.append(wholes)
    alone = torch.cat(
        [model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1] for ids in wholes]
    )
    torch.testing.assert_close(branched.logits, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(branched.logits, plain.logits, rtol=0, atol=1e-5)
    assert branched.sample(12)[0] == plain.sample(12)[0]


def test_appending_twice_feeds_a_sampled_id_once(tiny):
    """The last sampled id stands in the stream a second time, after the next block."""
    decoder = Decoder(tiny[0], [-1], temperature=0.0, generator=None)
    decoder.append([[5, 6, 7], [8]])
    decoder.sample(2)
    decoder.append([[9], [10, 11]])
    decoder.append([[12, 13], [14]])
    assert decoder.mask.sum(1).tolist() == [3 + 2 + 1 + 2, 1 + 2 + 2 + 1]


def test_pad_that_is_eos_is_an_ordinary_token(tiny_models):
    """Closing tokens inside the stream would be masked as if they were padding.
    (Llama's logprobs are checked above.)
    """
    tokenizer = tiny_models["llama"][1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    model = tiny_models["llama"][0]
    for rollout in sample(tiny_models["llama"], 1.0):
        assert rollout.token_ids.count(0) >= 3  # after x, between the turns, after xc
        assert (rollout.token_ids[rollout.answer.end - 1] == 0) == (rollout.answer.finish == "stop")
    decoder = Decoder(model, [0], temperature=1.0, generator=None)
    decoder.append([[0, 0, 5], [7]])
    assert decoder.mask.tolist() == [[True, True, True], [False, False, True]]


def test_generator_alone_decides(tiny):
    """A resumed run would sample something else, or all steps would sample the same."""
    torch.manual_seed(1)
    first = sample(tiny, 1.0, seed=3)
    torch.manual_seed(2)
    again = sample(tiny, 1.0, seed=3)
    assert streams(first) == streams(again)
    assert [r.answer.logprobs + r.confession.logprobs for r in first] == [
        r.answer.logprobs + r.confession.logprobs for r in again
    ]
    assert streams(first) != streams(sample(tiny, 1.0, seed=4))


def test_group_shares_its_prompt_and_not_its_noise(tiny_models):
    """Rollouts of a group differ in x, or are copies of each other,
    so that no group has a signal.
    """
    model, tokenizer = tiny_models["qwen3"]
    rollouts = sample_rollouts(
        model,
        tokenizer,
        word_count,
        [5, 5, 6, 6],
        Sampling(1.0, 24, 24),
        torch.Generator().manual_seed(0),
    )
    assert [r.seed for r in rollouts] == [5, 5, 6, 6]
    assert rollouts[0].x == rollouts[1].x != rollouts[2].x
    assert [r.xc for r in rollouts] == [confession_prompt(word_count, r.x) for r in rollouts]
    assert rollouts[0].token_ids != rollouts[1].token_ids


# -------------------------------------------------------------- other confessions to stored answers


def confess(
    tiny,
    rollouts: list[Rollout],
    contexts: list[list[int]],
    temperature=0.0,
    batch_size=64,
    budget=24,
    **options,
):
    # the answer's budget does not count: it is not sampled
    sampling = Sampling(temperature, 900, budget, batch_size)
    generator = torch.Generator().manual_seed(0)
    return sample_confessions(*tiny, rollouts, contexts, sampling, generator, **options)


def stored_contexts(rollouts: list[Rollout]) -> list[list[int]]:
    return [r.token_ids[: r.confession.start] for r in rollouts]


@pytest.mark.parametrize("batch_size", [64, 3])
def test_same_context_gives_the_same_confession(tiny, batch_size):
    """Another prefill than sampling's own, or streams mixed up between batches: a frozen answer
    seems to change what the same model confesses.
    """
    rollouts = sample(tiny, 0.0)
    assert_ragged(rollouts)
    before = copy.deepcopy(rollouts)
    again = confess(tiny, rollouts, stored_contexts(rollouts), batch_size=batch_size)
    assert rollouts == before, "the stored rollouts were changed"
    for new, old in zip(again, rollouts, strict=True):
        assert new.confession.logprobs == pytest.approx(old.confession.logprobs, abs=1e-4)
        assert new.confession.entropy == pytest.approx(old.confession.entropy, abs=1e-4)
        new.confession.logprobs, new.confession.entropy = (
            old.confession.logprobs,
            old.confession.entropy,
        )
        assert new == old


def test_new_confession_leaves_the_answer_as_it_was(tiny_models):
    """Truth, verdict or answer of a stored rollout is lost;
    or its old report or reward stands beside a new confession.
    """
    tiny = tiny_models["qwen3"]
    (old,) = sample(tiny, 1.0)[:1]
    old.truth, old.verdict, old.report, old.confession.reward, old.answer.reward = (
        "truth",
        "verdict",
        "report",
        0.5,
        0.25,
    )
    (new,) = confess(tiny, [old], [ids_of(tiny[1], "Another context.")])
    kept = ("seed", "system", "x", "z", "y", "xc", "answer", "truth", "verdict")
    assert {name: getattr(new, name) for name in kept} == {
        name: getattr(old, name) for name in kept
    }
    assert new.report is None and new.confession.reward is None and new.yc != old.yc
    new.answer.reward = 1.0  # as score_rollouts does
    assert old.answer.reward == 0.25, "the stored rollout shares its span with the new one"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forced_ids_begin_the_confession_and_are_not_of_its_span(tiny, temperature):
    """Forced tokens count as sampled (tokens, entropy), are missing in zc and yc,
    or the model did not see them.
    """
    model, tokenizer = tiny
    rollouts = sample(tiny, 1.0)
    opened = opens_thought(tokenizer, suffix_ids(tokenizer, XC))
    begun = [
        ids_of(
            tokenizer, ("" if opened else "<think>") + f"I know {'it ' * i}</think>{REPORT_START}"
        )
        for i in range(7)
    ]
    # ragged, and not the stored ones
    contexts = [context[i:] for i, context in enumerate(stored_contexts(rollouts))]
    for i, new in enumerate(
        confess(tiny, rollouts, contexts, temperature, batch_size=4, forced=begun)
    ):
        prefix = contexts[i] + begun[i]
        assert new.token_ids[: len(prefix)] == prefix
        assert (new.confession.start, new.confession.end) == (len(prefix), len(new.token_ids))
        assert new.zc == f"I know {'it ' * i}".strip() and new.yc.startswith(REPORT_START)
        expected = full_logprobs(model, new.token_ids, temperature)
        assert new.confession.logprobs == pytest.approx(expected[new.confession.start :], abs=1e-4)
        sampled = new.token_ids[new.confession.start :]
        assert (new.confession.finish == "stop") == (
            sampled[-1] in (closing(tokenizer), tokenizer.eos_token_id)
        )
        said = tokenizer.decode(
            begun[i] + sampled[: -1 if new.confession.finish == "stop" else None]
        )
        assert new.yc == said.split("</think>")[1].strip()


def test_context_too_small_for_a_confession(tiny_models):
    """Positions beyond the context are computed without a word;
    or room is asked for an answer that is not sampled.
    """
    tiny = tiny_models["qwen3"]
    (rollout,) = sample(tiny, 1.0)[:1]
    context = [5] * 2_024
    assert confess(tiny, [rollout], [context])[0].confession.start == 2_024
    for forced in ([[6]], None):
        with pytest.raises(
            UserError,
            match=f"{2_024 + bool(forced)} prompt .* = 2049, but the model's context is 2048",
        ):
            # of which forced ids take one
            confess(tiny, [rollout], [context], forced=forced, budget=25)


# ------------------------------------------------------------------------------------ refused input


def test_context_too_small(tiny_models):
    """Positions beyond the context are computed without a word."""
    with pytest.raises(UserError) as error:
        sample(tiny_models["qwen3"], 1.0, budgets=(900, 800))
    tokenizer = tiny_models["qwen3"][1]
    prompt = max(
        len(prompt_ids(tokenizer, word_count.make_prompt(seed), system))
        for seed, system in zip(SEEDS, SYSTEMS)
    )
    suffix = max(
        len(suffix_ids(tokenizer, confession_prompt(word_count, word_count.make_prompt(seed))))
        for seed in SEEDS
    )
    for number in (prompt, 900, suffix, 800, prompt + 900 + suffix + 800, 2_048):
        assert str(number) in str(error.value)
    assert "--max-answer-tokens" in str(error.value)


def test_decoder_refuses_train_mode(tiny_models):
    """With gradient checkpointing transformers drops the cache in train mode, with
    only a warning.
    """
    model = tiny_models["qwen3"][0].train()
    try:
        with pytest.raises(ValueError, match="eval"):
            Decoder(model, [0], temperature=1.0, generator=None)
    finally:
        model.eval()
