"""Make the clips in examples/: one everyday sentence a language, in a voice that training never hears.

    python scripts/make_examples.py            # writes examples/*.flac and examples/README.md
    python scripts/make_examples.py --out clips

Needs Debian's espeak-ng and flite, and the extra [train] for pinyin. The same versions of them give the same
samples: say them in this order, in a process of their own, since the engines remember what they said before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.synthesis.synthesizer import Synthesizer, Utterance

ROOT = Path(__file__).parents[1]
SEED = 5
SENTENCES = {
    "en": "We bought fresh bread and cheese for lunch.",
    "de": "Am Abend gehen wir zusammen im Park spazieren.",
    "fr": "Le chat dort sur la chaise près de la fenêtre.",
    "es": "Mañana por la tarde vamos a visitar a mi abuela.",
    "hi": "आज शाम को हम बाज़ार से फल और सब्ज़ी लाएँगे।",
    "zh": "今天晚上我们一起去饭店吃饭。",
}

CARD = """# Example clips

One everyday sentence a language, which `make demo` transcribes. They are synthetic: made by
[scripts/make_examples.py](../scripts/make_examples.py) with espeak-ng and flite, in voices that are kept out
of training (the `test` split of `canvas_asr.synthesis.voices`). The sentences were written for this folder
and are in none of the lists that the embedded model was trained on. 16 kHz, mono, 16 bits.

| file | text | voice | seconds |
|---|---|---|---|
{rows}

To the extent possible under law, the makers of these clips and texts have waived all rights to them
([CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/)).
"""


def make_clip(language: str) -> Utterance:
    """Say the sentence of a language; English, which has one held out, in a voice made from recordings."""
    synthesizer = Synthesizer("test", recorded_share=1.0)
    generator = np.random.default_rng((SEED, list(SENTENCES).index(language)))
    return synthesizer.say(SENTENCES[language], language, generator)


def main() -> None:
    """Write all clips and their README."""
    parser = argparse.ArgumentParser(description="Make the example clips.")
    parser.add_argument("--out", type=Path, default=ROOT / "examples", help="folder (default examples/)")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for language in SENTENCES:
        clip = make_clip(language)
        soundfile.write(folder / f"{language}.flac", clip.samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        rows.append(f"| {language}.flac | {clip.text} | {clip.voice} | {clip.duration_s:.1f} |")
    (folder / "README.md").write_text(CARD.format(rows="\n".join(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
