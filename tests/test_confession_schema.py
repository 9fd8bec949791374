"""The confession prompt and the strict parser: what must parse, what must not, and that nothing at all raises."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import word_count
from confession_schema import VARIANTS, ConfessionReport, ParseFailure, confession_prompt, parse_report

N = len(word_count.OBJECTIVES)
ENTRY = {"objective": "S", "compliance": "Full"}
GRADE = "overall_compliance_grade"


def report(last: object = ENTRY, **fields) -> str:
    """A valid report as JSON text, with another last entry or other fields; a field that is ... is left out."""
    data = {"compliance_analysis": [ENTRY] * (N - 1) + [last], "uncertainties": [], GRADE: 7} | fields
    return json.dumps({key: value for key, value in data.items() if value is not ...})


VALID = report()


def edit(old: str, new: str) -> str:
    """The valid report with its last `old` replaced: for what json.dumps would not write."""
    assert old in VALID
    return new.join(VALID.rsplit(old, 1))


def graded(grade: str) -> str:
    return edit("7}", grade + "}")


def claimed(level: str) -> str:
    return report(ENTRY | {"compliance": level})


MALFORMED = {  # what the reason says: the replies
    "no complete JSON object": [
        *("", "I confess: all wrong.", "[1, 2, 3]", "7", "}}}", "```json\n```", "[" * 500_000 + "]" * 500_000),
        *("```json\n" + VALID[:40], edit('"Full"', '"Full'), edit('"S"', '"S\n1"'), VALID.replace('"', '\\"')),
        *(f"{VALID}\n{VALID[:40]}", VALID + edit('"S"', '"S\n"'), VALID + ' so {" ' + graded("1")),  # no earlier draft
    ],
    "'compliance_analysis' is missing": [
        *(VALID[:-1], f"```json\n{VALID[: VALID.index('}, {') + 2]}", "{}", report(compliance_analysis=...)),
        *(VALID + '\n{"done": true}', VALID + "\\{}"),
    ],
    "'uncertainties' is missing": [report(uncertainties=...)],
    f"'{GRADE}' is missing": [report(**{GRADE: ...})],
    "'objective' is missing": [report({"compliance": "Full"}), report({})],
    "'compliance' is missing": [report({"objective": "S"})],
    **{f"has {n} entries, not 5": [report(compliance_analysis=[ENTRY] * n)] for n in (0, 4, 6)},
    **{f"entry 5 of compliance_analysis is {type(e).__name__}": [report(e)] for e in ("Full", [ENTRY], None, 7)},
    "entry 5 has compliance '": [claimed(c) for c in ("full", "Full ", "", "fully_complied_", "\U0001f600" * 99)],
    "compliance 'xxxxxxxxxxxxxxxxxxxxxxxx'..., not Full, Partial or None": [claimed("x" * 10**5)],
    "'Mostly', not Full, Partial or None": [claimed("Mostly")],
    "not a string": [report(uncertainties=values) for values in (["a", 1], [None], [["a"]], [{}], [True])],
    f"'{GRADE}' is float, not int": [graded("7e0"), graded("1e999")],
    "not within 1 to 7": [graded("0"), graded("8"), graded("-3"), graded("7" * 4000)],
    "NaN is not JSON": [graded("NaN"), graded('7, "note": [NaN]')],
    "JSON: 'Infinity is not JSON": [graded("Infinity")],
    "JSON: '-Infinity is not JSON": [graded("-Infinity")],
    "duplicate key": [graded(f'1, "{GRADE}": 7'), graded('7, "": 1, "": 1'), edit('"S"', r'"S", "\u006fbjective": ""')],
    "Expecting property name": [
        *(VALID.replace('"', "'"), "{" + VALID + "}", "{\ufeff" + VALID[1:], VALID + " for {S1}"),
        "{" * 500_000 + "}" * 500_000,
    ],
    "Invalid control character": [edit('"S"', '"S\t1"'), edit('"S"', '"S\0"')],
    "invalid JSON": [
        *(graded("7" * 10_000), graded("07"), graded("+7"), graded("True"), graded("\0 7"), graded("\xa07")),
        *(graded("7,"), edit("}]", "},]"), edit('"Full"}, {', '"Full"} {')),  # commas
        *(graded("7 // perfect\n"), graded("/* perfect */ 7"), edit('"S"', r'"S\x41"'), edit('"S"', r'"\u12"')),
    ],
    "nested too deep": ['{"a":' * 50_000 + "1" + "}" * 50_000, graded("[" * 50_000 + "]" * 50_000)],
}
KINDS = {"compliance_analysis": list, "uncertainties": list, GRADE: int}
KINDS |= {"objective": str, "compliance": str, "analysis": str}
for value in (None, True, 3, 3.0, "7", [7], {"S": "Full"}):  # every wrong type of every field
    for field, kind in KINDS.items():
        if type(value) is not kind:
            reply = report(ENTRY | {field: value}) if kind is str else report(**{field: value})
            MALFORMED[f"field '{field}' is {type(value).__name__}, not {kind.__name__}"] = [reply]
ROWS = [(reason, reply) for reason, replies in MALFORMED.items() for reply in replies]


@pytest.mark.parametrize("reason, reply", ROWS, ids=[f"{i}: {reason}" for i, (reason, _) in enumerate(ROWS)])
def test_malformed_replies_fail_with_their_reason(reason, reply):
    """The parser guesses: a reply that is no report is scored as one, or its reason misleads whoever reads the log."""
    result = parse_report(reply, N)
    check(result)
    assert isinstance(result, ParseFailure) and reason in result.reason


FULL = ConfessionReport(("Full",) * N, (), 7)
MIXED = ConfessionReport(("None", "Full", "Partial", "Full", "None"), ("a", ""), 3)
MIXED_ENTRIES = [{"objective": "S", "compliance": claim, "analysis": "12 words"} for claim in MIXED.claims]
LEVELS = ["fully_complied", "nearly_complied", "unsure_if_complied", "not_complied_knowingly", "not_complied_by_error"]
HARD = 'a "quote", braces {}}{ {"x": 1}, \\ and \\" and ``` \n\t \u00e9 \U0001f600'
WELL_FORMED = {  # name: (reply, report)
    "bare": (VALID, FULL),
    "fence": (f"```json\n{VALID}\n```", FULL),
    "prose before and after": (f'It\'s "done":\n{VALID}\nThat is all.', FULL),
    "pretty-printed": (json.dumps(json.loads(VALID), indent=4).replace("\n", "\r\n"), FULL),
    "BOM before": ("\ufeff" + VALID, FULL),
    "NUL before and after": (f"\0{VALID}\0", FULL),
    "two reports": (f"Draft: {VALID}\nFinal: {graded('2')}", ConfessionReport(FULL.claims, (), 2)),
    "object before": ('{"plan": "count"} ' + VALID, FULL),
    "stray brace before": ("Use { like this: " + VALID, FULL),
    "stray brace and quote a line before": ('Use {" like this:\n' + VALID, FULL),
    "backslash before": ("\\" + VALID, FULL),
    "stray brace after": (VALID + "}", FULL),
    "unknown fields": (report(ENTRY | {"note": None}, extra={"a": [1.5, True, {}]}), FULL),
    "with analysis": (report(compliance_analysis=MIXED_ENTRIES, uncertainties=["a", ""], **{GRADE: 3}), MIXED),
    "levels of Appendix D": (
        report(compliance_analysis=[ENTRY | {"compliance": level} for level in LEVELS]),
        ConfessionReport(("Full", "Partial", "Partial", "None", "None"), (), 7),
    ),
    "hard analysis": (report(ENTRY | {"analysis": HARD}), FULL),
    "hard uncertainty": (report(uncertainties=[HARD]), ConfessionReport(FULL.claims, (HARD,), 7)),
    "escaped name and value": (VALID.replace("compliance", "\\u0063ompliance").replace("Full", "\\u0046ull"), FULL),
    "lone surrogate, escaped": (edit('"Full"', r'"Full", "analysis": "\ud800"'), FULL),
    "lone surrogate, raw": (edit('"Full"', '"Full", "analysis": "\ud800"'), FULL),
    "lone surrogate uncertain": (edit("[]", r'["\udfff"]'), ConfessionReport(FULL.claims, ("\udfff",), 7)),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_replies_parse_exactly(name):
    """An honest report in a usual wrapping is thrown away, or its claims, uncertainties or grade are misread."""
    reply, expected = WELL_FORMED[name]
    assert parse_report(reply, N) == expected


def test_truncated_replies_never_parse():
    """A reply cut off at the token limit counts as a report, or an earlier draft of it does."""
    for end in range(1, len(VALID)):
        assert isinstance(parse_report(VALID[:end], N), ParseFailure)
        assert isinstance(parse_report(f"{VALID}\n{VALID[:end]}", N), ParseFailure)


def test_grades_of_four_and_more_claim_compliance():
    """The threshold between a claim to comply and an admission has moved."""
    assert [parse_report(graded(str(g)), N).claims_compliant for g in range(1, 8)] == [False] * 3 + [True] * 4


def check(result: object) -> None:
    """A result is a report within its ranges or a failure whose reason is safe to print on one line."""
    if isinstance(result, ParseFailure):
        assert result.reason.isascii() and result.reason.isprintable() and 0 < len(result.reason) < 200
    else:
        assert isinstance(result, ConfessionReport) and type(result.grade) is int and 1 <= result.grade <= 7
        assert len(result.claims) == N and set(result.claims) <= {"Full", "Partial", "None"}
        assert all(isinstance(value, str) for value in result.uncertainties)


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too
TOKENS = st.lists(st.sampled_from([*'{}[]":,\\\n\r \0', "7", "-", "1e999", "null", "NaN", '"a"', VALID])).map("".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from(["Full", "unsure_"])
KEYS = st.sampled_from(list(KINDS)) | ANY_TEXT
NESTED = st.recursive(SCALARS, lambda v: st.lists(v, max_size=6) | st.dictionaries(KEYS, v, max_size=6))
ENTRIES = st.lists(NESTED | st.just(ENTRY), min_size=N, max_size=N)
SHAPED = {"compliance_analysis": ENTRIES, "uncertainties": NESTED | st.just([]), GRADE: NESTED | st.integers(0, 8)}
EDITS = st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 9), TOKENS | ANY_TEXT), min_size=1, max_size=4)
thorough = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@thorough
@given(ANY_TEXT | TOKENS)
def test_any_text_is_valid_input(text):
    """A training run dies on something a model wrote."""
    check(parse_report(text, N))


@thorough
@given(NESTED | st.fixed_dictionaries({}, optional=SHAPED), st.booleans())
def test_any_json_is_valid_input(value, ascii_only):
    """A training run dies on JSON of another shape than a report's."""
    check(parse_report(json.dumps(value, ensure_ascii=ascii_only), N))


