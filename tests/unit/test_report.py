"""The tables and the page of an evaluation."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_store import line

from canvas_asr.evaluation.quoted import quoted_tables
from canvas_asr.evaluation.report import describe_run, render_html, render_markdown
from canvas_asr.evaluation.store import Line
from canvas_asr.evaluation.summary import compare_all, summarise

RUN = describe_run("evaluate tiny", ["tiny"], 16, 0, None)
NOISE: dict[str, Any] = {"mode": "noise-8", "passes": 8, "model": "tiny", "audio_s": 6.0, "seconds": 2.0}


def english(place: int, reference: str, hypothesis: str, **changes: Any) -> Line:
    fields = {"language": "en", "detected": "en", "reference": reference, "hypothesis": hypothesis}
    return line(place, **(NOISE | fields | changes))


LINES = [
    english(0, "one cat two dogs", "one cat two cows"),
    english(0, "one cat two dogs", "nothing like it all", mode="shuffled", shuffled=True),
    english(1, "white paper", "whitepaper", audio_s=1.0),
    english(0, "one cat two dogs", "one", condition="noise-5"),
    english(0, "", "hello you", condition="silence"),
    line(0, **NOISE, language="zh", detected="en", reference="天气很好", hypothesis="天汽很好"),
]


def rows(text: str, title: str) -> list[str]:
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [row for row in section.splitlines() if row.startswith("|")]


@pytest.fixture(scope="module")
def markdown() -> str:
    results = summarise(LINES, "primary")
    return render_markdown(RUN, results, list(compare_all(results)))


def test_overview(markdown: str) -> None:
    assert rows(markdown, "Overview") == [
        "| Test set | Language | Unit | Speakers | Clips | noise-8 | shuffled |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| set | en | WER | seen | 2 | 50.0 | 100.0 |",
        "| set | zh | CER | seen | 1 | 25.0 | – |",
    ]
    assert "Made by `evaluate tiny`" in markdown


def test_conventions_stand_side_by_side(markdown: str) -> None:
    found = rows(markdown, "The same texts by every convention")
    rates = "WER raw | CER raw | WER W | CER W | WER marks kept | CER marks kept | WER leaderboard"
    assert found[0].endswith(f"| {rates} |")
    # "dogs" to "cows" is one word of six; by the others' rules "white paper" is two errors more
    english_rates = found[2].split(" | ")[4:]
    assert english_rates[0] == "50.0"
    assert english_rates[-1] == "16.7 |"
    assert found[4].endswith("| 25.0 | – |")


def test_errors_passes_and_speed(markdown: str) -> None:
    found = rows(markdown, "Errors, passes and speed")
    assert "| 2 | 1 | 0 | 0.0 | 100.0 | 8.0 | 1.8 |" in found[2]  # 7 s of audio in 4 s
    assert len({row.count("|") for row in found}) == 1


def test_other_tables(markdown: str) -> None:
    assert rows(markdown, "By duration")[2] == "| set | en | seen | noise-8 | 100.0 (1) | 25.0 (1) |"
    assert rows(markdown, "Robustness")[2] == "| set | en | seen | noise-8 | 50.0 | 75.0 |"
    assert rows(markdown, "Where nothing is said")[2] == "| set | en | seen | noise-8 | silence | 1 | 1 | 2 |"
    difference = rows(markdown, "Differences")[2]
    assert difference.startswith("| set | en | seen | shuffled | noise-8 | +75.0 |")


def test_published_figures_stand_last_and_are_marked_as_quoted(markdown: str) -> None:
    titles = re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    assert [title.startswith("Quoted: ") for title in titles] == [False] * (len(titles) - 2) + [True] * 2
    assert markdown.count("*Quoted, not measured here*") + markdown.count("*Quoted, not measured here.*") == 2
    assert "| TransFusion | 6.7 / 8.8 | – | arXiv 2210.07677 |" in rows(markdown, titles[-2])
    assert "| FLEURS zh, CER | 29.6 |" in rows(markdown, titles[-1])


def test_the_documentation_quotes_the_same_systems() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for row in quoted_tables()[0].rows:
        assert f"| {' | '.join(row)} |" in page


def test_tables_without_rows_are_left_out() -> None:
    text = render_markdown(RUN, summarise(LINES[:1], "primary"))
    assert "Robustness" not in text
    assert "Where nothing is said" not in text
    assert "By duration" not in text


class Page(HTMLParser):
    """Collects what a page would fetch, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attributes:
            inside = value is not None and value.startswith("#")
            if name in ("src", "href", "xlink:href", "data", "action") and not inside:
                self.fetched.append(f"{tag} {value}")
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    lines = [english(i, f"text {i}", f"text {i + i % 2}", mode=m) for m in ("a", "b") for i in range(3)]
    changed = [
        english(0, "text 0", "text", mode="a", condition=c)
        for c in ("noise-20", "noise-0", "reverberation", "band-8khz", "speed-0.8", "speed-1.25")
    ]
    lines.append(english(3, "text 3", "text 3", mode="a", audio_s=1.0))
    silent = english(0, "", "oh", mode="a", condition="silence")
    hostile = english(0, "text 0", "<script>alert(1)</script>", mode="<b>x</b>")
    results = summarise([*lines, *changed, silent, hostile], "primary")
    return render_html({**RUN, "notes": ["A <b> & `c*d`."]}, results, list(compare_all(results)))


def test_the_page_fetches_nothing(page: str) -> None:
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == []
    assert not {"script", "link", "img", "iframe", "image"} & set(parser.counts)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_the_page_has_a_plot_for_each_family_of_conditions(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[:3] == ["Error rates", "Accuracy and speed", "Error rates by duration"]
    for family in ("noise", "speed", "reverberation", "band", "silence"):
        assert f"Robustness: {family}" in titles
    assert page.count("<svg") == page.count("</svg>") == 8
    for label in ("signal-to-noise ratio, dB", "silent clips with a text, %"):
        assert label in page  # as text, not as shapes


def test_every_setting_has_a_line_where_it_was_heard_and_none_elsewhere() -> None:
    many = [english(0, "a b", "a", mode=f"set-{i}") for i in range(12)]
    noisy = [english(0, "a b", "a", mode=f"set-{i}", condition="noise-0") for i in (9, 11)]
    text = render_html(RUN, summarise([*many, *noisy], "primary"))
    plots = dict(
        re.findall(r"<h2>([^<]*)</h2>\n<p class=\"note\">[^\n]*</p>\n<figure>(.*?)</figure>", text, re.S)
    )
    for i in range(12):
        assert f">set-{i}</text>" in plots["Accuracy and speed"]
        assert (f">set-{i}</text>" in plots["Robustness: noise"]) == (i in (9, 11))


def test_the_page_says_what_is_known_of_the_machine() -> None:
    run = {**RUN, "where": "a machine, 2 CPUs"}
    assert "on a machine, 2 CPUs; batch 16, seed 0." in render_markdown(run, summarise(LINES, "primary"))
    assert "None" not in describe_run("x", ["tiny"], 1, 0, None)["where"]


def test_texts_are_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "<b>" not in page
    assert "A &lt;b&gt; &amp; <code>c*d</code>." in page


def test_the_same_figures_give_the_same_page() -> None:
    results = summarise(LINES, "primary")
    assert render_html(RUN, results) == render_html(RUN, results)


def test_bars_in_names_do_not_break_tables() -> None:
    text = render_markdown(RUN, summarise([english(0, "a", "a", testset="x|y")], "primary"))
    assert "| x\\|y | en |" in text
