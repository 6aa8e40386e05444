"""What one pass does to a faulty draft: how many wrong tokens it repairs, how many right ones it breaks.

python -m canvas_asr.evaluation.repair MODEL --testsets DIR --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..audio import load_audio
from ..decoding import CanvasDecoder
from ..errors import CanvasASRError
from ..manifest import MANIFEST_NAME, Clip, read_manifest

ERROR_RATE = 0.15
BATCH_SIZE = 8


@dataclass(frozen=True)
class RepairCounts:
    """Tokens of drafts before and after a pass.

    Attributes:
        n_wrong: Tokens that were replaced by random ones.
        n_repaired: Of these, tokens that are right after the pass.
        n_right: Tokens that were left as they are.
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
    decoder: CanvasDecoder, clips: Sequence[Clip], *, steps: int = 1, seed: int = 0
) -> RepairCounts:
    """Start each clip's canvas from its true text with 15 % wrong tokens; see what passes make of it.

    Positions are compared one by one: only substitutions are made, so a pass that shifts the text is counted
    as breaking it.

    Args:
        decoder: Of the model.
        clips: With a text; empty ones are left out.
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
        truths = [decoder.processor.text_ids(clip.text) for clip in batch]
        drafts, masks = [], []
        for truth in truths:
            wrong = rng.random(len(truth)) < ERROR_RATE
            noise = choices[rng.integers(len(choices), size=len(truth))]
            draft = np.where(wrong, noise, truth)
            drafts.append(draft.tolist())
            masks.append(draft != np.array(truth))
        mel, n_mel = decoder.processor.features([load_audio(clip.audio) for clip in batch])
        results = decoder(
            mel, n_mel, clip_keys=range(len(batch)), steps=steps, init="draft", seed=seed, drafts=drafts
        )
        for truth, wrong, result in zip(truths, masks, results, strict=True):
            after = np.full(len(truth), -1)
            kept = min(len(truth), len(result.ids))
            after[:kept] = result.ids[:kept]
            right = after == np.array(truth)
            counts += [wrong.sum(), (wrong & right).sum(), (~wrong).sum(), (~wrong & ~right).sum()]
    return RepairCounts(*(int(count) for count in counts))


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
        for language in decoder.languages:
            own = [clip for clip in clips if clip.language == language][: arguments.limit]
            counts = count_repairs(decoder, own)
            figures[language] = {**asdict(counts), "repaired": counts.repaired, "broken": counts.broken}
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