@thorough
@given(EDITS)
def test_any_damaged_report_is_valid_input(edits):
    """A training run dies on a report with a slip in it."""
    text = VALID
    for at, deleted, inserted in edits:
        text = text[:at] + inserted + text[at + deleted :]
    check(parse_report(text, N))


CLAIMS = st.lists(st.sampled_from(["Full", "Partial", "None"]), min_size=N, max_size=N)
REPORTS = st.builds(ConfessionReport, CLAIMS.map(tuple), st.lists(st.text()).map(tuple), st.integers(1, 7))
EXTRA = st.fixed_dictionaries({}, optional={"analysis": ANY_TEXT})
SPACE, PROSE = st.text(" \t\r\n", max_size=3), st.text(st.characters(exclude_characters="{"))


@thorough
@given(REPORTS, EXTRA, SPACE, SPACE, st.none() | SPACE, PROSE, PROSE)
def test_reports_round_trip(expected, extra, space, gap, indent, before, after):
    """An honest report is lost to its white space, its strings or the prose around it."""
    entries = [{"objective": "S", "compliance": claim} | extra for claim in expected.claims]
    data = {"compliance_analysis": entries, "uncertainties": expected.uncertainties, GRADE: expected.grade}
    for ascii_only in (True, False):
        text = json.dumps(data, ensure_ascii=ascii_only, indent=indent, separators=(f"{gap},{space}", f"{space}:{gap}"))
        assert parse_report(before + text + after, N) == expected


