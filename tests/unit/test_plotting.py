"""Pictures of how a clip was transcribed: what stands where, and what is said where none can be drawn."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from made_up_clips import tones
from small_models import small_model

from canvas_asr import Transcriber, cli
from canvas_asr.canvas_view import CanvasView
from canvas_asr.cli import build_parser
from canvas_asr.cli.plot import check_output
from canvas_asr.errors import AudioError, CanvasASRError, OptionError
from canvas_asr.modeling import CanvasASRModel
from canvas_asr.processing import CanvasASRProcessor
from canvas_asr.result import Token, Transcript, Word

pytest.importorskip("matplotlib")

from canvas_asr import plot_fonts, plotting
from canvas_asr.canvas_table import MAX_ROWS, Cell, Row, Ruler, lay_table, table_rows
from canvas_asr.plotting import Watched, draw, watch

# Machines differ in their fonts.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from")
RATE_HZ = 16_000
TEXTS = (" guten", " Tag", "今天", "हिन्दी")


def view(step: int, texts: tuple[str, ...] = TEXTS, *, last: bool = False) -> CanvasView:
    tokens = tuple(Token(i, text, (i + 1) / 4) for i, text in enumerate(texts))
    kept = None if last else tuple(i % 2 == 1 for i in range(len(texts)))
    return CanvasView(0, step, tokens, kept, ("x", "", "गु", " yz", "w"), "de")


@pytest.fixture
def watched() -> Watched:
    views = [view(1), view(2, last=True)]
    words = (Word("guten", 0.2, 0.5, 0.25), Word("Tag", 0.5, 0.8, 0.5), Word("今天", 0.9, 1.2, 0.75))
    tokens = views[-1].tokens
    transcript = Transcript("guten Tag今天हिन्दी", "de", 0.9, tokens, 0.6, 2, 1.5, 0.1, words=words)
    posteriors = np.linspace(0, 1, 19 * 5).reshape(19, 5)
    return Watched("clip.wav", tones(1.5, 1), transcript, views, posteriors, 0.08)


def figure_of(watched: Watched) -> Any:
    return plotting._figure(watched, table_rows(watched.views, watched.transcript))


def written(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


# What is watched


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    sf.write(path, tones(1.2, 3), RATE_HZ)
    return path


def test_a_clip_is_watched(model: CanvasASRModel, processor: CanvasASRProcessor, clip: Path) -> None:
    found = watch(Transcriber(model, processor), clip, steps=3)
    assert (found.name, len(found.samples), len(found.views)) == ("clip.wav", 1.2 * RATE_HZ, 3)
    assert found.transcript.words is not None
    assert found.posteriors is not None
    assert found.posteriors.shape == (15, 1 + len(found.transcript.tokens))
    assert (found.posteriors > 0).all()
    once = found.posteriors[:, [0, *{t.id: i + 1 for i, t in enumerate(found.transcript.tokens)}.values()]]
    assert (once.sum(axis=1) < 1).all()  # of the whole vocabulary


def test_a_model_without_a_ctc_tap_has_no_posteriors_and_is_drawn_all_the_same(
    processor: CanvasASRProcessor, clip: Path, tmp_path: Path
) -> None:
    found = watch(Transcriber(small_model(has_draft=False), processor), clip, steps=1)
    assert (found.posteriors, found.transcript.words) == (None, None)
    assert len(figure_of(found).axes) == 3


def test_a_clip_that_is_too_long_is_refused(
    model: CanvasASRModel, processor: CanvasASRProcessor, tmp_path: Path
) -> None:
    sf.write(tmp_path / "long.wav", np.zeros(31 * RATE_HZ, np.float32), RATE_HZ)
    with pytest.raises(AudioError, match=r"long\.wav: 31\.0 s of audio"):
        watch(Transcriber(model, processor), tmp_path / "long.wav")


# What is drawn


def test_words_stand_under_their_sound(watched: Watched) -> None:
    sound, words, heard, _ = figure_of(watched).axes
    assert words.get_xlim() == sound.get_xlim() == heard.get_xlim() == (0, 1.5)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in words.patches]
    assert spans == [pytest.approx((word.start, word.end)) for word in watched.transcript.words or ()]
    assert written(words) == ["guten", "Tag", "今天"]
    lines = [line.get_xdata()[0] for line in sound.lines]
    assert lines == [0.2, 0.5, 0.9]


def test_posteriors_stand_at_their_audio_tokens_the_blank_below(watched: Watched) -> None:
    heard = figure_of(watched).axes[2]
    (image,) = heard.images
    assert image.get_extent()[:2] == [0.0, pytest.approx(19 * 0.08)]
    assert np.array_equal(image.get_array()[0], watched.posteriors[:, 1])  # type: ignore[index]
    assert np.array_equal(image.get_array()[-1], watched.posteriors[:, 0])  # type: ignore[index]
    assert [label.get_text() for label in heard.get_yticklabels()] == [
        *(text.strip() for text in TEXTS),
        "blank",
    ]


def test_the_canvas_stands_pass_by_pass(watched: Watched) -> None:
    table = figure_of(watched).axes[3]
    cells = [text.strip() for text in TEXTS]
    assert written(table)[:15] == ["start", "x", "░", "गु", "yz", "pass 1", *cells, "pass 2", *cells]


def test_crowded_words_are_turned(watched: Watched) -> None:
    words = tuple(Word(f"spazieren{i}", i / 30, (i + 1) / 30, 0.5) for i in range(30))
    crowded = replace(watched, transcript=replace(watched.transcript, words=words))
    axes = figure_of(crowded).axes[1]
    assert {text.get_rotation() for text in axes.texts} == {90.0}
    renderer = axes.figure.canvas.get_renderer()
    box = axes.get_window_extent(renderer)
    assert all(text.get_window_extent(renderer).y0 >= box.y0 - 1 for text in axes.texts)


@pytest.mark.parametrize("n_samples", [0, 700])
def test_silence_and_very_short_clips_are_drawn(tmp_path: Path, n_samples: int) -> None:
    silent = Transcript("", "", 0.0, (), 0.0, 1, n_samples / RATE_HZ, 0.0, words=())
    nothing = CanvasView(0, 1, (), None, ())
    posteriors = np.ones((1, 1)) if n_samples else None
    quiet = np.zeros(n_samples, np.float32)
    draw(Watched("a.wav", quiet, silent, [nothing], posteriors, 0.08), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_clip_gives_the_same_file_and_nothing_else(watched: Watched, tmp_path: Path) -> None:
    for kind in ("svg", "png"):
        first, second = tmp_path / f"1.{kind}", tmp_path / f"2.{kind}"
        draw(watched, first)
        draw(watched, second)
        assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_disk_that_is_full_leaves_no_half_picture(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_self: object, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill)
    with pytest.raises(OSError, match="No space"):
        draw(watched, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# The table


def test_of_many_passes_some_are_shown_the_first_and_the_last_among_them() -> None:
    views = [view(step, last=step == 48) for step in range(1, 49)]
    rows = table_rows(views, Transcript("", "", 0.0, (), 0.0, 48, 1.0, 0.0))
    assert len(rows) == MAX_ROWS
    assert (rows[0].name, rows[1].name, rows[-1].name) == ("start", "pass 1", "pass 48")
    assert all(cell.kept for cell in rows[-1].cells)
    assert [cell.kept for cell in rows[1].cells] == [False, True, False, True]


def test_a_draft_that_is_the_answer_is_the_only_row() -> None:
    tokens = (Token(1, "ja", 0.5),)
    (row,) = table_rows([], Transcript("ja", "", 0.0, tokens, 0.5, 0, 1.0, 0.0))
    assert row == Row("draft", (Cell("ja", 0.5),))


def test_a_long_text_is_broken_into_bands() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    ruler = Ruler(figure, FigureCanvasAgg(figure).get_renderer())
    rows = [Row("pass 1", (Cell("spazieren", 0.5),) * 50), Row("pass 2", (Cell("a", 0.5),) * 3)]
    table = lay_table(rows, ruler, 10.0)
    assert [place for places, _ in table.bands for place in places] == list(range(50))
    assert all(sum(widths) <= 10.0 for _, widths in table.bands)
    assert all(width > ruler.width("spazieren") for _, widths in table.bands for width in widths)
    assert len(table.bands) > 1
    assert lay_table(rows[1:], ruler, 10.0).scale > 1


# Fonts


def test_letters_without_a_font_are_named_and_noise_is_not(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    only = next(plot_fonts._installed())
    monkeypatch.setattr(plot_fonts, "_installed", lambda: iter([only]))
    missing = draw(watched, tmp_path / "a.png")
    assert missing == set("今天हिन्दी")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    blocked = Row("start", (Cell("गa", None),)).without({"ग"})
    assert blocked.cells[0].text == "░a"


def test_plain_letters_need_one_font() -> None:
    assert plot_fonts.choose_fonts("Mañana, près – Straße\n") == ([plot_fonts.FIRST], set())


# The command


@pytest.fixture
def _loads_small(
    model: CanvasASRModel, processor: CanvasASRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas_asr.transcriber.load", lambda *_, **__: Transcriber(model, processor))


@pytest.mark.usefixtures("_loads_small")
def test_the_command_draws_and_says_where(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", str(clip), "--steps", "2", "--language", "de"]) == 0
    assert capsys.readouterr().out == "clip.png\n"
    assert (tmp_path / "clip.png").stat().st_size > 10_000
    assert cli.main(["plot", str(clip)]) == 1
    assert "clip.png exists; --overwrite replaces it" in capsys.readouterr().err
    assert cli.main(["plot", str(clip), "--overwrite", "--steps", "1", "-o", "b.svg"]) == 0
    assert cli.main(["plot", "none.wav", "-o", "c.png"]) == 1
    assert "none.wav" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.gif: a picture is \.png, \.svg, \.pdf"):
        check_output(tmp_path / "a.gif", overwrite=False)
    with pytest.raises(FileNotFoundError, match="none"):
        check_output(tmp_path / "none" / "a.png", overwrite=False)
    (tmp_path / "d.png").mkdir()
    with pytest.raises(IsADirectoryError):
        check_output(tmp_path / "d.png", overwrite=True)


def test_the_page_on_watching_gives_commands_that_exist_and_a_small_picture() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "watching.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ {4}canvas-asr (.*)$", text, re.MULTILINE)
    for command in commands:
        build_parser().parse_args(shlex.split(command))
    assert "plot examples/de.flac --steps 4 -o docs/watching.png" in commands
    assert (docs / "watching.png").stat().st_size <= 150_000


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("canvas_asr.transcriber.load", None)
    assert cli.main(["plot", "clip.wav", "-o", str(tmp_path / "a.png")]) == 1
    advice = "a plot needs matplotlib; install it with: pip install 'canvas-asr[plot]'"
    assert capsys.readouterr().err == f"canvas-asr: error: {advice}\n"
    with pytest.raises(CanvasASRError):
        plotting.load_matplotlib()
