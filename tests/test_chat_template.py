"""Turns of real chat templates: where they end, whether they think, and the system prompt that
a template inserts by itself. A mistake here is a model that never stops or thinks where it was told
not to, or conditions that differ in more than they say.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

import grpo
from chat_template import (
    default_system,
    opens_thought,
    prompt_ids,
    suffix_ids,
    transcript_ids,
    turn_ends,
)
from cli import UserError
from conftest import small_tokenizer
from rollout import Sampling, sample_confessions, sample_rollouts
from tasks import word_count
from tasks.system_prompts import SYSTEM_PROMPTS

XC = "Report on your answer."
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Quill, by Nobody. You "
    "help.<|im_end|>\n{% endif %}"
)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
# In the styles of the published templates, reduced to what matters here.
TEMPLATES = {
    "qwen2.5": DEFAULT + CHATML + ASSISTANT,
    "smollm2": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
        "You are Small<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    + ASSISTANT,
    "qwen3": CHATML.replace("m.content", "m.content.split('</think>')[-1].lstrip('\n')")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
    "qwen3.5": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}",
    "olmo3": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Olm. You have no "
        "functions.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.role == 'system' %} You have no functions.{% endif %}"
        "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}<|im_end|>\n"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    ),
    "deepseek-r1": CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "llama3": (
        "<|im_start|>system\n\nToday: 1 May\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|im_end|>"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n\n"
        "{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "gemma3": (
        "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}<|im_start|>"
        "{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ first if loop.first else '' }}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
}
# the thought is the model's to open, or opened by the generation prompt
SWITCHED = ("qwen3", "qwen3.5")
OPENING = ("olmo3", "deepseek-r1")  # opened by it, without a switch


@pytest.fixture(scope="module")
def styled() -> dict:
    """{style: tokenizer}; eos is <|endoftext|> for OLMo-3 and the closing token for the others."""
    special = "<|pad|> <|endoftext|> <|im_start|> <|im_end|>"
    thinks = SWITCHED + OPENING
    return {
        style: small_tokenizer(
            special + " <think> </think>" * (style in thinks),
            template,
            eos_token="<|endoftext|>" if style == "olmo3" else "<|im_end|>",
            pad_token="<|pad|>",
        )
        for style, template in TEMPLATES.items()
    }


@pytest.fixture(params=TEMPLATES)
def tokenizer(request, styled):
    """Of each style in turn."""
    return styled[request.param]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Script:
    """A model that says given ids, turn by turn."""

    device, training = torch.device("cpu"), False
    text_config = SimpleNamespace(max_position_embeddings=4_096, model_type="script")
    config = SimpleNamespace(get_text_config=lambda: Script.text_config)

    def __init__(self, tokenizer, generation_config: GenerationConfig, *turns: list[int]):
        self.vocabulary, self.generation_config, self.turns = (
            len(tokenizer),
            generation_config,
            list(turns),
        )

    def __call__(self, input_ids, **_):
        if input_ids.shape[1] > 1:
            self.words = list(self.turns.pop(0))
        logits = torch.full((1, 1, self.vocabulary), -1e4)
        logits[0, 0, self.words.pop(0)] = 0
        return SimpleNamespace(logits=logits)


def said(
    tokenizer,
    answer: list[int],
    confession: list[int],
    eos: int | list[int] | None = None,
    thinking: str = "auto",
):
    """(the rollout of a model that says this, the model)."""
    model = Script(tokenizer, GenerationConfig(eos_token_id=eos), answer, confession)
    sampling = Sampling(1.0, len(answer), len(confession), thinking=thinking)
    return sample_rollouts(model, tokenizer, word_count, [0], sampling, torch.Generator())[0], model


# -------------------------------------------------------------------------------- where a turn ends


@pytest.mark.parametrize("named, more", [(None, []), (1, [1]), ([3, 1], [1]), ([3], [])])
def test_turn_ends_name_those_of_the_generation_config(styled, named, more):
    """Qwen3's second end of text is in its generation_config alone: a turn that ends with it would
    run on to its budget.
    """
    tokenizer = styled["qwen3"]
    closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert closing == 3 and tokenizer.convert_tokens_to_ids("<|endoftext|>") == 1
    assert turn_ends(
        tokenizer, suffix_ids(tokenizer, XC), GenerationConfig(eos_token_id=named)
    ) == [*more, 3]


def test_both_samplers_of_turns_stop_at_the_generation_configs_ids(styled):
    """Stop ids are complete, but sampling uses others:
    the text after the stop would be judged too.
    """
    tokenizer = styled["qwen3"]
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    answer, confession = (
        ids_of(tokenizer, text) + [end, *ids_of(tokenizer, "Human:")]
        for text in ("Tea is hot.", "None.")
    )
    rollout, _ = said(tokenizer, answer, confession, eos=[3, end])
    assert (rollout.y, rollout.yc) == ("Tea is hot.", "None.")
    assert (
        rollout.answer.finish == rollout.confession.finish == "stop"
        and rollout.token_ids[rollout.answer.end - 1] == end
    )
    model = Script(tokenizer, GenerationConfig(eos_token_id=[3, end]), confession)
    sampling = Sampling(1.0, 1, len(confession))
    (again,) = sample_confessions(
        model, tokenizer, [rollout], [[5, 6]], sampling, torch.Generator()
    )
    assert again.yc == "None." and again.confession.finish == "stop"


def test_olmo3_sampled_end_of_a_conversation_is_the_one_token_more_than_rendered(styled):
    """OLMo-3 ends its final turn with another token than its inner ones. If the model samples it,
    it must stay in the stream, or the end of the answer would not be trained; what stands before xc
    is then this one token and all that the template renders. If the model samples the inner one,
    the stream is the rendered conversation.
    """
    tokenizer = styled["olmo3"]
    eos, closing = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = ids_of(tokenizer, "why</think>Tea is hot.")
    for stop, extra in ((eos, 1), (closing, 0)):
        rollout, _ = said(tokenizer, text + [stop], [closing])
        turns = [
            ("user", rollout.x),
            ("assistant", "<think>why</think>Tea is hot."),
            ("user", rollout.xc),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = ids_of(
            tokenizer,
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        )
        stream, end = rollout.token_ids[: rollout.confession.start], rollout.answer.end
        assert stream[end - 1] == stop and rollout.answer.finish == "stop", (
            "the sampled stop token is trained"
        )
        assert stream[: end - extra] + stream[end:] == rendered


# ----------------------------------------------------------------------------------------- thinking


@pytest.mark.parametrize("style", SWITCHED)
def test_thinking_follows_the_switch(styled, style):
    """--thinking does nothing, or "auto" is not what the template does by itself."""
    tokenizer = styled[style]
    tail_of = lambda thinking: tokenizer.decode(prompt_ids(tokenizer, "x", None, thinking)).split(
        "<|im_start|>"
    )[-1]
    tail = {thinking: tail_of(thinking) for thinking in ("auto", "on", "off", "never")}
    assert tail["auto"] == tail["on"] == "assistant\n" + "<think>\n" * (style == "qwen3.5")
    assert tail["off"] == tail["never"] == "assistant\n" + EMPTY_THOUGHT
    for ids in (suffix_ids(tokenizer, XC, "off"), transcript_ids(tokenizer, "x", "y", XC, "off")):
        assert tokenizer.decode(ids).endswith(tail["off"]) and not opens_thought(tokenizer, ids)


@pytest.mark.parametrize("style", SWITCHED)
def test_without_thinking_both_turns_have_empty_thoughts(styled, style):
    """The setting does not reach one of the turns, a new confession, or the stream that is trained;
    or the empty thought of the prompt counts as the model's.
    """
    tokenizer, sampling = styled[style], Sampling(1.0, 9, 9, thinking="off")
    answer, confession = ids_of(tokenizer, "Tea.") + [3], ids_of(tokenizer, "None.") + [3]
    rollout, _ = said(tokenizer, answer, confession, thinking="off")
    assert (rollout.z, rollout.y, rollout.zc, rollout.yc) == ("", "Tea.", "", "None.")
    for span in rollout.spans.values():
        assert tokenizer.decode(rollout.token_ids[: span.start]).endswith(EMPTY_THOUGHT)
    model = Script(tokenizer, GenerationConfig(), confession)
    (again,) = sample_confessions(
        model, tokenizer, [rollout], [rollout.token_ids[:20]], sampling, torch.Generator()
    )
    assert (again.zc, again.yc) == ("", "None.")


def test_thinking_without_a_switch(tokenizer):
    """A run believes that it does, or does not, think, and the model does as it likes. Where
    nothing thinks, "off" is true.
    """
    style = next(
        name for name, template in TEMPLATES.items() if tokenizer.chat_template == template
    )
    if style in SWITCHED:
        return
    with pytest.raises(UserError, match="--thinking on.*no switch.*--thinking auto"):
        prompt_ids(tokenizer, "x", None, "on")
    if style in OPENING:
        with pytest.raises(UserError, match="--thinking off.*--thinking auto"):
            suffix_ids(tokenizer, XC, "off")
    else:
        assert prompt_ids(tokenizer, "x", None, "off") == prompt_ids(tokenizer, "x")


def test_off_is_refused_where_the_model_alone_may_think(tokenizers):
    """An organism thinks without its template's doing: its tokenizer has the tag."""
    assert "think" not in tokenizers["organism"].chat_template
    with pytest.raises(UserError, match="no switch"):
        prompt_ids(tokenizers["organism"], "x", None, "off")


