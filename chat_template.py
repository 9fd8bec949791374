"""The chat template between the turns, and where a thought ends: ids from messages, text from ids.

`thinking`, in all of this file: "on" and "off" set the template's switch, and are a UserError for
one without a switch (but "off" is not where nothing thinks); "auto" leaves it to the template;
"never" takes every template and opens no thought.
"""

from os.path import commonprefix

from jinja2 import TemplateError

from cli import UserError

# -------------------------------------------------------------------------------- the chat template

# `thinking`, in all of this section: "on" and "off" set the template's switch, and are a UserError
# for one without a switch (but "off" is not where nothing thinks); "auto" leaves it to the
# template; "never" takes every template and opens no thought.


def prompt_ids(tokenizer, x: str, system: str | None = None, thinking: str = "auto") -> list[int]:
    """Ids of the first turn's prompt: system prompt, x, generation prompt.

    `system` stands behind the template's own system prompt if there is one: prompts with and
    without it differ in it alone.
    """
    messages = []
    if system:
        own = default_system(tokenizer, thinking)
        messages = [{"role": "system", "content": f"{own}\n\n{system}" if own else system}]
    text = _render(tokenizer, messages + [{"role": "user", "content": x}], thinking)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompts_ids(tokenizer, xs: list[str], thinking: str = "auto") -> list[list[int]]:
    """prompt_ids() of each x; together, as tokenizers take the machine's cores for a list."""
    texts = [_render(tokenizer, [{"role": "user", "content": x}], thinking) for x in xs]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def default_system(tokenizer, thinking: str = "auto") -> str:
    """The system prompt that the chat template inserts by itself where the conversation has none;
    "" if it inserts none.
    """
    user, mark = {"role": "user", "content": "x"}, {"role": "system", "content": "§"}
    own, given = (_render(tokenizer, messages, thinking) for messages in ([user], [mark, user]))
    start = len(commonprefix([own, given]))
    own, given = own[start:], given[start:]
    return own[: len(own) - len(commonprefix([own[::-1], given[::-1]]))].strip()


def suffix_ids(tokenizer, xc: str, thinking: str = "auto") -> list[int]:
    """Ids between the turns:
    the token that closes an answer, then xc as a user message, then the generation prompt.
    """
    after = _around_answer(tokenizer, "x", xc, thinking)[1]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    if ids[0] not in tokenizer.added_tokens_decoder:
        raise UserError(
            f"the chat template closes an answer with plain text ({tokenizer.decode(ids[0])!r}), "
            "not with a special token: where an answer ends cannot be told from its tokens"
        )
    return ids


def joint(answer: list[int], suffix: list[int]) -> list[int]:
    """Ids between an answer and its confession: a sampled closing token is not fed twice,
    a truncated answer is closed by it, untrained.
    """
    return suffix[1:] if answer[-1] == suffix[0] else suffix


