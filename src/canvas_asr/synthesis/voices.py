"""Which espeak-ng voices speak each language, and which of them training never hears.

A voice is an accent (``en-us``), alone or with a variant that changes the speaker (``en-us+f3``). There are
three disjoint splits: ``train``; ``test``, known accents spoken by held-out variants; ``test-accent``,
accents that no training voice has, spoken by held-out variants. The lists are those of espeak-ng 1.51.
"""

from __future__ import annotations

from canvas_asr.errors import DataError

SPLITS = ("train", "test", "test-accent")

# File names of espeak-ng's voices. `fr` is the file of fr-fr, which its library does not know by that name.
ACCENTS: dict[str, tuple[str, ...]] = {
    "en": ("en", "en-us", "en-gb-x-rp"),
    "de": ("de",),
    "fr": ("fr", "fr-be"),
    "es": ("es", "es-419"),
    "hi": ("hi",),
    "zh": ("cmn-latn-pinyin",),
}
HELD_OUT_ACCENTS: dict[str, tuple[str, ...]] = {"en": ("en-gb-scotland",), "fr": ("fr-ch",)}

# Held out by family (all of steph, steph2, steph3), and human-like rather than robots or whispers.
TEST_VARIANTS = (
    "Alicia", "Denis", "Hugo", "Michael", "belinda", "f4", "john", "m6", "steph", "steph2", "steph3",
    "victor",
)  # fmt: skip
# Left out: "fast" (changes the rate alone), "Demonic" (pitch far below speech).
TRAIN_VARIANTS = (
    "Alex", "Andrea", "Andy", "Annie", "AnxiousAndy", "Diogo", "Gene", "Gene2", "Henrique", "Jacky",
    "Lee", "Marco", "Mario", "Mike", "Mr serious", "Nguyen", "RicishayMax", "RicishayMax2",
    "RicishayMax3", "Storm", "Tweaky", "UniRobot", "adam", "anika", "anikaRobot", "announcer", "antonio",
    "aunty", "benjamin", "boris", "caleb", "croak", "david", "ed", "edward", "edward2", "f1", "f2", "f3",
    "f5", "grandma", "grandpa", "gustave", "iven", "iven2", "iven3", "iven4", "kaukovalta", "klatt",
    "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3", "m4", "m5", "m7", "m8",
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert",
    "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8",
    "sandro", "shelby", "travis", "whisper", "whisperf", "zac",
)  # fmt: skip


def voices(language: str, split: str) -> tuple[str, ...]:
    """Every voice of a language in a split, in a fixed order.

    Raises:
        DataError: If the language or the split is unknown, or no accent of the language is held out.
    """
    if language not in ACCENTS:
        raise DataError(f"no synthetic voice for language {language!r}; choose from {', '.join(ACCENTS)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if split == "train":
        return tuple(
            v for a in ACCENTS[language] for v in (a, *(f"{a}+{variant}" for variant in TRAIN_VARIANTS))
        )
    accents = ACCENTS[language] if split == "test" else HELD_OUT_ACCENTS.get(language, ())
    if not accents:
        raise DataError(f"no accent of {language!r} is held out; use split 'test'")
    return tuple(f"{a}+{variant}" for a in accents for variant in TEST_VARIANTS)


TRAIN: dict[str, tuple[str, ...]] = {language: voices(language, "train") for language in ACCENTS}
TEST: dict[str, tuple[str, ...]] = {language: voices(language, "test") for language in ACCENTS}