def test_never_opens_no_thought(tokenizer):
    """A judge thinks past its few tokens: a thought that its prompt opens is closed at once; other
    prompts stay as they are.
    """
    never, auto = (prompt_ids(tokenizer, "x", None, thinking) for thinking in ("never", "auto"))
    assert not opens_thought(tokenizer, never)
    text, before = tokenizer.decode(never), tokenizer.decode(auto)
    assert text.count("<think>") == text.count("</think>") <= 1
    if opens_thought(tokenizer, auto):
        assert text == before.rstrip() + "\n\n</think>\n\n"
    assert text in (
        before,
        before + EMPTY_THOUGHT,
        before.removesuffix("\n").removesuffix("<think>") + EMPTY_THOUGHT,
    )


def test_unknown_thinking_is_refused():
    """A typing error is a template's default."""
    with pytest.raises(UserError, match="--thinking 'maybe' is unknown: choose auto or on or off"):
        grpo.resolve(grpo.Config(thinking="maybe"))
    assert Sampling.of(json.loads('{"thinking": "off", "lr": 1}')).thinking == "off", (
        "a run's config reaches the samplers"
    )


# -------------------------------------------------------------------------------- the system prompt


def test_default_system(tokenizer):
    """A template's own system prompt is not found,
    or something that stands around it is taken for it.
    """
    expected = {
        "qwen2.5": "You are Quill, by Nobody. You help.",
        "smollm2": "You are Small",
        "olmo3": "You are Olm.",
    }
    style = next(
        name for name, template in TEMPLATES.items() if tokenizer.chat_template == template
    )
    assert default_system(tokenizer) == expected.get(style, "")


