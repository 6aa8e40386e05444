"""Our leaderboard convention against figures that the Open ASR Leaderboard's own scorer gave.

The figures were made by its normaliser and its scoring (``normalizer/``, kaldialign with ``merge_compounds``,
September 2026) on these texts, which hold none of what only its tables know: names, listed compounds, clock
times, numbers of other languages as words.
"""

from __future__ import annotations

import pytest

from canvas_asr.evaluation.metrics import score

ENGLISH = [
    ("He hoped there would be stew for dinner...", "he hoped there'd be stew for dinner"),
    ("Oh, I don't know, uhh, maybe twenty-one?", "oh i do not know maybe 21"),
    ("Call four oh one five, then oh seven nine eight.", "call 4015 then 0798"),
    ("It's John's colour, isn't it?", "its johns color is not it"),
    ("The B. B. C. paid $20 million for a white paper.", "the BBC paid 20 million dollars for a whitepaper"),
    ("Mr. Smith won't go; he's been ill.", "mister smith will not go he has been"),
    ("[noise] Mm-hmm. Huh.", "yes"),
    ("", "something that nobody said"),
    ("Thirty per cent of 1,200 is 360", "30% of twelve hundred is three hundred sixty"),
    ("From A to Z on 5 G radio", "from a to z 5g radio"),
    ("wait... what?", "wait what"),
    ("there goes everyone", "their goes every one now"),
]
GERMAN = [
    ("Die Übung (leise) heißt: „Ja“.", "die übung heisst ja"),
    ("Das Donaudampfschiff fährt ab.", "das donau dampf schiff fährt"),
    ("zwei hundert Bahn Höfe", "zweihundert bahnhöfe"),
    ("Ab heute, immer­zu.", "abheute immerzu"),
]
FRENCH = [
    ("L'été — ÇA alors !", "l'ete ça à lors"),
    ("porte monnaie aujourd'hui", "portemonnaie aujour d'hui"),
    ("", "rien"),
]


@pytest.mark.parametrize(
    ("language", "pairs", "percent"),
    [("en", ENGLISH, 14.75), ("de", GERMAN, 18.18), ("fr", FRENCH, 50.0)],
)
def test_equal_to_the_scorer_of_the_leaderboard(
    language: str, pairs: list[tuple[str, str]], percent: float
) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    rate = score(references, hypotheses, language)["leaderboard_wer"].rate
    assert round(100 * rate, 2) == percent
