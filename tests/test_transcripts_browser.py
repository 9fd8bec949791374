"""The page of transcripts.py in a real Chromium: filters, search, keyboard, links, comparison,
hostile text, phone.

It takes the browser that CHROMIUM names, one in PATH, or Playwright's own; with none of them
these tests skip.
"""

import os
import shutil

import pytest

import transcripts
from handmade_transcripts import FLAGGED, KINDS, make_run
from tasks import word_count

pytestmark = pytest.mark.slow

api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -r requirements-extra.txt"
)
NAMES = list(KINDS)
ALL = 2 * len(NAMES) + len(NAMES) + 2 + 4  # rollouts in handmade_transcripts.make_run


@pytest.fixture(scope="module")
def browser():
    in_path = [
        path
        for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        if path
    ]
    found = os.environ.get("CHROMIUM") or next(iter(in_path), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=False)
        except api.Error as error:
            pytest.skip(
                "no Chromium to run (CHROMIUM, PATH, `playwright install chromium`): "
                f"{str(error).splitlines()[0]}"
            )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    run = make_run(tmp_path_factory.mktemp("browser") / "run <img src=x onerror=window.pwned=1>")
    (run / "transcripts.html").write_text(transcripts.page(run, word_count), encoding="utf-8")
    return (run / "transcripts.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """open_page(hash, options of the browser window) -> the loaded page; at the end nothing may
    have gone wrong in it.
    """
    contexts, problems, requests = [], [], []

    def open_page(link: str = "", **options):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address + link)
        until(
            page,
            "document.querySelector('article') || document.body.innerText.includes('no rollout')",
        )
        return page

    yield open_page
    for context in contexts:
        assert [page.evaluate("window.pwned") for page in context.pages] == [None], (
            "a model's text was run"
        )
        context.close()
    assert not problems
    assert all(url.split("#")[0] == address or url.startswith("data:") for url in requests), (
        "the page asked for a file"
    )


def until(page, expression: str, argument=None) -> None:
    """Wait until JavaScript is true.
    Playwright's own wait_for_function needs eval, which the page's policy forbids.
    """
    for _ in range(1_000):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"never true: {expression} {argument}")


def shown(page) -> list[str]:
    """Kinds of rollouts in the list, from what each of them is: (file, line)."""
    return page.evaluate("state.shown.map((i) => `${fileOf(i).name}/${i - fileOf(i).first + 1}`)")


def current(page) -> str:
    return page.evaluate("linkOf(state.current).slice(1)")


def wait_for(page, link: str) -> None:
    until(
        page,
        (
            "(link) => linkOf(Number(document.querySelector('article')?.dataset.rollout ?? "
            "0)) === '#' + link"
        ),
        link,
    )


def choose_file(page, label: str) -> None:
    page.locator("#file").select_option(
        page.locator("#file option", has_text=label).first.get_attribute("value")
    )


def test_filters(open_page):
    page = open_page()
    choose_file(page, "training step 1")
    for flag, (label, _) in transcripts.FLAGS.items():
        button = page.get_by_role("button", name=label)
        wanted = [
            f"rollouts/step_0001/{i}" for i, name in enumerate(NAMES, 1) if flag in FLAGGED[name]
        ]
        assert button.inner_text() == f"{label} {len(wanted)}"
        button.click()
        assert shown(page) == wanted and button.get_attribute("aria-pressed") == "true"
        assert page.locator("#status").inner_text() == f"{len(wanted)} of {ALL} rollouts"
        button.click()
    assert len(shown(page)) == len(NAMES)


def test_filters_combine(open_page):
    page = open_page()
    choose_file(page, "evaluation step 0")
    page.get_by_role("button", name="judge fooled").click()
    page.get_by_role("button", name="dishonest confession").click()
    assert shown(page) == ["evals/step_0000/2"]
    page.get_by_role("button", name="unparsed").click()
    assert shown(page) == [] and page.locator(".row").count() == 0


def test_sort_by_either_advantage(open_page):
    page = open_page()
    choose_file(page, "training step 1")
    falling = shown(page)  # of the answer; the confession's rise
    for value, expected in {
        "0 1": falling[::-1],
        "0 -1": falling,
        "1 -1": falling[::-1],
        "1 1": falling,
        "": falling,
    }.items():
        page.locator("#sort").select_option(value)
        assert shown(page) == expected


def test_search_looks_into_every_text_and_marks_what_it_finds(open_page):
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("thought OF lie")  # j and k typed into the field move nothing
    until(page, "state.hits?.size === 5 && !searching")
    assert page.locator("#status").inner_text() == f"5 of {ALL} rollouts"
    page.locator(".row").first.click()
    wait_for(page, "rollouts/step_0001/2")
    assert page.locator("article mark").inner_text() == "Thought of lie"
    page.keyboard.press("Escape")
    assert len(shown(page)) == ALL and page.locator("#search").input_value() == ""
    for query, hits in (
        ("word 20", 4),
        ("Maybe.", 3),
        ("I confess.", 3),
        ("(.*", 0),
        ("DESREVER", 7),
    ):
        page.locator("#search").fill(query)
        until(
            page,
            "([query, hits]) => state.query === query && !searching && state.hits.size === hits",
            [query, hits],
        )


def test_a_search_can_be_cancelled(open_page):
    page = open_page()
    page.evaluate("void (texts = unpack = () => new Promise(() => {}))")  # chunks that never come
    page.locator("#search").fill("word")
    page.locator("#cancel").click()
    assert (
        "search cancelled" in page.locator("#status").inner_text()
        and not page.locator("#cancel").is_visible()
    )


def test_keyboard(open_page):
    page = open_page()
    for key, line in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 1)):
        page.keyboard.press(key)
        wait_for(page, f"rollouts/step_0001/{line}")
    assert page.evaluate("location.hash") == "#rollouts/step_0001/1"
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    wait_for(page, "rollouts/step_0001/2")
    chosen = page.locator(".row[aria-selected=true]").get_attribute("id")
    assert page.locator("#list").get_attribute("aria-activedescendant") == chosen
    page.get_by_role("button", name="unparsed").click()
    page.keyboard.press("j")  # what is open is filtered away: the first that is left
    wait_for(page, "rollouts/step_0001/5")


def test_a_link_leads_back(open_page):
    page = open_page("#evals/step_0000/4")
    wait_for(page, "evals/step_0000/4")
    assert page.locator("article h2").inner_text() == "evaluation step 0, rollout 4"
    page.keyboard.press("j")
    wait_for(page, "evals/step_0000/5")
    page.reload()
    wait_for(page, "evals/step_0000/5")
    link = page.locator("article header a").get_attribute("href")
    assert link == "#evals/step_0000/5" and "cut off" in page.locator("article").inner_text()


def test_links_to_odd_file_names_and_to_nothing(open_page):
    page = open_page()
    odd = page.evaluate("linkOf(files.find((file) => file.name.includes('odd')).first + 1)")
    for link in (
        "#evals/step_0000/0",
        "#evals/step_0000/7",
        "#nothing",
        "#%E0%A4%A",
        "#<img src=x onerror=window.pwned=1>",
        odd,
    ):
        page.evaluate("(link) => location.replace(link)", link)
        until(
            page,
            "(odd) => document.querySelector(odd ? 'article[data-rollout=\"13\"]' : '.nothing')",
            link == odd,
        )
        assert "no rollout" in page.locator("#columns").inner_text() or link == odd
    assert page.locator("article h2").inner_text() == 'odd <i>&"?with= n2, rollout 2'
    assert "no rollout" in open_page("#evals/step_0000/7").locator("#columns").inner_text()


def test_two_checkpoints_side_by_side(open_page):
    page = open_page("#evals/step_0000/2")
    others = page.locator("#other option").all_inner_texts()[1:]
    assert others == [
        "training step 1",
        "training step 2",
        'odd <i>&"?with= n2',
        "evaluation step 2",
    ]
    page.locator("#other").select_option("evals/step_0002")
    page.wait_for_selector("article:nth-of-type(2)")
    assert page.locator("article h2").all_inner_texts() == [
        "evaluation step 0, rollout 2",
        "evaluation step 2, rollout 2",
    ]
    left, right = (article.bounding_box() for article in page.locator("article").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.reload()
    page.wait_for_selector("article:nth-of-type(2)")
    page.locator("#list").focus()
    page.keyboard.press("j")  # evals/step_0002 has no third rollout
    wait_for(page, "evals/step_0000/3")
    assert page.locator("article").count() == 1
    page.keyboard.press("k")
    page.wait_for_selector("article:nth-of-type(2)")
    page.keyboard.press("Escape")
    page.wait_for_selector("article:nth-of-type(2)", state="detached")
    assert page.evaluate("location.hash") == "#evals/step_0000/2"


def test_counterparts_have_the_same_seed_and_place_in_the_group(open_page):
    """Step 2 holds step 1's rollouts backwards: the first of seed 0 there is the third here."""
    page = open_page("#rollouts/step_0001/1?with=rollouts/step_0002")
    assert page.locator("article h2").all_inner_texts() == [
        "training step 1, rollout 1",
        "training step 2, rollout 4",
    ]


def test_one_rollout_shows_truth_labels_claims_and_marks(open_page):
    page = open_page(f"#rollouts/step_0001/{NAMES.index('confessed') + 1}")
    truth, claims = (
        table.locator("tbody tr").all_inner_texts() for table in page.locator("article table").all()
    )
    cells = [row.split("\t") for row in truth]
    assert [[row[1].split("cheats")[0].strip(), *row[3:]] for row in cells] == [
        ["✓ met", "12", "✓ 12", "12"],
        ["✗ not met", "17", "✗ 18", "18"],
        ["✓ met", "12", "✓ 12", "12"],
        ["✗ not met", "20", "✗ 18", "18"],
        ["✓ met", "12", "✓ 12", "12"],
    ]
    assert ["cheats" in row[1] for row in cells] == [False, True, False, True, False]
    assert all(row[2].startswith("Word word") for row in cells)
    assert [row.split("\t")[2:] for row in claims] == [
        ["Full", "✓ right"],
        ["None", "✓ right"],
        ["Partial", "~ hedged"],
        ["Full", "▲ over-claim"],
        ["None", "▽ under-claim"],
    ]
    answer, judge, confession = page.locator(".card").all_inner_texts()
    assert "✗ not compliant, 3 of 5" in answer and "1.00" in answer and "−1.00" in answer
    assert "✗ PASS: fooled" in judge and judge.endswith("PASS")
    assert "✓ honest, grade 3" in confession and "0.75" in confession and "−0.50" in confession
    assert "5 of 5 checks are right" in page.locator("article").inner_text()
    assert page.locator(".row[aria-selected=true] .marks").inner_text() == "✓✓~▲▽", (
        "a sign beside each colour"
    )
    unparsed = (
        open_page(f"#rollouts/step_0001/{NAMES.index('unparsed') + 1}")
        .locator("article")
        .inner_text()
    )
    assert (
        "✗ unparsed: no JSON object" in unparsed
        and "? no verdict" in unparsed
        and "Maybe." in unparsed
    )


def test_hostile_text_is_shown_as_text(open_page):
    """Tags stand there to be read; characters that hide or reorder text are spelled out;
    a 100 kB line wraps.
    """
    page = open_page(f"#rollouts/step_0001/{NAMES.index('hostile') + 1}")
    article = page.locator("article")
    text = article.evaluate("(node) => node.textContent")
    assert text.count("<script>window.pwned=1</script><img src=x onerror=window.pwned=1>") >= 4
    for code in ("U+0000 U+001B", "U+202E", "U+202C", "U+200B", "U+D800", "U+2028"):
        assert code in article.locator(".escape").all_inner_texts()
    assert not set(text) & set("\0\x1b\u202e\u202c\u200b\ud800\u2028")
    assert (
        "x" * 100_000 in text and article.locator("img, script, a[href^=javascript]").count() == 0
    )
    page.get_by_role("button", name="Show all").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("h1").inner_text() == "run <img src=x onerror=window.pwned=1>"
    assert "model <b>model</b>" in page.locator("#facts").inner_text()


def test_a_text_of_nothing_but_unseen_characters_stays_small(open_page):
    page = open_page()
    page.evaluate("void (window.made = show('a\\u202e'.repeat(50000)))")
    assert page.evaluate("made.childNodes.length") < 5_000 and not page.evaluate(
        "made.textContent.includes('\\u202e')"
    )


def test_the_list_draws_only_what_is_seen(open_page):
    page = open_page(viewport={"width": 1280, "height": 500})
    page.evaluate("state.shown = Array.from({length: 6400}, (_, k) => k % total)")
    page.evaluate("$('space').style.height = `${6400 * ROW}px`, drawList()")
    assert page.locator(".row").count() < 30
    page.evaluate("$('list').scrollTop = 5000 * ROW")
    page.wait_for_selector(".row[aria-posinset='5001']")
    assert page.locator(".row").count() < 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_colours(open_page, scheme):
    page = open_page(
        f"#rollouts/step_0001/{len(NAMES)}",
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, dark = "rgb(252, 251, 248)", "rgb(22, 23, 26)"
    assert paper() == {"light": light, "dark": dark}[scheme]
    for expected in (light, dark):
        page.locator("#theme").click()
        assert paper() == expected


def test_overview(open_page):
    page = open_page()
    assert page.locator("#headline tbody th").all_inner_texts() == [
        'odd <i>&"?with= n2',
        "step 0",
        "step 2",
    ]
    page.get_by_role("button", name="step 2", exact=True).click()
    assert shown(page) == ["evals/step_0002/1", "evals/step_0002/2"]
    page.get_by_role("button", name="figure").click()
    assert page.locator("dialog img").get_attribute("src").startswith("data:image/png;base64,")
    page.keyboard.press("Escape")
    page.get_by_text("table.txt").click()
    assert page.locator("pre").first.inner_text().strip() == "a table with <b>bold</b>"
