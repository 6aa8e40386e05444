"""Sets of clips to evaluate on: folders of test sets, manifests, and sets of the hub by name.

data/german.jsonl                a manifest; its set has the name of the file, or of the folder
librispeech/clean                openslr/librispeech_asr, configuration clean, split test
fleurs                           google/fleurs in its six languages; fleurs/hi is one of them
voxpopuli/de@validation          another split
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..audio import load_audio
from ..errors import DataError, OptionError, RecipeError
from ..manifest import MANIFEST_NAME, Clip, read_manifest
from .index import INDEX_NAME, file_sha256, read_index, read_testsets
from .modes import Samples

Sets = dict[str, list[Clip]]


def load_clip(clip: Clip) -> Samples:
    """Read a clip's audio: 16 kHz mono float32, (N,).

    Raises:
        AudioError: If it cannot be read, naming the file.
    """
    if type(clip) is Clip:
        return load_audio(clip.audio)
    from ..hub_sets import clip_samples  # of the hub: its audio lies in a table

    return clip_samples(clip)


def read_sets(
    testsets: Path | None, names: Sequence[str], manifests: Sequence[str]
) -> tuple[Sets, dict[str, dict[str, object]]]:
    """Find every set that was asked for.

    Args:
        testsets: Folder of `evaluation.testsets`, or None.
        names: Sets of that folder; empty means all of them.
        manifests: Manifests, and names of the hub.

    Returns:
        Clips by name of the set, and what tells one version of a set from another.

    Raises:
        OptionError: If nothing was asked for, or a name is unknown or given twice.
        DataError: If a set cannot be read or is empty.
    """
    sets: Sets = {}
    facts: dict[str, dict[str, object]] = {}
    if testsets is not None:
        known = read_testsets(testsets)
        if unknown := [name for name in names if name not in known]:
            raise OptionError(f"--sets: no test set {unknown[0]!r}: use some of {', '.join(known)}")
        digests = read_index(testsets)
        for name in names or known:
            sets[name], facts[name] = known[name], {"sha256": digests[name]}
    elif names:
        raise OptionError(
            "--sets: chooses from a folder of test sets; give --testsets, or --set for a manifest"
        )
    for source in manifests:
        name, clips, fact = _read_one(source)
        if name in sets:
            raise OptionError(f"--set {source}: there is a set {name!r} already; rename one of the two")
        sets[name], facts[name] = clips, fact
    if not sets:
        raise OptionError("nothing to evaluate on: give --set with a manifest or a name, or --testsets")
    for name, clips in sets.items():
        if not clips:
            raise DataError(f"set {name!r}: has no clips")
        facts[name]["n_clips"] = len(clips)
    return sets, facts


def _read_one(source: str) -> tuple[str, list[Clip], dict[str, object]]:
    path = Path(source)
    if (path / INDEX_NAME).is_file():
        raise OptionError(f"--set {source}: is a folder of test sets; give it as --testsets")
    if (path / MANIFEST_NAME).is_file():
        path = path / MANIFEST_NAME
    if path.is_file():
        name = path.resolve().parent.name if path.name == MANIFEST_NAME else path.stem
        return name, read_manifest(path), {"sha256": file_sha256(path)}
    if path.suffix == ".jsonl" or os.fspath(source).startswith((".", "/")):
        raise DataError(f"--set {source}: there is no such manifest")
    return _read_hub(source)


def _read_hub(source: str) -> tuple[str, list[Clip], dict[str, object]]:
    """Read a set of the hub: ``name/part@split``, a part being a language or a configuration."""
    from ..hub_sets import HUB_SETS, HubRequest, read_table

    rest, _, split = source.partition("@")
    name, _, part = rest.partition("/")
    if name not in HUB_SETS:
        raise OptionError(
            f"--set {source}: neither a manifest nor one of {', '.join(HUB_SETS)}; fleurs/de and "
            "librispeech/clean are parts of such"
        )
    layout = HUB_SETS[name]
    languages = (part,) if part in layout.configs else ()
    config = "" if languages else part
    if not layout.configs:
        languages = ("en",)  # LibriSpeech: one language, its parts are configurations
        config = part or "clean"
    request = HubRequest(layout, config, split or "test", languages, revision="")
    try:
        clips = [clip for config, code in request.parts() for clip in read_table(request, config, code)]
    except RecipeError as error:
        raise DataError(f"--set {source}: {error}") from error
    return source.replace("/", "-").replace("@", "-"), clips, {"hub": layout.name, "split": request.split}
