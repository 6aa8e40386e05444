"""``canvas-asr listen``: text of a microphone, or of raw samples on standard input, while it is spoken.

    canvas-asr listen
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | canvas-asr listen - --rate 16000

The stable text goes to stdout, a line a segment. The draft is shown behind it, dimmed, if stderr is a
terminal. Ctrl-C is how one stops to speak: what is open is transcribed, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from canvas_asr.formats import FORMATS
from canvas_asr.options import DecodingOptions
from canvas_asr.subtitles import Layout

from .decoding_options import add_decoding_options, decoding_arguments
from .messages import ctrl_c
from .model_options import add_model_options, add_place_options, load_arguments
from .output_options import TIMED
from .sinks import warn

if TYPE_CHECKING:
    from canvas_asr.live import LiveTranscriber

    from .live_input import Microphone, StandardInput
    from .live_screen import Screen

STDIN = "-"
RATE_HZ = 16_000  # of standard input
PAUSE_S = 0.05  # between two looks at whether enough was read to go on


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser("listen", help="a microphone to text, while you speak", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument(
        "source",
        nargs="?",
        choices=(STDIN,),
        help="raw samples on standard input: 16-bit little-endian, mono (default: the microphone)",
    )
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="of the samples (default: 16000; the microphone's own)"
    )
    parser.add_argument("--microphone", metavar="NAME", help="part of its name, or its number")
    parser.add_argument("--model", default="tiny", help="as for transcribe (default tiny)")
    parser.add_argument(
        "--vad",
        action=argparse.BooleanOptionalAction,
        help="find speech first: text is stable at every pause (default: in audio too long for the model)",
    )
    parser.add_argument(
        "--output-format",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}: print all at the end (default: every segment as it is stable)",
    )
    add_decoding_options(parser)
    add_place_options(parser.add_argument_group("where it runs"))
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Listen until the audio ends, or Ctrl-C."""
    from .live_input import Microphone, StandardInput

    decoding = DecodingOptions(**decoding_arguments(options))
    source: StandardInput | Microphone
    if options.source == STDIN:
        source = StandardInput(RATE_HZ if options.rate is None else options.rate)
    else:
        source = Microphone(options.microphone, options.rate)
    from canvas_asr.live import LiveTranscriber
    from canvas_asr.scheduling.scheduler import Scheduler
    from canvas_asr.transcriber import load

    from .live_screen import Screen

    transcriber = load(options.model, **load_arguments(options))
    if options.output_format in TIMED and transcriber.has_draft:
        decoding = replace(decoding, word_timestamps=True)
    with (
        Scheduler(transcriber) as scheduler,
        closing(Screen(shows_segments=options.output_format is None)) as screen,
        closing(
            LiveTranscriber(scheduler, decoding, screen.take, sample_rate_hz=source.rate_hz, vad=options.vad)
        ) as live,
    ):
        _feed(live, source, screen)
        transcript = live.wait()
    screen.check()
    if options.output_format is not None:
        print(FORMATS[options.output_format](transcript, Layout()), end="", flush=True)
    warn(replace(transcript, file=source.name))
    return 0


def _feed(live: LiveTranscriber, source: StandardInput | Microphone, screen: Screen) -> None:
    """Feed what comes, until its end or Ctrl-C."""
    from canvas_asr.live import MOST_WAITING_S

    try:
        with closing(source.pieces()) as pieces:
            for piece in pieces:
                live.feed(piece)
                while live.audio.waiting_s > MOST_WAITING_S and not live.is_over:
                    time.sleep(PAUSE_S)
                if live.is_over:
                    return
                screen.check()
                ctrl_c.check()
    except KeyboardInterrupt:
        ctrl_c.arrived = False  # it has ended the speech; another one ends the program
    live.finish()
