"""Load a model and transcribe with it: files, arrays, or lists of them.

    asr = canvas_asr.load("tiny")
    print(asr.transcribe("talk.mp3").text)

A clip's transcript depends on its samples and the options alone: its noise is drawn from the seed and the
clip's length, so neither its batch nor its place in a list changes it, and ``generate`` gives the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch

from .audio import SAMPLE_RATE_HZ, AudioSource, Samples, load_audio
from .audio_stream import header_seconds
from .canvas_view import NOBODY, OnCanvas, OnPass, Watchers
from .decoding import CanvasDecoder
from .errors import AudioError, OptionError
from .hub import EMBEDDED_MODEL, HubAccess
from .loading import check_one_gpu, find_device, load_model
from .long_form import LongForm, OnProgress, Progress, max_chunk_samples
from .modeling import CanvasASRModel
from .options import DecodingKeywords, DecodingOptions, StrategyOptions
from .parts import LoadOptions, OtherParts
from .processing import CanvasASRProcessor
from .recording_reader import RecordingReader, file_name
from .result import Segment, Transcript
from .speakers import Speakers, SpeakerSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

ROUNDING_SAMPLES = 16  # 1 ms: resampling makes a clip of exactly the limit a little longer

FilePath: TypeAlias = "str | os.PathLike[str]"


class _Keywords(DecodingKeywords, total=False):
    """What :meth:`Transcriber.transcribe` takes by keyword only."""

    batch_size: int
    sample_rate_hz: int | None
    vad: bool | None
    diarize: SpeakerSource
    on_progress: OnProgress | None
    on_pass: OnPass | None
    on_canvas: OnCanvas | None


def load(
    model: FilePath = EMBEDDED_MODEL,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    quantization_config: Any = None,
    backbone: FilePath | None = None,
    audio_encoder: FilePath | None = None,
    backbone_revision: str | None = None,
    audio_encoder_revision: str | None = None,
    cuda_graphs: bool = False,
) -> Transcriber:
    """Load a model.

    Args:
        model: ``tiny``, which is part of the package; the folder of a checkpoint; a name of the hub such as
            ``interfaze-ai/diffusion-gemma-asr-small``; or a released adapter file (``.pt``). Nothing is
            downloaded for a checkpoint that holds its frozen parts.
        device: A PyTorch device such as ``cpu`` or ``cuda:1``; None takes the GPU if there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto``: as the backbone is stored; None takes
            float32 on a CPU and bfloat16 elsewhere.
        device_map: Spread the backbone over devices, as ``from_pretrained`` takes it; instead of ``device``.
        revision: Branch, tag or commit of the adapter; its parts have theirs in its configuration.
        token: Of an account on the hub; None takes the stored one.
        local_files_only: Make no connection, as with ``HF_HUB_OFFLINE=1``.
        quantization_config: For the backbone, as ``from_pretrained`` takes it.
        backbone: Folder or hub name of another copy of the backbone, a quantised one for example.
        audio_encoder: The same for the audio encoder.
        backbone_revision: Branch, tag or commit of the backbone, in place of the configuration's.
        audio_encoder_revision: The same for the audio encoder.
        cuda_graphs: Record every shape of pass when it is first met and replay it then: faster where a few
            shapes recur, above all with a clip at a time. On one CUDA GPU only.

    Raises:
        CheckpointError: If a file or tensor is missing or does not fit, a repository cannot be had, or the
            GPU has too little memory; what to do is said.
        OptionError: If the device does not exist here, or an option is none of the above.
    """
    if device is not None and device_map is not None:
        raise OptionError("device and device_map are both given; give one of them.")
    place = find_device(device)
    if cuda_graphs and device_map is None:
        check_one_gpu([place])
    options = LoadOptions(
        device=str(place),
        dtype=dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16),
        device_map=device_map,
        quantization_config=quantization_config,
        access=HubAccess(revision, token, local_files_only),
        others=OtherParts(backbone, audio_encoder, backbone_revision, audio_encoder_revision),
    )
    return Transcriber(*load_model(model, options), cuda_graphs=cuda_graphs)


class Transcriber:
    """A loaded model. Threads may share it: their steps wait for each other."""

    def __init__(
        self, model: CanvasASRModel, processor: CanvasASRProcessor, *, cuda_graphs: bool = False
    ) -> None:
        """Prepare for decoding; :func:`load` is the usual way here.

        Args:
            model: In evaluation mode.
            processor: Of the same checkpoint.
            cuda_graphs: See :func:`load`; the norms of the backbone are changed for it.

        Raises:
            OptionError: If graphs are asked for and the model is not on one CUDA device.
        """
        if cuda_graphs:
            check_one_gpu({parameter.device for parameter in model.parameters()})
        self.model = model
        self.processor = processor
        self.decoder = CanvasDecoder(model, processor, cuda_graphs=cuda_graphs)
        config = self.decoder.config
        n_mel = 2 * int(config.audio_encoder_config.max_source_positions)
        encoder_s = n_mel * int(processor.feature_extractor.hop_length) / SAMPLE_RATE_HZ
        self.max_audio_s = min(float(config.max_audio_s), encoder_s)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model tells apart; empty if it does not."""
        return tuple(self.decoder.languages)

    @property
    def has_draft(self) -> bool:
        """Whether the model has a CTC draft, which decoding may start from."""
        return bool(self.decoder.config.has_draft)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.projector.device

    def read(self, source: AudioSource, sample_rate_hz: int | None = None) -> Samples:
        """Read one clip that the model can take at once; see :func:`canvas_asr.load_audio`.

        Raises:
            AudioError: If it cannot be read, or is longer than the model's limit.
        """
        samples = load_audio(source, sample_rate_hz)
        if len(samples) > self._max_samples:
            name, seconds = file_name(source) or "the array", len(samples) / SAMPLE_RATE_HZ
            raise AudioError(
                f"{name}: {seconds:.1f} s of audio, and this model takes at most {self.max_audio_s:g} s at "
                "once; transcribe() takes audio of any length."
            )
        return samples

    @overload
    def transcribe(
        self,
        source: list[Any],  # of what AudioSource names: a list[str] is no list[AudioSource]
        language: str | None = None,
        steps: int | None = None,
        **options: Unpack[_Keywords],
    ) -> list[Transcript]: ...

    @overload
    def transcribe(
        self,
        source: AudioSource,
        language: str | None = None,
        steps: int | None = None,
        **options: Unpack[_Keywords],
    ) -> Transcript: ...

    def transcribe(
        self,
        source: AudioSource | list[Any],
        language: str | None = None,
        steps: int | None = None,
        *,
        init: str | None = None,
        canvas: int | str | None = None,
        seed: int = 0,
        batch_size: int = 8,
        sample_rate_hz: int | None = None,
        vad: bool | None = None,
        diarize: SpeakerSource = None,
        on_progress: OnProgress | None = None,
        on_pass: OnPass | None = None,
        on_canvas: OnCanvas | None = None,
        **strategies: Unpack[StrategyOptions],
    ) -> Transcript | list[Transcript]:
        """Transcribe a clip, or a list of clips.

        All of a list is read before the first of it is transcribed, so that a bad clip costs no work;
        :meth:`transcribe_files` goes on past bad ones and keeps few in memory.

        Args:
            source: A path, an array with its rate, or a list of them: as :func:`canvas_asr.load_audio` takes
                them. A clip of zero samples has an empty transcript, and no confidence.
            language: Code such as ``de``; None detects it, clip by clip.
            steps: Most denoising passes of a clip; None, as for ``init``: as the checkpoint says.
            init: What the canvas starts from: ``noise``, the CTC ``draft``, or ``draft-slots``.
            canvas: Its tokens; ``auto``: as many as the text needs; None: the model's default.
            seed: Of the noise.
            batch_size: Clips that are transcribed together; one that is done makes room for the next.
            sample_rate_hz: Rate of arrays that come without one.
            vad: Whether only speech is transcribed; None: where audio is longer than the model takes at once.
            diarize: Who spoke when: a callable, or RTTM: see :class:`~canvas_asr.speakers.Speakers`.
            on_progress: Called with the seconds of audio done, never fewer than before, and those in all.
            on_pass: Called after every pass of every clip with the clip's place in the list (0 for one
                clip), the number of the pass from 1, and the text so far.
            on_canvas: Called then with a :class:`~canvas_asr.canvas_view.CanvasView` of what the pass made.
            strategies: Others of :class:`~canvas_asr.options.DecodingOptions`, which explains all.

        Returns:
            A transcript; for a list, a list in the same order.

        Raises:
            AudioError: If a clip cannot be read.
            CheckpointError: If voice activity detection is needed and its model is missing.
            DataError: If an RTTM file cannot be used, or a callable's turns are none.
            OptionError: If an option is out of range.
        """
        options = DecodingOptions(language, steps, init, canvas, seed, **strategies)
        engine = self._engine(options, batch_size, Watchers(on_pass, on_canvas))
        items = source if isinstance(source, list) else [source]
        reader, speakers = self.reader(options, vad), Speakers.of(diarize, items)
        found = {
            one.place: speakers.join(one.transcript(options), items[one.place], sample_rate_hz)
            for one in engine.run_all(reader.open_all(source, sample_rate_hz), on_progress)
        }
        return [found[place] for place in range(len(items))] if isinstance(source, list) else found[0]

    def stream_file(
        self,
        path: FilePath,
        language: str | None = None,
        steps: int | None = None,
        *,
        batch_size: int = 8,
        vad: bool | None = None,
        diarize: SpeakerSource = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[DecodingKeywords],
    ) -> Iterator[Segment]:
        """Transcribe a file and give its segments in order, each as soon as it is ready.

        Args:
            path: An audio file.
            language: See :meth:`transcribe`, as for the other options.
            steps: Most denoising passes.
            batch_size: Segments that are transcribed together.
            vad: See :meth:`transcribe`.
            diarize: See :meth:`transcribe`; a callable is asked before the first segment.
            on_progress: See :meth:`transcribe`.
            options: All others of decoding.

        Raises:
            AudioError: If the file cannot be read.
            DataError: If an RTTM file cannot be used, or a callable's turns are none.
            OptionError: If an option is out of range.
        """
        chosen = DecodingOptions(language, steps, **options)
        engine, speakers = self._engine(chosen, batch_size, NOBODY), Speakers.of(diarize, [path])
        recording = self.reader(chosen, vad).open(0, path)
        news = engine.run(
            [(recording, recording.audio_s)], Progress(on_progress, recording.audio_s), first_alone=True
        )
        segments = (segment for recording in news for segment in recording.take_segments())
        return speakers.join_segments(segments, path)

    def transcribe_files(
        self,
        paths: Iterable[FilePath],
        language: str | None = None,
        steps: int | None = None,
        *,
        batch_size: int = 8,
        vad: bool | None = None,
        diarize: SpeakerSource = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[DecodingKeywords],
    ) -> Iterator[Transcript | AudioError]:
        """Transcribe files as they come, and go on past those that cannot be read.

        Args:
            paths: Audio files.
            language: See :meth:`transcribe`, as for the other options.
            steps: Most denoising passes.
            batch_size: Files that are transcribed together, and at most in memory.
            vad: See :meth:`transcribe`.
            diarize: See :meth:`transcribe`.
            on_progress: See :meth:`transcribe`; of all files together.
            options: All others of decoding.

        Returns:
            An iterator over the paths' transcripts in order; in place of one, the error that says what is
            wrong with the file.

        Raises:
            DataError: If an RTTM file cannot be used; later, if a callable's turns are none.
            OptionError: If an option is out of range.
        """
        chosen = DecodingOptions(language, steps, **options)
        engine = self._engine(chosen, batch_size, NOBODY)
        reader, speakers = self.reader(chosen, vad), Speakers.of(diarize, None)
        expected_s: list[float | None] = []
        if on_progress is not None and isinstance(paths, Sequence):
            expected_s = [header_seconds(os.fsdecode(path)) for path in paths]
        progress = Progress(on_progress, sum(seconds or 0.0 for seconds in expected_s))
        recordings = (
            (reader.open_or_fail(place, path, speakers.refusal(path)), seconds)
            for place, (path, seconds) in enumerate(zip(paths, expected_s or repeat(None), strict=False))
        )
        news = engine.run(recordings, progress)
        return (speakers.join_or_fail(recording.result(chosen)) for recording in news if recording.is_done)

    def transcribe_arrays(
        self,
        arrays: Sequence[Samples],
        *,
        language: str | None = None,
        steps: int | None = None,
        batch_size: int = 8,
        **options: Unpack[DecodingKeywords],
    ) -> list[Transcript]:
        """Transcribe 16 kHz mono clips, one transcript for each, in order.

        Args:
            arrays: Samples, (n,) each.
            language: See :meth:`transcribe`, as for the other options.
            steps: Most denoising passes.
            batch_size: Clips that are transcribed together.
            options: All others of decoding.

        Raises:
            AudioError: If an array is no audio.
            OptionError: If an option is out of range.
        """
        clips = [(array, SAMPLE_RATE_HZ) for array in arrays]
        return self.transcribe(clips, language, steps, batch_size=batch_size, **options)

    @property
    def _max_samples(self) -> int:
        return round(self.max_audio_s * SAMPLE_RATE_HZ) + ROUNDING_SAMPLES

    def reader(self, options: DecodingOptions, vad: bool | None) -> RecordingReader:
        """What opens recordings.

        Raises:
            OptionError: If ``vad`` is none of True, False and None.
        """
        max_chunk = max_chunk_samples(self.decoder, options, self.max_audio_s)
        return RecordingReader(self._max_samples, max_chunk, vad)

    def _engine(self, options: DecodingOptions, batch_size: int, watchers: Watchers) -> LongForm:
        """What decodes; made before any audio is read.

        Raises:
            OptionError: If an option is out of range, or the model cannot follow it.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(f"batch_size is {batch_size!r}; give at least 1.")
        return LongForm(self.decoder, options, batch_size, watchers=watchers)
