"""``canvas-asr transcribe``: files, folders and lists of audio to text, subtitles and JSON."""

from __future__ import annotations

import argparse
import io
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from canvas_asr.errors import OptionError

from .decoding_options import add_decoding_options, decoding_arguments
from .inputs import AudioInput, Inputs, find_inputs, take_shard
from .jobs import File, Result, Work, share_files
from .messages import complain, ctrl_c
from .model_options import add_model_options, add_place_options, load_arguments
from .output_options import OutputPlan, add_output_options, at_least_one, output_plan, shard
from .progress import Progress
from .show_canvas import add_show_options, shown_transcripts
from .sinks import FolderSink, PrintedSink, Sink


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser("transcribe", help="audio files to text", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="audio, or video with sound; a folder of such; a list of such (.jsonl, with the key audio)",
    )
    parser.add_argument(
        "--model",
        default="tiny",
        help="tiny (embedded, the default), a checkpoint folder, a name of the hub, or an adapter file",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="clips transcribed together (default 8)")
    parser.add_argument(
        "--jobs",
        type=at_least_one,
        default=1,
        metavar="N",
        help="processes that share the files, each with the model in its own memory (default 1)",
    )
    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help="every N-th file only, from the I-th: one run a machine"
    )
    parser.add_argument(
        "--vad",
        action=argparse.BooleanOptionalAction,
        help="find speech first, transcribe nothing else (default: in files longer than the model takes)",
    )
    parser.add_argument(
        "--diarize",
        metavar="RTTM",
        help="who spoke when: an RTTM file, or a folder with one for every audio file, by its name",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, tokens included")
    add_show_options(parser)
    add_output_options(parser)
    add_decoding_options(parser)
    place = parser.add_argument_group("where it runs")
    add_place_options(place)
    place.add_argument(
        "--cuda-graphs", action="store_true", help="record the passes on a GPU: faster a file at a time"
    )
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Transcribe, and print or write each result as it comes; 1 if any file failed."""
    if options.show_canvas and options.jobs > 1:
        raise OptionError("--show-canvas shows one process at work; leave --jobs out.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    inputs = find_inputs(options.files)
    plan = output_plan(options, len(inputs.files))
    if plan.folder is not None:
        inputs = inputs.distinct()
    if inputs.n_others:
        complain(f"{inputs.n_others} of the files in folders passed over: by their names they are no audio")
    places = take_shard(inputs.files, options.shard)
    work = _work(options, plan, len(inputs.files))
    progress = Progress([inputs.files[place].path for place in places], shown=not options.show_canvas)
    try:
        sink = _sink(options, plan, inputs, places, progress)
        code = _transcribe(options, work, sink, places, progress)
    finally:
        progress.close()
    return code


def _transcribe(
    options: argparse.Namespace, work: Work, sink: Sink, places: list[int], progress: Progress
) -> int:
    """Hand every result to the sink, which reports whatever happens."""
    is_whole = False
    try:
        results = _results(options, work, sink, progress)
        for place, result in _in_order(results, places) if sink.keeps_order else results:
            ctrl_c.check()
            sink.take(place, result)
        is_whole = True
    finally:
        progress.close()
        code = sink.close(is_whole=is_whole)
    return code


def _work(options: argparse.Namespace, plan: OutputPlan, n_files: int) -> Work:
    decoding = decoding_arguments(options, watched=options.show_canvas)
    decoding |= {"batch_size": options.batch_size, "vad": options.vad}
    decoding["word_timestamps"] |= plan.needs_words
    if options.diarize is not None:
        from canvas_asr.speakers import Speakers

        decoding["diarize"] = Speakers(options.diarize, by_name=n_files > 1)
    load = {"model": options.model, "cuda_graphs": options.cuda_graphs, **load_arguments(options)}
    likes_words = plan.likes_words or options.diarize is not None  # segments are split at words
    return Work(load, decoding, likes_words)


def _sink(
    options: argparse.Namespace, plan: OutputPlan, inputs: Inputs, places: list[int], progress: Progress
) -> Sink:
    if plan.folder is not None:
        return FolderSink(inputs.files, places, plan.folder, progress)
    form = plan.printed or ("json" if options.json else "lines")
    return PrintedSink(
        _numbered(inputs.files, places),
        progress,
        form=form,
        layout=plan.layout,
        with_words=options.word_timestamps,
    )


def _numbered(files: tuple[AudioInput, ...], places: list[int]) -> list[File]:
    return [(place, files[place].path) for place in places]


def _results(
    options: argparse.Namespace, work: Work, sink: Sink, progress: Progress
) -> Iterator[tuple[int, Result]]:
    """Transcribe what the sink wants, here or in other processes; the model is loaded if that is anything."""
    wanted = sink.files()
    first = next(wanted, None)
    if first is None:
        return

    def files() -> Iterator[File]:
        progress.start()  # the model is loaded
        yield first
        yield from wanted

    if options.jobs > 1:
        yield from share_files(work, files(), options.jobs, progress.advance)
        return
    transcriber = work.open()
    asked: deque[int] = deque()

    def paths() -> Iterator[str]:
        for place, path in files():
            asked.append(place)
            yield path

    results: Iterable[Result]
    if options.show_canvas:
        decoding = work.arguments(transcriber)
        del decoding["batch_size"]  # a clip at a time
        results = shown_transcripts(transcriber, paths(), options, **decoding)
    else:
        results = work.transcribe(transcriber, paths(), lambda done, _all: progress.advance(done))
    for result in results:
        yield asked.popleft(), result


def _in_order(results: Iterable[tuple[int, Result]], places: list[int]) -> Iterator[tuple[int, Result]]:
    """Hold results back until those before them have come."""
    waiting: dict[int, Result] = {}
    due = iter(places)
    following = next(due, None)
    for place, result in results:
        waiting[place] = result
        while following in waiting:
            yield following, waiting.pop(following)
            following = next(due, None)
