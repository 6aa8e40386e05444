"""The engines themselves: espeak-ng, flite, festival; skipped where their Debian packages are missing."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from canvas_asr.errors import DataError
from canvas_asr.synthesis import espeak, festival, flite, recorded
from canvas_asr.synthesis.phonemes import PHONEMES, UNKNOWN_INDEX, phoneme_index
from canvas_asr.synthesis.synthesizer import spoken_text

needs_espeak = pytest.mark.skipif(not espeak.available(), reason="needs espeak-ng: apt-get install espeak-ng")
needs_flite = pytest.mark.skipif(not flite.available(), reason="needs flite: apt-get install flite")

SENTENCES = {
    "en-us": ("en", "The quick brown fox, in 1999, jumps over the lazy dog."),
    "de": ("de", "Können wir uns mal unter vier Augen unterhalten?"),
    "fr": ("fr", "Distance égale à celle dont il s’était approché du pôle nord."),
    "es": ("es", "Asociamos Egipto con el Nilo."),
    "hi": ("hi", "ओबामा की विदेश नीति में भारत का स्थान बहुत ऊंचा"),
    "cmn-latn-pinyin": ("zh", "大楼有20层，他是我爷爷。"),
}


def needs_festival(voice: str) -> None:
    if not festival.available(voice):
        pytest.skip(f"needs festival's {voice}: apt-get install festival {festival.VOICES[voice]}")


@needs_espeak
@pytest.mark.parametrize("voice", SENTENCES)
def test_text_gives_the_phonemes_of_the_audio(voice: str) -> None:
    language, text = SENTENCES[voice]
    if language == "zh":
        pytest.importorskip("pypinyin", reason="Chinese needs pypinyin: pip install pypinyin")
    spoken = spoken_text(text, language)
    speech = espeak.say(spoken, voice)
    heard = [symbol for _, symbol in speech.phonemes if symbol]
    assert heard == espeak.text_to_phonemes(spoken, voice)
    assert len(heard) > 15
    assert UNKNOWN_INDEX not in {phoneme_index(symbol) for symbol in heard}


@needs_espeak
def test_words_have_the_time_of_their_first_phoneme() -> None:
    text = "Well, of the 25 houses I saw one."
    speech = espeak.say(text, "en-us")
    places = [place for place, _, _ in speech.words]
    # "of the" is run together, and 25 is two words.
    assert [text[place:].split()[0] for place in places] == [
        "Well,",
        "of",
        "25",
        "5",
        "houses",
        "I",
        "saw",
        "one.",
    ]
    starts = {start: symbol for start, symbol in speech.phonemes if symbol}
    assert [starts[start] for _, start, _ in speech.words] == ["w", "ʌ", "t", "f", "h", "aɪ", "s", "w"]
    bounds = [time for _, start, end in speech.words for time in (start, end)]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= len(speech.samples)
    assert speech.words[1][1] - speech.words[0][2] > 1000  # the comma's pause belongs to neither


@needs_espeak
def test_phoneme_times_rise_within_the_audio_and_silence_is_quiet() -> None:
    speech = espeak.say("Nine men, seven moons.", "en-us")
    starts = [start for start, _ in speech.phonemes]
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] <= len(speech.samples)
    levels: dict[bool, list[float]] = {True: [], False: []}
    for (start, symbol), end in zip(speech.phonemes, [*starts[1:], len(speech.samples)], strict=True):
        if end - start > 400:
            middle = speech.samples[start + (end - start) // 3 : end - (end - start) // 3].astype(float)
            levels[symbol == ""].append(float(np.sqrt(np.mean(middle**2))))
    assert max(levels[True]) < 0.2 * float(np.median(levels[False]))


@needs_espeak
def test_mandarin_tones_are_symbols_of_their_own() -> None:
    symbols = espeak.text_to_phonemes("ma1 ma2 ma3 ma4 ma5", "cmn-latn-pinyin")
    assert [s for s in symbols if s in espeak.TONES.values()] == ["˥", "˧˥", "˨˩˦", "˥˩", "˩"]
    assert set(espeak.TONES.values()) <= set(PHONEMES)


@needs_espeak
def test_rate_pitch_and_variant_change_the_audio_and_are_not_remembered() -> None:
    first = espeak.say("hello there", "en-us").samples
    slow = espeak.say("hello there", "en-us", rate_wpm=90).samples
    assert len(slow) > 1.3 * len(first)
    for other in (
        espeak.say("hello there", "en-us", pitch=90).samples,
        espeak.say("hello there", "en-us+f3").samples,
    ):
        assert not np.array_equal(first, other)
    assert len(espeak.say("hello there", "en-us").samples) == pytest.approx(len(first), rel=0.1)


@needs_espeak
def test_switches_of_language_are_no_phonemes() -> None:
    symbols = [s for _, s in espeak.say("Ich habe ein Meeting im Office, okay, New York.", "de").phonemes]
    assert not [s for s in symbols if "(" in s]


@needs_espeak
def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(DataError, match="xx-yy"):
        espeak.say("hello", "xx-yy")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "LIBRARY", "libno-such-espeak.so.1")
    monkeypatch.setattr(espeak, "_library", None)
    with pytest.raises(DataError, match="apt-get install espeak-ng"):
        espeak.say("hello", "en")
    assert not espeak.available()


def _say_in_child(queue: multiprocessing.Queue[tuple[int, list[str]]]) -> None:
    speech = espeak.say("hello there", "en-us")
    queue.put((len(speech.samples), [symbol for _, symbol in speech.phonemes]))


@needs_espeak
def test_a_forked_child_says_the_same() -> None:
    here = espeak.say("hello there", "en-us")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[int, list[str]]] = context.Queue()
    child = context.Process(target=_say_in_child, args=(queue,))
    child.start()
    n_samples, symbols = queue.get(timeout=30)
    assert symbols == [symbol for _, symbol in here.phonemes]
    assert n_samples == pytest.approx(len(here.samples), rel=0.1)
    child.join(timeout=30)
    assert child.exitcode == 0


@needs_flite
@pytest.mark.parametrize("voice", flite.VOICES)
def test_flite_speaks_with_phones_in_place(voice: str) -> None:
    speech = flite.say("Nine men walk in the sun.", voice)
    symbols = [s for _, s in speech.phonemes]
    assert [s for s in symbols if s][:6] == ["n", "aɪ", "n", "m", "ɛ", "n"]
    starts = [start for start, _ in speech.phonemes]
    assert starts == sorted(starts)
    assert starts[-1] < len(speech.samples)
    assert 1.0 < len(speech.samples) / speech.sample_rate_hz < 4.0
    slower = flite.say("Nine men walk in the sun.", voice, stretch=1.3)
    assert len(slower.samples) > 1.2 * len(speech.samples)


def test_flite_refuses_an_unknown_voice() -> None:
    with pytest.raises(DataError, match="bogus"):
        flite.say("hello", "bogus")


@pytest.mark.parametrize("voice", festival.VOICES)
def test_festival_speaks_with_phones_in_place(voice: str) -> None:
    needs_festival(voice)
    hindi = festival.voice_language(voice) == "hi"
    text = "नमस्ते सरकार" if hindi else "Nine men walk in the sun."
    speech = recorded.say(text, f"festival:{voice}")
    symbols = [s for _, s in speech.phonemes if s]
    assert symbols[:5] == (["n", "ə", "m", "ə", "s"] if hindi else ["n", "aɪ", "n", "m", "ɛ"])
    assert speech.phonemes[-1][0] < len(speech.samples)
    assert np.abs(speech.samples.astype(int)).max() > 1000


def test_festival_is_started_again_after_a_crash() -> None:
    needs_festival("hindi_NSK_diphone")
    with pytest.raises(DataError, match="failed on"):
        festival.say("GDP", "hindi_NSK_diphone")  # Latin letters crash it
    assert len(recorded.say("नमस्ते", "festival:hindi_NSK_diphone").samples) > 1000


def test_festival_is_never_given_a_string_that_ends_early() -> None:
    with pytest.raises(DataError, match="quotes"):
        festival.say('a") (exit) ("', "kal_diphone")


def test_missing_festival_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(festival, "_running", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="apt-get install festival"):
        festival.say("hello", "kal_diphone")