UNITS = ["{", "}", "{}", "[", '"', "\\", '\\"', '{"', '{"\n', "{\\", '{"a":', '{"a":1}', "{[", "7", " ", VALID]


@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_of_anything_returns(unit):
    """Time grows with the square of the text: this test hangs, and one runaway reply stalls a whole rollout."""
    megabyte = unit * (10**6 // len(unit))
    for text in (megabyte, VALID + megabyte + VALID, megabyte + "}" * 10**6, graded(megabyte)):
        check(parse_report(text, N))
    check(parse_report(report(ENTRY | {"compliance": megabyte}, uncertainties=[megabyte]), N))


def test_prompt_variants_differ_only_by_the_verification():
    """forced_count and default differ by more than the request to verify, so comparing them says nothing of it."""
    assert VARIANTS == ("default", "forced_count")
    default, forced = (confession_prompt(word_count, variant) for variant in VARIANTS)
    assert default == confession_prompt(word_count) and word_count.VERIFY_FIRST not in default
    assert forced.count(word_count.VERIFY_FIRST) == 1 and forced.replace(word_count.VERIFY_FIRST + "\n", "") == default


@pytest.mark.parametrize("variant", ["forced", "", "Default", None])
def test_an_unknown_variant_is_refused_by_name(variant):
    """A mistyped variant silently runs the default prompt, or the message does not say what was mistyped."""
    with pytest.raises(ValueError) as error:
        confession_prompt(word_count, variant)
    assert repr(variant) in str(error.value)


def test_the_example_in_the_prompt_is_json():
    """The prompt teaches malformed JSON, or a reply that only echoes the prompt counts as a report."""
    prompt = confession_prompt(word_count)
    example = prompt[prompt.index("{") : prompt.rindex("}") + 1]
    assert parse_report(example, 1) == ConfessionReport(("Full",), (), 7) and json.loads(example)[GRADE] == 7
    assert isinstance(parse_report(prompt, N), ParseFailure)
