"""The benchmarks of hotwords and languages: what they count, and their pages."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from canvas_asr.languages import LANGUAGES
from canvas_asr.manifest import Clip, write_manifest
from canvas_asr.result import Transcript
from canvas_asr.synthesis import espeak


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def hotwords() -> ModuleType:
    import hotwords

    return hotwords


@pytest.fixture
def languages() -> ModuleType:
    import languages

    return languages


class Scripted:
    """Hears every clip as what it is told, in a language it is told."""

    max_audio_s = 5.0

    def __init__(self, texts: list[str], language: str = "en") -> None:
        self.texts = texts
        self.language = language
        self.asked: list[dict] = []

    def transcribe_arrays(self, arrays, **options):
        self.asked.append(options)
        sure = {code: float(code == self.language) for code in LANGUAGES}
        return [
            Transcript(text, self.language, 1.0, (), 1.0, 1, 1.0, 0.1, language_probabilities=sure)
            for text, _ in zip(self.texts, arrays, strict=False)
        ]


# Hotwords


def test_names_are_whole_words_in_any_case(hotwords: ModuleType) -> None:
    assert hotwords.times_read("Tim Kan", "So tim kan, Tim-Kan and Tim Kant!") == 2
    assert hotwords.times_read("柳溪镇", "我去柳溪镇。柳溪。") == 1
    assert hotwords.times_read("झिलमोरा", "कल झिलमोरा।") == 1


def test_names_that_were_not_said_are_false(hotwords: ModuleType) -> None:
    words = {"en": {"names": ["Kent", "Bern"], "others": ["Ulm"]}}
    silence = np.zeros(10, np.float32)
    said = [
        hotwords.Sentence("I saw Kent.", "en", "Kent", silence),
        hotwords.Sentence("I saw Bern.", "en", "Bern", silence),
        hotwords.Sentence("I saw him.", "en", None, silence),
    ]
    found = hotwords.count(said, ["I saw Kent Kent", "I Ulm saw burn", "I saw Bern"], words)
    assert found == {"n_sentences": 3, "n_names": 2, "n_found": 1, "n_false": 3}


def test_the_lists_are_as_long_in_every_language(hotwords: ModuleType) -> None:
    words = json.loads(hotwords.SENTENCES.read_text(encoding="utf-8"))
    assert tuple(words) == LANGUAGES
    for language, own in words.items():
        names = [*own["names"], *own["others"]]
        assert len(set(names)) == 20, language
        assert all("{}" in form for form, _ in own["sentences"])
        texts = [form.format(common) for form, common in own["sentences"]]
        assert not any(hotwords.times_read(name, text) for name in names for text in texts)


def test_the_page_has_recall_and_false_insertions_by_boost(hotwords: ModuleType, tmp_path: Path) -> None:
    if not espeak.available():
        pytest.skip("espeak-ng is not installed")
    model = Scripted(["I met Zelkova Brandt in the garden this morning.", "Wexmoor"])
    out = tmp_path / "hotwords.json"
    options = [
        "tiny",
        "--n",
        "1",
        "--languages",
        "en",
        "--decodings",
        "draft",
        "--boosts",
        "2",
        "--out",
        str(out),
    ]
    assert hotwords.main(options, lambda _: model) == 0
    assert [options.get("hotword_boost") for options in model.asked[1:]] == [None, 2.0]
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| off | 100 % | 1/1 | 50.0 | 0.0 % |" in page
    assert f"python benchmarks/hotwords.py {' '.join(options)}" in page
    assert json.loads(out.read_text(encoding="utf-8"))["runs"]["draft"][1]["all"]["n_found"] == 1


# Languages


def test_confusions_are_counted_by_kind_of_speech(languages: ModuleType, tmp_path: Path) -> None:
    for name, codes in (("synthetic", ["en", "en", "de"]), ("kerstin", ["de", "de"])):
        folder = tmp_path / name
        folder.mkdir()
        clips = []
        for k, code in enumerate(codes):
            path = folder / f"{k}.wav"
            soundfile.write(path, np.zeros(16_000 * (9 if (name, k) == ("kerstin", 1) else 1)), 16_000)
            clips.append(Clip(path, "a", code))
        silent = Clip(folder / "0.wav", "", "fr")
        write_manifest(folder / "manifest.jsonl", [*clips, silent])
    out = tmp_path / "languages.json"
    assert (
        languages.main(
            ["tiny", "--testsets", str(tmp_path), "--out", str(out)], lambda _: Scripted(["a"] * 9)
        )
        == 0
    )
    kinds = json.loads(out.read_text(encoding="utf-8"))["kinds"]
    assert kinds["synthetic"]["right"] == pytest.approx(2 / 3)
    assert kinds["synthetic"]["by_language"]["de"] == {
        "n_clips": 1,
        "right": 0.0,
        "probability": 0.0,
        "found": {"en": 1},
    }
    assert kinds["real"]["n_clips"] == 1  # the other is longer than the model takes
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "**Missed**: 66.7 %" in page
    assert "| en | 2 | 100.0 % | 1.00 | 2 | 0 | 0 | 0 | 0 | 0 |" in page
    with pytest.raises(SystemExit):
        languages.main(["tiny", "--testsets", str(tmp_path / "none")])
