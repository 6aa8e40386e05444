"""Utterances, manifests and the endless data set."""

from __future__ import annotations

import gzip
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from canvas_asr.errors import DataError, OptionError
from canvas_asr.manifest import read_manifest
from canvas_asr.synthesis import espeak, flite
from canvas_asr.synthesis.augment import AugmentationConfig
from canvas_asr.synthesis.corpus import Synthesizer, Utterance, synthesize_manifest, write_manifest
from canvas_asr.synthesis.dataset import SyntheticSpeech
from canvas_asr.synthesis.voices import TEST, TRAIN, voices

pytestmark = pytest.mark.skipif(not espeak.available(), reason="needs espeak-ng: apt-get install espeak-ng")

SENTENCES = [
    ("Guten Morgen.", "de"),
    ("Buenos días.", "es"),
    ("", "fr"),
    ("Bonjour à tous.", "fr"),
    ("...", "en"),
]


def test_an_utterance_is_audio_with_phoneme_times_in_it() -> None:
    utterance = Synthesizer("train").say("Guten Morgen, liebe Leute.", "de", np.random.default_rng(1))
    assert utterance.voice in TRAIN["de"]
    assert utterance.samples.dtype == np.float32
    assert 0.05 < np.abs(utterance.samples).max() <= 1
    assert 0.8 < utterance.duration_s < 5
    times = [time for _, time in utterance.phonemes]
    assert times == sorted(times)
    assert times[-1] <= utterance.duration_s
    assert [s for s, _ in utterance.phonemes if s][:4] == ["ɡ", "uː", "t", "ə"]


def test_phoneme_times_follow_speed_and_padding() -> None:
    nothing: dict[str, Any] = {
        "noise_share": 0,
        "reverberation_share": 0,
        "colour_share": 0,
        "gain_db": (0, 0),
    }
    config = AugmentationConfig(**nothing, speed=(0.8, 0.8), padding_s=(0.5, 0.5))
    plain = Synthesizer().say("Guten Morgen.", "de", np.random.default_rng(1))
    slow = Synthesizer(augmentation=config).say("Guten Morgen.", "de", np.random.default_rng(1))
    assert slow.voice == plain.voice
    assert slow.duration_s == pytest.approx(plain.duration_s / 0.8 + 1, rel=0.05)
    assert [s for s, _ in slow.phonemes] == [s for s, _ in plain.phonemes]
    assert slow.phonemes[0][1] == pytest.approx(0.5 + plain.phonemes[0][1] / 0.8, abs=0.01)


def test_test_voices_are_never_training_voices() -> None:
    heard = {Synthesizer("test").say("Hola.", "es", np.random.default_rng(i)).voice for i in range(20)}
    assert heard <= set(TEST["es"])
    assert len(heard) > 5
    accent = Synthesizer("test-accent").say("Bonjour.", "fr", np.random.default_rng(0)).voice
    assert accent in voices("fr", "test-accent")


def test_recorded_voices_speak_when_asked_for() -> None:
    if not flite.available():
        pytest.skip("needs flite: apt-get install flite")
    utterance = Synthesizer("test", recorded_share=1).say("Good morning.", "en")
    assert utterance.voice == "flite:awb"
    assert utterance.duration_s > 0.5


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(DataError, match="nothing in"):
        Synthesizer().say("...", "en")
    with pytest.raises(DataError, match="'xx'"):
        Synthesizer().say("hello", "xx")
    with pytest.raises(DataError, match="'dev'"):
        Synthesizer("dev")
    with pytest.raises(OptionError, match="recorded_share"):
        Synthesizer(recorded_share=2)


def test_an_empty_text_is_a_clip_without_speech() -> None:
    clip = Synthesizer().say("", "de", np.random.default_rng(0))
    assert (clip.text, clip.voice, clip.phonemes) == ("", "none", [("", 0.0)])
    assert clip.duration_s > 0.4


