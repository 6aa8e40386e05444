"""``canvas-asr transcribe``: audio files to text."""

from __future__ import annotations

import argparse
import io
import json
import sys
from typing import Any

from canvas_asr.errors import AudioError
from canvas_asr.result import Transcript

from .decoding_options import add_decoding_options, decoding_arguments
from .messages import complain, ctrl_c
from .model_options import add_model_options, add_place_options, load_arguments
from .show_canvas import add_show_options, shown_transcripts


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser("transcribe", help="audio files to text", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio, or video with sound, of any format")
    parser.add_argument(
        "--model",
        default="tiny",
        help="tiny (embedded, the default), a checkpoint folder, a name of the hub, or an adapter file",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="files transcribed together (default 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, tokens included")
    add_show_options(parser)
    add_decoding_options(parser)
    place = parser.add_argument_group("where it runs")
    add_place_options(place)
    place.add_argument(
        "--cuda-graphs", action="store_true", help="record the passes on a GPU: faster a file at a time"
    )
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Transcribe files and print each result as it comes; 1 if any could not be read."""
    from canvas_asr.transcriber import load

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    transcriber = load(options.model, cuda_graphs=options.cuda_graphs, **load_arguments(options))
    n_failed = 0
    decoding = decoding_arguments(options)
    if options.show_canvas:
        results = shown_transcripts(transcriber, options.files, options, **decoding)
    else:
        results = transcriber.transcribe_files(options.files, batch_size=options.batch_size, **decoding)
    for result in results:
        ctrl_c.check()
        if isinstance(result, AudioError):
            n_failed += 1
            complain(f"error: {result}")
            continue
        lines = [_json_line(result)] if options.json else [text_line(result), *word_lines(result)]
        print("\n".join(lines), flush=True)
        if result.truncated:
            complain(
                f"warning: {result.file}: the text fills the canvas and its end may be missing; "
                "give a longer --canvas, or shorter clips"
            )
    return 1 if n_failed else 0


def _json_line(transcript: Transcript) -> str:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(transcript.to_dict(), ensure_ascii=not is_utf8)


def _shown(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def text_line(transcript: Transcript) -> str:
    """One line, without what a terminal would obey rather than show."""
    text = _shown(transcript.text) or "(no speech)"
    language = f"[{transcript.language}]  " if transcript.language else ""
    return f"{transcript.file}  {language}{text}  ({transcript.rtfx:.1f}× real time)"


def word_lines(transcript: Transcript) -> list[str]:
    """One line a word, where words were asked for: start and end in seconds, confidence, text."""
    return [
        f"{word.start:10.2f} {word.end:7.2f}  {100 * word.confidence:3.0f} %  {_shown(word.text)}"
        for word in transcript.words or ()
    ]
