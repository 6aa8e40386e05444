"""The page in headless Chromium, before a server with the embedded model: what a newcomer sees and does.

Where Chromium or playwright is missing, these tests are skipped: Debian has the one as ``chromium``, and the
other is a part of the extra [dev]. Answers that a server rarely gives are made up for the browser.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from page_tools import CONTRASTS, answer_with, events_of, pass_of
from small_models import TINY

import canvas_asr

api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
pytest.importorskip("uvicorn", reason="the server is missing: pip install -e '.[dev]'")

EXAMPLES = Path(__file__).parents[2] / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RATE_HZ = 16_000
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
AS_THE_PAGE: dict[str, Any] = {"init": "noise", "steps": 8, "word_timestamps": True}
DONE = "#outcome:visible"
WAIT_MS = 60_000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing (Debian: apt-get install chromium)"),
    pytest.mark.skipif(
        not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
    ),
]


@pytest.fixture(scope="module")
def transcriber() -> canvas_asr.Transcriber:
    return canvas_asr.load("tiny")


@pytest.fixture(scope="module")
def application(transcriber: canvas_asr.Transcriber) -> Any:
    from canvas_asr.serving.app import create_app
    from canvas_asr.serving.settings import ServerSettings

    return create_app(transcriber, ServerSettings())


@pytest.fixture(scope="module")
def address(application: Any) -> Iterator[str]:
    from running_server import running

    with running(application) as address:
        yield address


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Chromium's microphone hears: one clip, then silence."""
    samples, rate_hz = soundfile.read(EXAMPLES / "de.flac")
    path = tmp_path_factory.mktemp("microphone") / "de.wav"
    soundfile.write(path, np.concatenate([samples, np.zeros(rate_hz)]), rate_hz, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def chromium(spoken: Path) -> Iterator[Any]:
    arguments = [
        "--no-sandbox",  # tests may run as root
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}%noloop",
    ]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; what it must never do, in any test, is looked for at the end."""
    contexts, wrong = [], []

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def open_(**options: Any) -> Any:
        context = chromium.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if is_elsewhere(request.url) else None)
        page.goto(address)
        return page

    def is_elsewhere(url: str) -> bool:
        return not url.startswith((f"{address}/", "blob:", "data:"))

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def choose(page: Any, file: Path | dict[str, Any]) -> None:
    page.set_input_files("#file", file)


def drop(page: Any, file: Path) -> None:
    made = """([name, bytes]) => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([new Uint8Array(bytes)], name));
        return dropped;
    }"""
    dropped = page.evaluate_handle(made, [file.name, list(file.read_bytes())])
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})


def words_of(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".word").all_inner_texts()]


def long_file(folder: Path, n_clips: int) -> Path:
    clips = [soundfile.read(EXAMPLES / f"{code}.flac") for code in ("en", "de", "fr", "es")]
    rate_hz = clips[0][1]
    parts = [part for place in range(n_clips) for part in (clips[place % 4][0], np.zeros(rate_hz))]
    path = folder / "long.flac"
    soundfile.write(path, np.concatenate(parts), rate_hz)
    return path


def test_uploaded_file_is_denoised_and_its_words_are_heard(
    open_page: Callable[..., Any], transcriber: canvas_asr.Transcriber, tmp_path: Path
) -> None:
    page = open_page()
    page.evaluate(
        """() => {
            window.shown = new Set();
            const look = () => window.shown.add(document.querySelector(".tokens")?.textContent ?? "");
            new MutationObserver(look).observe(
                document.getElementById("canvas"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    choose(page, EXAMPLES / "de.flac")
    page.wait_for_selector(DONE)
    expected = transcriber.transcribe(EXAMPLES / "de.flac", **AS_THE_PAGE)
    assert page.locator("#canvas .words").inner_text() == expected.text
    assert words_of(page) == [word.text for word in expected.words or ()]
    assert page.locator("#canvas").get_by_role("button").all_inner_texts() == words_of(page)
    assert page.evaluate("shown.size") > 3  # its start, and passes that differ
    assert page.locator("#status").inner_text().startswith("Done.")
    facts = page.locator("#facts").inner_text()
    assert all(told in facts for told in ("German", str(expected.passes), "× real time"))

    place = 2
    page.locator(".word").nth(place).click()
    page.wait_for_selector(".word.playing")
    begun = page.evaluate("document.getElementById('audio').currentTime")
    assert begun >= (expected.words or ())[place].start - 0.01

    for kind in ("txt", "srt", "vtt", "json"):
        with page.expect_download() as download:
            page.click(f"[data-format={kind}]")
        assert download.value.suggested_filename == f"de.{kind}"
        text = Path(download.value.path()).read_text(encoding="utf-8")
        if kind == "json":
            assert json.loads(text)["words"] == [word.to_dict() for word in expected.words or ()]
        else:
            assert text == getattr(expected, f"to_{kind}")()


def test_passes_are_watched_again(open_page: Callable[..., Any]) -> None:
    page = open_page(reduced_motion="reduce")
    choose(page, EXAMPLES / "es.flac")
    page.wait_for_selector(DONE)
    text = page.locator("#canvas .words").inner_text()
    page.locator("#pass").fill("0")
    start = page.locator("#canvas .tokens:visible").inner_text()
    assert start not in ("", text)
    assert page.locator("#pass-name").inner_text() == "start"
    page.locator("#pass").press("End")
    assert page.locator("#canvas .words").inner_text() == text
    assert page.locator("#canvas .tokens:visible").count() == 0


def test_recording(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["microphone"])
    page.click("#record")
    page.wait_for_timeout(3000)
    page.click("#stop")
    page.wait_for_selector(DONE)
    assert words_of(page)
    assert page.locator("#name").inner_text().startswith("recording ")
    length = page.evaluate("document.getElementById('audio').duration")
    assert 2.5 < length < 10
    page.click("#record")
    page.click("#discard")
    assert page.locator("#record").is_visible()


def test_text_file_called_wav_is_one_error(open_page: Callable[..., Any]) -> None:
    page = open_page()
    choose(page, {"name": "notes.wav", "mimeType": "audio/wav", "buffer": b"these are words " * 100})
    page.wait_for_selector("#error:visible")
    message = page.locator("#error").inner_text()
    assert message.startswith("notes.wav: ")
    assert "decode" in message
    assert not page.locator("#work").is_visible()
    drop(page, EXAMPLES / "zh.flac")
    page.wait_for_selector(DONE)
    assert not page.locator("#error").is_visible()


def test_long_file_comes_in_segments(
    open_page: Callable[..., Any], transcriber: canvas_asr.Transcriber, tmp_path: Path
) -> None:
    path = long_file(tmp_path, 10)
    page = open_page()
    choose(page, path)
    page.wait_for_selector(".word")  # of the chunks that are done, while others are not
    assert page.locator("#cancel").is_visible()
    assert str(page.locator("#progress").get_attribute("aria-valuetext")).endswith(" of 0:36")
    page.wait_for_selector(DONE)
    expected = transcriber.transcribe(path, **AS_THE_PAGE)
    assert len(expected.segments) > 1
    assert page.locator("#canvas .words").all_inner_texts() == [s.text for s in expected.segments if s.text]
    with page.expect_download() as download:
        page.click("[data-format=srt]")
    assert Path(download.value.path()).read_text(encoding="utf-8") == expected.to_srt()


def test_cancelled_work_ends_on_the_server(
    open_page: Callable[..., Any], application: Any, tmp_path: Path
) -> None:
    page = open_page()
    before = application.state.scheduler.stats.audio_s
    choose(page, long_file(tmp_path, 80))
    page.wait_for_selector(".token")
    page.click("#cancel")
    assert page.locator("#status").inner_text() == "Cancelled."
    assert page.evaluate("document.activeElement.id") == "name"
    deadline = time.monotonic() + 10
    while application.state.scheduler.stats.working and time.monotonic() < deadline:
        time.sleep(0.02)
    assert application.state.scheduler.stats.working == 0
    assert application.state.scheduler.stats.audio_s < before + 200  # of 286 s
    choose(page, EXAMPLES / "en.flac")
    page.wait_for_selector(DONE)


def test_what_came_already_is_cancelled_too(open_page: Callable[..., Any]) -> None:
    page = open_page()
    answer_with(page, *[pass_of("All of this is here.", step) for step in range(1, 60)], *events_of("Done."))
    choose(page, EXAMPLES / "en.flac")
    page.wait_for_selector(".token")
    page.click("#cancel")
    assert page.locator("#status").inner_text() == "Cancelled."
    assert not page.locator("#cancel").is_visible()
    assert page.locator("#canvas .word, #canvas .token").count() == 0
    assert not page.locator("#outcome").is_visible()


def test_what_is_offered_is_what_the_model_can_do(open_page: Callable[..., Any]) -> None:
    def answer(route: Any) -> None:
        model = {"id": "other", "object": "model", "languages": languages, "has_draft": False}
        route.fulfill(json={"object": "list", "data": [model]})

    page = open_page()
    page.wait_for_selector("#language [value=hi]", state="attached")
    assert page.locator("#start [value='draft 1']").count() == 1
    for languages in (["it", "da"], []):
        page.route("**/v1/models", answer)
        page.reload()
        page.wait_for_function("document.getElementById('model').textContent.includes('other')")
        names = ["Detect", *["Danish", "Italian"][: len(languages)]]
        assert page.locator("#language option").all_text_contents() == names
        assert page.locator("#language").is_visible() == bool(languages)
        assert page.locator("#start [value='draft 1']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_no_horizontal_scroll_and_enough_contrast(
    open_page: Callable[..., Any], scheme: str
) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce", **PHONE)
    answer_with(page, *events_of("Donaudampfschifffahrtsgesellschaftskapitänsmütze and more " * 6))
    choose(page, EXAMPLES / "de.flac")
    page.wait_for_selector(DONE)
    page.check("#times")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]
    pale = page.evaluate(CONTRASTS)
    assert {name: ratio for name, ratio in pale.items() if ratio < 4.5} == {}


def test_keyboard_alone(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.on("filechooser", lambda chooser: chooser.set_files(EXAMPLES / "fr.flac"))
    tab_to(page, "#choose")
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE)
    tab_to(page, ".word")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    assert page.locator("#readout").inner_text().startswith(words_of(page)[2])
    page.keyboard.press("Enter")
    page.wait_for_selector(".word.playing")
    page.keyboard.press("Escape")
    assert page.evaluate("document.getElementById('audio').paused")
    tab_to(page, "[data-format=vtt]")
    with page.expect_download():
        page.keyboard.press("Enter")


def tab_to(page: Any, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"the Tab key never comes to {selector}")


def test_transcript_is_text_whatever_it_says(open_page: Callable[..., Any]) -> None:
    said = "<script>document.title='owned'</script> <img src=x onerror=alert(1)> & <b>bold</b>"
    page = open_page()
    answer_with(page, *events_of(said))
    choose(page, {"name": f"{said}.wav".replace("/", ""), "mimeType": "audio/wav", "buffer": b"RIFF"})
    page.wait_for_selector(DONE)
    assert page.locator("#canvas .words").inner_text() == said
    assert page.title() == "canvas-asr"
    assert page.locator("main script, main img, main b b, #canvas b").count() == 0


def test_what_fails_on_the_way_leaves_what_was_written(open_page: Callable[..., Any]) -> None:
    page = open_page()
    segment, _ = events_of("So far so good.")
    error = {"error": {"message": "The audio is damaged.", "type": "server_error"}}
    answer_with(page, segment, error)
    choose(page, EXAMPLES / "en.flac")
    page.wait_for_selector("#error:visible")
    assert page.locator("#error-text").inner_text() == "en.flac: The audio is damaged."
    assert page.locator("#canvas .words").inner_text() == "So far so good."
    page.unroute("**/v1/audio/transcriptions")
    page.click("#retry")
    page.wait_for_selector(DONE)


def test_key_is_asked_for_where_there_is_one(open_page: Callable[..., Any]) -> None:
    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            return route.continue_()
        body = {"error": {"message": "The API key is not valid.", "type": "invalid_request_error"}}
        return route.fulfill(status=401, json=body)

    page = open_page()
    assert not page.locator("#key-form").is_visible()
    page.route("**/v1/**", guard)
    page.reload()
    for key in ("wrong", "right"):
        page.wait_for_selector("#key-form:visible")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        if key == "wrong":
            page.wait_for_selector("#error:visible")
    page.wait_for_selector("#key-form", state="hidden")
    choose(page, EXAMPLES / "en.flac")
    page.wait_for_selector(DONE)