def test_a_manifest_names_files_that_hold_what_it_says(tmp_path: Path) -> None:
    summary = write_manifest(tmp_path, SENTENCES, seed=3)
    assert (summary.n_written, summary.n_skipped, summary.complete) == (4, 1, True)
    entries = list(read_manifest(tmp_path / "manifest.jsonl"))
    assert [(e.text, e.language) for e in entries] == SENTENCES[:4]
    for entry in entries:
        with wave.open(str(entry.audio)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
            assert file.getnframes() / 16_000 == pytest.approx(entry.duration_s, abs=1e-3)
        assert entry.split == "train"
        assert entry.phonemes
        assert entry.phonemes[-1][1] <= entry.duration_s
    skipped = json.loads((tmp_path / "skipped.jsonl").read_text())
    assert skipped["text"] == "..."
    assert "nothing in" in skipped["reason"]


def test_a_stopped_manifest_goes_on(tmp_path: Path) -> None:
    first = write_manifest(tmp_path, SENTENCES, n=2, seed=3)
    assert (first.n_written, first.complete) == (2, True)
    assert len(list(tmp_path.rglob("*.wav"))) == 2  # what was made ahead of the limit is gone
    manifest = tmp_path / "manifest.jsonl"
    before = manifest.read_bytes()
    manifest.write_bytes(before + b'{"index": 2, "te')  # killed while writing
    second = write_manifest(tmp_path, SENTENCES, seed=3)
    assert (second.n_earlier, second.n_written) == (2, 4)
    assert manifest.read_bytes().startswith(before)
    assert len({entry.audio for entry in read_manifest(manifest)}) == 4
    third = write_manifest(tmp_path, SENTENCES, seed=3)
    assert (third.n_earlier, third.n_written, third.n_skipped) == (4, 4, 1)


def test_a_folder_is_not_mixed_with_other_options_or_sentences(tmp_path: Path) -> None:
    write_manifest(tmp_path, SENTENCES[:1], seed=3)
    with pytest.raises(DataError, match="seed"):
        write_manifest(tmp_path, SENTENCES[:1], seed=4)
    with pytest.raises(DataError, match="Guten Morgen"):
        write_manifest(tmp_path, [("Gute Nacht.", "de")], seed=3)
    with pytest.raises(OptionError, match="positive"):
        write_manifest(tmp_path, SENTENCES, n=0)


def test_processes_write_what_one_process_writes(tmp_path: Path) -> None:
    sentences = [(f"Satz Nummer {i}.", "de") for i in range(12)]
    write_manifest(tmp_path / "one", sentences)
    write_manifest(tmp_path / "two", sentences, n_workers=2, chunk=3)
    one, two = (list(read_manifest(tmp_path / name / "manifest.jsonl")) for name in ("one", "two"))
    assert [(e.text, e.speaker) for e in one] == [(e.text, e.speaker) for e in two]
    for a, b in zip(one, two, strict=True):
        assert a.duration_s == pytest.approx(b.duration_s, rel=0.1)  # the library remembers (see espeak.py)


def test_synthesize_manifest_mixes_languages_from_files(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("Guten Morgen.\n\nGute Nacht.\n", "utf-8")
    (tmp_path / "es.txt.gz").write_bytes(gzip.compress("Buenos días.\n".encode()))
    texts = {"de": tmp_path / "de.txt", "es": tmp_path / "es.txt.gz"}
    summary = synthesize_manifest(
        tmp_path / "out", texts, n=20, recorded_share=0, non_speech_share=0.3, augment=True
    )
    entries = list(read_manifest(tmp_path / "out" / "manifest.jsonl"))
    assert summary.complete
    assert len(entries) == 20
    assert sum(e.language == "de" for e in entries) == 10
    assert {e.text for e in entries} == {"", "Guten Morgen.", "Gute Nacht.", "Buenos días."}
    assert 1 <= sum(e.text == "" for e in entries) <= 12


@pytest.mark.parametrize(
    ("texts", "n", "message"),
    [
        ({}, 1, "no language"),
        ({"xx": "de.txt"}, 1, "xx"),
        ({"de": "none.txt"}, 1, "none.txt"),
        ({"de": "de.txt"}, None, "hours"),
    ],
)
def test_synthesize_manifest_refuses_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str], n: int | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "de.txt").write_text("Guten Morgen.\n", "utf-8")
    with pytest.raises((DataError, OptionError), match=message):
        synthesize_manifest("out", texts, n=n)


TEXTS = {"de": ["Guten Morgen.", "Gute Nacht."], "es": ["Buenos días."]}


def _key(utterance: Utterance) -> tuple[str, str, str]:
    return utterance.text, utterance.voice, utterance.language


def test_the_stream_is_the_same_for_any_number_of_workers_and_continues() -> None:
    speech = SyntheticSpeech(TEXTS, seed=5, non_speech_share=0.3, n=12)
    alone = [_key(u) for u in speech]
    assert len(alone) == 12
    assert {u[2] for u in alone} == {"de", "es"}
    assert 1 <= sum(u[0] == "" for u in alone) <= 8
    workers = DataLoader(speech, batch_size=None, num_workers=2)
    assert [_key(u) for u in workers] == alone
    rest = SyntheticSpeech(TEXTS, seed=5, non_speech_share=0.3, n=4, start=8)
    assert [_key(u) for u in rest] == alone[8:]
    assert [_key(u) for u in SyntheticSpeech(TEXTS, seed=6, n=12)] != alone


def test_workers_repeat_their_samples() -> None:
    speech = SyntheticSpeech(TEXTS, seed=5, n=8, augmentation=AugmentationConfig())
    runs = [[u.samples for u in DataLoader(speech, batch_size=None, num_workers=2)] for _ in range(2)]
    lengths = [[len(s) for s in run] for run in runs]
    assert lengths[0] == lengths[1]
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_stream_of_nothing_usable_ends_with_the_reason() -> None:
    with pytest.raises(DataError, match="nothing in"):
        SyntheticSpeech({"en": ["..."]}).utterance(0)
    with pytest.raises(DataError, match="longer than"):
        SyntheticSpeech(TEXTS, max_duration_s=0.01).utterance(0)
    with pytest.raises(DataError, match="klingon"):
        SyntheticSpeech({"klingon": ["nuqneH"]})


def test_sentences_that_cannot_be_said_do_not_go_on_for_ever(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("...\n", encoding="utf-8")
    with pytest.raises(DataError, match="could not be said"):
        synthesize_manifest(tmp_path / "out", {"de": tmp_path / "de.txt"}, n=1)
