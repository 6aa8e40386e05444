"""``canvas-asr serve``: an OpenAI-compatible server, with a page."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from dataclasses import fields
from typing import Any

from canvas_asr.errors import CanvasASRError
from canvas_asr.options import STARTS
from canvas_asr.serving.process import limit_spinning, one_thread
from canvas_asr.serving.settings import MIB, ServerSettings, is_loopback, split_keys

from .decoding_options import canvas_length
from .messages import complain
from .model_options import add_model_options, add_place_options, load_arguments

KEY_VARIABLE = "CANVAS_ASR_API_KEY"
_NEEDED = "this needs the server's packages; install them with: pip install 'canvas-asr[serve]'"
_MODULES = ("anyio", "fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn", "websockets")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "serve",
        help="a server with OpenAI's interface for transcription, and a page",
        description="Serve a model over HTTP as OpenAI's API does, with batching, live transcription and a "
        "page. Ctrl-C or SIGTERM stops it once the requests in work are answered. docs/serving.md has more.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model",
        default=ServerSettings.model,
        help="tiny (embedded, the default), a checkpoint folder, a name of the hub, or an adapter file",
    )
    parser.add_argument(
        "--served-name",
        dest="model_names",
        action="append",
        default=[],
        metavar="NAME",
        help="what requests call the model, for clients that have a name built in; may be repeated (default: "
        "its own name)",
    )
    _add_access(parser.add_argument_group("who may use it"))
    _add_limits(parser.add_argument_group("limits"))
    _add_decoding(parser.add_argument_group("decoding, where a request says nothing"))
    place = parser.add_argument_group("where it runs")
    add_place_options(place)
    place.add_argument(
        "--cuda-graphs", action="store_true", help="record the passes on a GPU: faster for few clients"
    )
    add_model_options(parser)
    parser.add_argument(
        "--diarizer",
        metavar="MODULE:FUNCTION",
        help="who tells speakers apart, for response_format=diarized_json: a callable that is given samples "
        "and their rate and gives (start, end, speaker) of every turn (docs/speakers.md)",
    )


def _add_access(group: Any) -> None:
    group.add_argument(
        "--host",
        default=ServerSettings.host,
        help=f"address to listen at (default {ServerSettings.host}: this machine alone)",
    )
    group.add_argument(
        "--port",
        type=int,
        default=ServerSettings.port,
        help=f"port; 0 takes a free one (default {ServerSettings.port})",
    )
    group.add_argument(
        "--api-key",
        dest="api_keys",
        action="append",
        default=[],
        metavar="KEY",
        help=f"that clients have to send; may be repeated. Better in the environment, as {KEY_VARIABLE}, "
        "several separated by commas: other users see the arguments of a process (default: anybody may)",
    )
    group.add_argument(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="in the address of requests that a proxy passes on; may be repeated. Without keys, a server "
        "that listens to this machine alone answers no others (default: localhost and its addresses)",
    )


def _add_limits(group: Any) -> None:
    upload_mib = ServerSettings.max_upload_bytes / MIB
    group.add_argument(
        "--max-upload-mib",
        type=float,
        default=upload_mib,
        metavar="N",
        help=f"size of a request's body; larger ones get 413 (default {upload_mib:g})",
    )
    for name, text in (
        ("max_batch", "clips that share a pass"),
        ("max_queue", "requests that wait; further ones are refused with 429"),
        ("max_audio_s", "seconds of audio in a file"),
        ("upload_timeout_s", "seconds that an upload may take; slower ones get 408"),
        ("request_timeout_s", "seconds that a request may take from then on; else 504"),
        ("drain_s", "seconds that requests in work get to end when the server is stopped"),
        ("decode_workers", "processes that decode uploads"),
        ("decode_timeout_s", "seconds in which a decoder has to get further with a file; else 400"),
    ):
        default = getattr(ServerSettings, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{text} (default {default:g})",
        )


def _add_decoding(group: Any) -> None:
    group.add_argument("--steps", type=int, metavar="N", help="most denoising passes (default: the model's)")
    group.add_argument(
        "--init", choices=STARTS, help="what the canvas starts from (default: as the model says)"
    )
    group.add_argument(
        "--canvas",
        type=canvas_length,
        metavar="TOKENS",
        help="length of the canvas; auto: as the draft needs (default: the model's)",
    )


def run(options: argparse.Namespace) -> int:
    """Load the model and serve it until the server is told to stop.

    Raises:
        CanvasASRError: If a package is missing, an option is out of range, the address cannot be listened at,
            or the model cannot be loaded.
    """
    limit_spinning()
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import websockets  # noqa: F401

        from canvas_asr.serving.diarization import load_diarizer
        from canvas_asr.serving.http_server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _MODULES:
            raise
        raise CanvasASRError(_NEEDED) from error
    settings = server_settings(options)
    diarize = None if options.diarizer is None else load_diarizer(options.diarizer)
    listener = _listen(settings.host, settings.port)
    with listener:
        url = _url(settings.host, listener.getsockname()[1])
        if not settings.api_keys and not is_loopback(listener.getsockname()[0]):
            complain(
                f"warning: {settings.host} can be reached from other machines, and no API key is asked for; "
                f"set {KEY_VARIABLE}."
            )
        from canvas_asr.transcriber import load

        with one_thread():
            transcriber = load(options.model, cuda_graphs=options.cuda_graphs, **load_arguments(options))

        def say_where() -> None:
            name = settings.served_names[0]
            complain(f"{name} is served at {url}/v1, with a page at {url}/ (Ctrl-C stops it)")

        is_asking = serve(transcriber, settings, listener, say_where, diarize=diarize)
    if is_asking:
        # Its thread may be deep in a library, which would abort the process as the interpreter goes down.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def server_settings(options: argparse.Namespace) -> ServerSettings:
    """Gather what was said on the command line and in the environment.

    Raises:
        OptionError: If one is out of range.
    """
    given = {
        field.name: getattr(options, field.name)
        for field in fields(ServerSettings)
        if hasattr(options, field.name)
    }
    given["api_keys"] = (*options.api_keys, *split_keys(os.environ.get(KEY_VARIABLE, "")))
    given["model_names"] = tuple(options.model_names)
    given["allowed_hosts"] = tuple(options.allowed_hosts)
    given["max_upload_bytes"] = int(options.max_upload_mib * MIB)
    return ServerSettings(**given)


def _listen(host: str, port: int) -> socket.socket:
    """Take the address, before the model is loaded.

    Raises:
        CanvasASRError: If that is not possible.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.set_inheritable(False)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise CanvasASRError(
            f"cannot listen at {host}, port {port} ({reason}); choose another with --host or --port."
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown and "[" not in shown else f"http://{shown}:{port}"
