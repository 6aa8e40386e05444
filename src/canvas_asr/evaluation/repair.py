"""What one pass does to a faulty draft: how many wrong tokens it repairs, how many right ones it breaks.

python -m canvas_asr.evaluation.repair MODEL --testsets DIR --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from ..audio import load_audio
from ..decoding import CanvasDecoder
from ..errors import CanvasASRError
from ..manifest import MANIFEST_NAME, Clip, read_manifest

ERROR_RATE = 0.15
KINDS = ("own", "reference")
BATCH_SIZE = 8


@dataclass(frozen=True)
class RepairCounts:
    """Tokens of drafts before and after a pass.

    Attributes:
        n_wrong: Right tokens that were replaced by random ones.
        n_repaired: Of these, tokens that are right again after the pass.
        n_right: Right tokens that were left as they are.
        n_broken: Of these, tokens that are wrong after the pass.
    """

    n_wrong: int
    n_repaired: int
    n_right: int
    n_broken: int

    @property
    def repaired(self) -> float:
        """Share of wrong tokens repaired, 0 to 1."""
        return self.n_repaired / max(1, self.n_wrong)

    @property
    def broken(self) -> float:
        """Share of right tokens broken, 0 to 1."""
        return self.n_broken / max(1, self.n_right)


def count_repairs(
    decoder: CanvasDecoder, clips: Sequence[Clip], *, kind: str = "own", steps: int = 1, seed: int = 0
) -> RepairCounts:
    """Start each clip's canvas from a draft with 15 % wrong tokens; see what passes make of it.

    Own drafts have other lengths than the transcript: its tokens are right where the fewest edits between it
    and a text, draft or result, keep them. Corrupted transcripts are compared place by place, so that a pass
    that shifts the text is counted as breaking it.

    Args:
        decoder: Of the model.
        clips: With a text; empty ones are left out.
        kind: ``own``: the drafts are those of the model's CTC tap. ``reference``: the transcripts themselves,
            drafts that know better than the tap, whose reading the prompt holds all the same.
        steps: Passes.
        seed: Of the errors and the noise.
    """
    rng = np.random.default_rng(seed)
    choices = np.flatnonzero(decoder.vocabulary.text.numpy())
    choices = choices[choices != decoder.vocabulary.eos]
    counts = np.zeros(4, dtype=np.int64)
    spoken = [clip for clip in clips if clip.text]
    for start in range(0, len(spoken), BATCH_SIZE):
        batch = spoken[start : start + BATCH_SIZE]
        mel, n_mel = decoder.processor.features([load_audio(clip.audio) for clip in batch])
        read = partial(decoder, mel, n_mel, clip_keys=range(len(batch)), init="draft", seed=seed)
        truths = [decoder.processor.text_ids(clip.text) for clip in batch]
        sources = truths if kind == "reference" else [list(result.ids) for result in read(steps=0)]
        drafts = []
        for source in sources:
            wrong = rng.random(len(source)) < ERROR_RATE
            noise = choices[rng.integers(len(choices), size=len(source))]
            drafts.append(np.where(wrong, noise, source).tolist())
        results = read(steps=steps, drafts=drafts)
        for truth, source, draft, result in zip(truths, sources, drafts, results, strict=True):
            changed = {k for k, (one, other) in enumerate(zip(source, draft, strict=True)) if one != other}
            kept = kept_tokens(truth, source)
            lost = {place for place, k in kept.items() if k in changed}
            left = kept.keys() - lost
            after = set(kept_tokens(truth, result.ids))
            if kind == "reference":
                after = {
                    k for k, (one, other) in enumerate(zip(truth, result.ids, strict=False)) if one == other
                }
            counts += [len(lost), len(lost & after), len(left), len(left - after)]
    return RepairCounts(*(int(count) for count in counts))


def kept_tokens(truth: Sequence[int], text: Sequence[int]) -> dict[int, int]:
    """Places of a transcript whose tokens a text has, by the fewest edits, and where it has them."""
    edits = Levenshtein.opcodes(truth, text)
    return {
        edit.src_start + k: edit.dest_start + k
        for edit in edits
        if edit.tag == "equal"
        for k in range(edit.src_end - edit.src_start)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a checkpoint on the synthetic set of a folder of test sets; write the counts as JSON."""
    from ..transcriber import load

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--testsets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="clips per language of the synthetic set")
    arguments = parser.parse_args(argv)
    figures = {}
    try:
        clips = read_manifest(arguments.testsets / "synthetic" / MANIFEST_NAME)
        decoder = load(arguments.model).decoder
        for kind, language in product(KINDS, decoder.languages):
            some = [clip for clip in clips if clip.language == language][: arguments.limit]
            counts = count_repairs(decoder, some, kind=kind)
            figures[f"{kind}, {language}"] = {
                **asdict(counts),
                "repaired": counts.repaired,
                "broken": counts.broken,
            }
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
