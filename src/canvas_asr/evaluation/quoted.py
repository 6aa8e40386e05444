"""Figures that others published, to stand beside what was measured: none of them was measured here."""

from __future__ import annotations

from .tables import NONE, Table

NOTE = (
    "*Quoted, not measured here.* WER in percent as the systems' authors give it, on LibriSpeech test-clean "
    "/ test-other; training data, normalisers and machines differ from system to system, and from the rows "
    "above."
)
_SYSTEMS = (
    (
        "diffusion-gemma-asr-small",
        "6.6 / –",
        "8, 16, 32, 48 passes: 14.9, 10.3, 6.5, 4.7 × real time",
        "its model card",
    ),
    ("Whisper small, large-v3, as quoted there", "~3.4, ~2.0 / –", NONE, "the same"),
    ("TransFusion", "6.7 / 8.8", NONE, "arXiv 2210.07677"),
    ("Whisfusion v1", "8.3 / 17.0", NONE, "arXiv 2508.07048"),
    ("Whisper-LLaDA, cascade", "2.25 / 4.94", NONE, "arXiv 2509.16622"),
    ("LLaDA fully frozen, adapter only", "2.81 / 5.29", "12 × real time", "Interspeech 2026"),
    ("dLLM-ASR", "2.28 / 5.17", "4.4 × its autoregressive twin", "arXiv 2601.17902"),
    ("Drax", "2.6 / 5.7", "RTFx 32 (16 steps), 135 (4)", "arXiv 2510.04162"),
    ("MDM-ASR", "1.8 / 3.6", "RTFx 47", "arXiv 2602.18952"),
    (
        "NLE (Granite-Speech-4.1-2B-NAR)",
        "1.29 / 2.75",
        "RTFx 1722 to 1820 batched, 322 at batch 1",
        "arXiv 2603.08397",
    ),
)
_RELEASED = (
    ("FLEURS en, WER", "15.7"),
    ("VoxPopuli en, WER", "18.5"),
    ("FLEURS hi, CER", "15.8"),
    ("FLEURS zh, CER", "29.6"),
)


def quoted_tables() -> list[Table]:
    """The published figures: of all systems on LibriSpeech, and of the released one on its other sets."""
    return [
        Table(
            "Quoted: other systems",
            NOTE,
            ["System", "WER", "Speed, by its authors", "Source"],
            [list(row) for row in _SYSTEMS],
            4,
        ),
        Table(
            "Quoted: diffusion-gemma-asr-small on its other sets",
            "*Quoted, not measured here*, from its model card: percent, Whisper-normalised.",
            ["Set and rate", "Percent"],
            [list(row) for row in _RELEASED],
            1,
        ),
    ]