def test_conditions_differ_by_the_added_text_alone(styled):
    """The baseline of the stress test has the template's own system prompt and the other conditions
    have not: what that prompt does to confessions would be counted as the condition's.
    """
    for style in ("qwen2.5", "smollm2", "olmo3", "llama3"):
        tokenizer = styled[style]
        baseline = tokenizer.decode(prompt_ids(tokenizer, "Write about tea."))
        between = "" if style == "llama3" else "\n\n"
        for text in (text for texts in SYSTEM_PROMPTS.values() for text in texts if text):
            prompt = tokenizer.decode(prompt_ids(tokenizer, "Write about tea.", text))
            assert prompt.count(text) == 1 and prompt.replace(between + text, "") == baseline, style


def test_system_prompt_alone_where_the_template_has_none(styled, tokenizers):
    """Blank lines of a default that is not there stand before the text;
    the organisms have never seen them.
    """
    for tokenizer in (styled["qwen3"], tokenizers["organism"]):
        assert tokenizer.decode(prompt_ids(tokenizer, "x", "Be brief.")).startswith(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
        )
    gemma = styled["gemma3"]
    assert gemma.decode(prompt_ids(gemma, "x", "Be brief.")).startswith(
        "<|im_start|>user\nBe brief.\n\nx<|im_end|>"
    )
