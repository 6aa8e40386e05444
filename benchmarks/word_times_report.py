"""The page of the benchmark of word times."""

from __future__ import annotations

from typing import Any

from canvas_asr.card_sections import table
from canvas_asr.words import END_S

ALL = "all"
Record = dict[str, Any]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f}"


def _rows(found: Record) -> list[list[str]]:
    rows = []
    for name, recognised in found["recognised"].items():
        reference = found["reference"][name]
        share = recognised["n_compared"] / max(1, recognised["n_words"])
        row = [name, str(recognised["n_words"]), f"{100 * share:.0f} %"]
        for figures in (recognised, reference):
            row += [_ms(figures.get(f"onset_{key}_s")) for key in ("median", "95", "bias")]
        row += [_ms(reference.get(f"end_{key}_s")) for key in ("median", "95", "bias")]
        rows.append(row)
    return sorted(rows, key=lambda row: row[0] == ALL)


_HEADER = (
    "language", "words", "recognised", "onset median", "95 %", "bias", "reference median", "95 %", "bias",
    "end median", "95 %", "bias",
)  # fmt: skip


_INTRODUCTION = """\
# Word times, measured

A text's tokens are aligned to the CTC posteriors of the audio tokens (`canvas_asr/alignment.py`). A word
starts with the first audio token of its first token; it ends {end_ms} ms behind the last of its last, or
where the next word starts (`canvas_asr/words.py`). An audio token lasts {token_ms} ms. These times are
compared with those at which espeak-ng, in voices kept out of training, said each word; of words that it
runs together ("of the") the first counts.

Errors in milliseconds, absolute but for the bias, the median of found less exact time. *Recognised*: words
of the transcript that are right, and their share. *Reference*: all words, the true text being aligned. Left
out are Chinese sentences with digits or Latin letters, whose characters are not their syllables.

Model `{model}`, {decoding}, {cpu}, threads: {n_threads}. Made by

    {command}

Aims: median onset error ≤ 100 ms, 95 % ≤ 300 ms, in every language and both ways. {verdict}
"""
_CONFIDENCE = """
## Confidence

A word's confidence is the product of its tokens' probabilities in the last pass. Its mean is
{mean_right:.2f} over {n_right} words that are right, {mean_wrong:.2f} over {n_wrong} that are wrong; of a
right and a wrong word the right one is the surer in {ranked_right:.0%} of pairs.
"""


def markdown(content: Record) -> str:
    """The page of the documentation."""
    missed = [
        f"{t['language']} ({t['words']}, {content['runs'][t['run']]['silence_s']:g} s of silence)"
        for t in content["targets"]
        if t["reached"] is False
    ]
    page = _INTRODUCTION.format(
        end_ms=_ms(END_S),
        token_ms=_ms(content["audio_token_s"]),
        verdict=f"**Missed**: {', '.join(missed)}." if missed else "All reached where there are words.",
        **{name: content[name] for name in ("model", "decoding", "command")},
        **{name: content["environment"][name] for name in ("cpu", "n_threads")},
    )
    for run in content["runs"]:
        lead = f"Behind {run['silence_s']:g} s of silence" if run["silence_s"] else "Speech from the start"
        left_out = f", {run['n_left_out']} of them left out" if run["n_left_out"] else ""
        lines = ["", f"## {lead}", "", f"{run['n_clips']} clips{left_out}.", ""]
        page += "\n".join([*lines, *table(_HEADER, _rows(run), 1)]) + "\n"
    sure = content["runs"][0]["confidence"]
    return page + _CONFIDENCE.format(**sure) if sure else page