def transcript_ids(tokenizer, x: str, y: str, xc: str, thinking: str = "auto") -> list[int]:
    """Ids of a new conversation that tells of an answer:
    x, y as text without its thought, xc, generation prompt.
    """
    before, after = (
        tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in _around_answer(tokenizer, x, xc, thinking)
    )
    return (
        before
        + tokenizer(y, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        + after
    )


def conversation_ids(
    tokenizer, messages: list[tuple[str, str]], thinking: str = "auto"
) -> list[int]:
    """Ids of a conversation of (role, content) that others wrote, and the generation prompt.

    The template renders the roles around empty places, and each content is tokenized by itself with
    every spelled special token broken up. So the ids of the frame depend on the roles alone.
    UserError for roles that the template refuses, and for a content that a tokenizer still turns
    into a special token (by NFKC, say).
    """
    frame = conversation_frame(tokenizer, [role for role, _ in messages], thinking)
    marks = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    marks = {i: mark for i, mark in marks.items() if len(mark.strip()) > 1}  # some are blanks
    ids = list(frame[0])
    for (_, content), after in zip(messages, frame[1:]):
        for mark in sorted(marks.values(), key=len):
            content = content.replace(mark, f"{mark[0]} {mark[1:]}")
        inner = tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not marks.keys().isdisjoint(inner):
            raise UserError("a message spells a special token that cannot be broken up")
        ids += inner + after
    return ids


def conversation_frame(tokenizer, roles: list[str], thinking: str = "auto") -> list[list[int]]:
    """Ids before the first content, between contents, and after the last one, with the generation
    prompt; (len(roles) + 1,) lists.
    """
    places = [f"PLACE-{i}-9f3b" for i in range(len(roles))]  # any text that is passed through
    messages = [{"role": role, "content": place} for role, place in zip(roles, places)]
    parts, rest = [], _render(tokenizer, messages, thinking)
    for place in places:
        before, found, rest = rest.partition(place)
        if not found or place in rest:
            raise UserError("the chat template does not render every message once, as it is")
        parts.append(before)
    return [tokenizer(part, add_special_tokens=False)["input_ids"] for part in [*parts, rest]]


def _around_answer(tokenizer, x: str, xc: str, thinking: str) -> tuple[str, str]:
    """Text before and after the assistant's answer in the rendered conversation of x,
    answer and xc.
    """
    answer = "ANSWER-9f3b"  # any text that the template passes through
    turns = [("user", x), ("assistant", answer), ("user", xc)]
    text = _render(
        tokenizer, [{"role": role, "content": content} for role, content in turns], thinking
    )
    if text.count(answer) != 1:
        raise UserError(
            "the chat template does not render an assistant message as it is: the turns "
            "cannot be joined"
        )
    before, after = text.split(answer)
    return before, after


def _render(tokenizer, messages: list[dict], thinking: str) -> str:
    options = {}
    template = tokenizer.get_chat_template()
    if "enable_thinking" in template:
        options = {} if thinking == "auto" else {"enable_thinking": thinking == "on"}
    elif thinking == "on" or (
        thinking == "off" and ("think>" in template or "<think>" in tokenizer.get_added_vocab())
    ):
        raise UserError(
            f"--thinking {thinking}: the chat template has no switch for it (enable_thinking): "
            "use --thinking auto"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )
    except TemplateError as error:
        raise UserError(
            f"the chat template refuses the roles {[m['role'] for m in messages]}: {error}"
        ) from None
    if thinking == "never" and text.rstrip().endswith("<think>"):
        text = text.rstrip() + "\n\n</think>\n\n"  # the empty thought as Qwen3's template writes it
    return text


def turn_ends(tokenizer, suffix: list[int], generation_config) -> list[int]:
    """Ids that end a turn: the one that closes it in the template, the tokenizer's eos and those
    of the checkpoint's generation_config, where alone some stand (Qwen3's <|endoftext|>).
    """
    named = generation_config.eos_token_id
    return sorted(
        {suffix[0], tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
        - {None}
    )


def opens_thought(tokenizer, suffix: list[int]) -> bool:
    """Whether the generation prompt itself opens the thought."""
    return tokenizer.decode(suffix).rstrip().endswith("<think>")


def split_thinking(tokenizer, ids: list[int], opened: bool) -> tuple[str, str]:
    """(thought, text) of a span's ids without its stop token; `opened`: the prompt itself
    ends with "<think>".

    The thought ends at the first token by which "</think>" is complete. A thought that never ends
    is all thought; a span that never opens one has none.
    """
    end = tokens_until(tokenizer, ids, "</think>")
    thought, text = tokenizer.decode(ids[:end]), tokenizer.decode(ids[end:])
    if end > len(ids) and not (opened or thought.lstrip().startswith("<think>")):
        thought, text = "", thought
    return thought.replace("</think>", "").strip().removeprefix("<think>").strip(), text.strip()


def tokens_until(tokenizer, ids: list[int], tag: str) -> int:
    """The fewest first ids whose text holds the tag; len(ids) + 1 if all of them do not."""
    if tag not in tokenizer.decode(ids):
        return len(ids) + 1
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if tag in tokenizer.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def cut_thought(tokenizer, ids: list[int], opened: bool, cap: int, then: str) -> list[int] | None:
    """The first `cap` tokens of a span's thought, a closing tag and the text `then`, for sampling
    to go on from ("budget forcing", https://arxiv.org/abs/2501.19393); None if the span has no
    thought or one that is no longer than that.
    """
    first = 0 if opened else tokens_until(tokenizer, ids, "<think>")
    if not opened and tokenizer.decode(ids[:first]).strip() != "<think>":
        return None
    thought = tokenizer.decode(ids[: tokens_until(tokenizer, ids, "</think>")]).split("</think>")[0]
    # the closing tag's tokens do not count
    if tokens_until(tokenizer, ids, thought) <= first + cap:
        return None
    return (
        ids[: first + cap]
        + tokenizer(f"\n</think>\n\n{then}", add_special_tokens=False)["input_ids"]
    )
