"""Configuration: geometry of the parts, prompt framing and the limits of a checkpoint.

The same classes describe the embedded model and the 26B system; only values differ.
"""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import transformers

from .errors import CheckpointError, OptionError
from .hub import CONFIG_NAME, MODEL_TYPE, UNREADABLE, cannot_load
from .languages import LANGUAGES
from .options import RELEASED_INIT, SELF_CONDITIONING, DecodingOptions
from .projector_layers import describe_layers, parse_layers, stride_of, width_of

try:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, PreTrainedConfig, WhisperConfig
except ImportError as _error:
    raise CheckpointError(
        f"transformers {transformers.__version__} has no DiffusionGemma; install one that has it: "
        "pip install 'transformers>=5.17'."
    ) from _error

PROJECTOR_KINDS = ("conv", "stack_mlp", "chain")
# Names of transformers' activations, and each kind's own.
PROJECTOR_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")
ACTIVATION_OF_KIND = {"conv": "gelu", "stack_mlp": "silu", "chain": "gelu"}
LANGUAGE_TAG_PLACES = ("canvas", "none")
AUDIO_FRONT_ENDS = ("whisper", "waveform")
AUDIO_POSITIONS = ("frames", "spikes")
AUDIO_EMBEDDINGS = ("projector", "posterior")
CANVAS_PLACES = ("transcript", "draft")
CONTEXT_PLACE = "{text}"
WAVEFORM_FRAME = 640  # samples of 16 kHz: 40 ms


def text_config(config: DiffusionGemmaConfig) -> DiffusionGemmaTextConfig:
    """Give the text geometry of a backbone; its field also admits the dict or None that it was made from."""
    return cast(DiffusionGemmaTextConfig, config.text_config)


_Part = TypeVar("_Part", bound=PreTrainedConfig)


def _part(kind: type[_Part], given: Any) -> _Part:
    """Give the configuration of a frozen part, which JSON holds as a dict; None: with its defaults."""
    return kind(**given) if isinstance(given, dict) else given or kind()


class CanvasASRConfig(PreTrainedConfig):
    """All that the code must know about a checkpoint besides its tensors.

    Args:
        backbone: Hub name of the frozen DiffusionGemma, or a folder beside ``config.json``.
        audio_encoder: Hub name of the frozen Whisper, or a folder beside ``config.json``.
        backbone_revision: Commit of the backbone on the hub; None takes its default branch.
        audio_encoder_revision: The same for the audio encoder.
        backbone_config: Geometry of the backbone.
        audio_encoder_config: Geometry of the audio encoder.
        audio_front_end: ``whisper``: log-mel features through the audio encoder. ``waveform``: frames of
            40 ms, 640 samples each, straight to the projector, and the audio encoder is not run: the variant
            that the released system's authors report as failed, for comparison.
        projector_kind: ``conv``: stride-2 convolutions and a linear map (the released shape).
            ``stack_mlp``: LayerNorm, stacked frames, SiLU MLP. ``chain``: the layers of ``projector_layers``.
        projector_width: Channels of the convolutions, or hidden width of the MLP; of a chain it is what its
            first layer gives, whatever is given here.
        projector_stride: Encoder frames per audio token: a power of two for ``conv``; of a chain it follows
            from its convolutions.
        projector_activation: After each convolution, or between the linear maps, or where a chain says so;
            None: ``gelu`` for ``conv`` and ``chain``, ``silu`` for ``stack_mlp``.
        projector_layers: Layers of a chain in their order, ``linear 1280``, ``conv 1280``, ``norm`` and
            ``activation`` (:mod:`canvas_asr.projector_layers`).
        lora_rank: Rank of the LoRA matrices on q, k, v, o of every layer, encoder and decoder apart; 0: none,
            so that the adapter is the projector and the CTC tap alone.
        lora_alpha: LoRA scale is ``lora_alpha / lora_rank``.
        audio_positions: ``frames``: every audio token has a position of its own and the canvas follows the
            prompt (the released system). ``spikes``: audio tokens stand on the canvas's own axis, counted by
            the spikes of their CTC reading (:mod:`canvas_asr.positions`).
        audio_embeddings: ``projector``: audio tokens stand in the prompt as they are (the released system).
            ``posterior``: in their place stand the input embeddings that the CTC tap expects, weighted by its
            probabilities, plus the audio token by a learned scale; a backbone that reads text can read them
            from the first step (after arXiv 2505.11352).
        canvas_places: ``transcript``: a canvas holds the transcript and nothing else (the released system).
            ``draft``: it was trained to keep each token in its place in the CTC draft, and may hold the
            blank, which writes nothing, where the draft has a token too many.
        prompt_prefix: Text before the audio slots, special tokens written out.
        prompt_suffix: Text after the audio slots.
        prompt_context: What stands between prefix and audio where a text to go by is given, ``{text}`` in its
            place and special tokens written out: ``Context: {text}`` for example. None: the checkpoint was
            not trained with such texts and takes none.
        audio_token: The placeholder, repeated once per audio token.
        language_tags: Language code to the special token that opens its canvas; empty or None: ``<|en|>`` for
            ``en`` and so on, for all six.
        language_tag_place: ``canvas``: the first canvas token names the language. ``none``: no tag.
        blank_token_id: The CTC blank, an id that no transcript uses.
        mask_token_id: What stands on a canvas where nothing is decided yet, an id that no transcript uses:
            for a backbone trained with absorbing masks. None: random tokens, DiffusionGemma's way.
        ctc_softcap: Whether the backbone's logit soft-cap applies to the CTC tap.
        has_draft: Whether the CTC tap was trained, so that its reading is a draft. Without it nothing may be
            asked of a draft.
        pad_to_30s: Whether clips are padded to 30 s before the audio encoder, as stock Whisper does.
        max_audio_s: Longest clip in seconds that one canvas may be asked to transcribe.
        canvas_length: Default canvas in tokens.
        max_canvas_length: Longest canvas in tokens that the checkpoint was trained for.
        decoding_init: What canvases start from where a call says neither that nor how many passes they take:
            ``init`` of :class:`~canvas_asr.options.DecodingOptions`. None: ``noise``.
        decoding_steps: Most passes then, ``steps`` there. None: as usual for the start, 8 from noise.
        decoding_self_conditioning: What the first pass from a draft is shown where a call does not say,
            ``self_conditioning`` there: ``posterior`` where the backbone was trained with it
            (``objective.draft_conditioning`` of its recipe).
    """

    model_type = MODEL_TYPE
    sub_configs: ClassVar = {"backbone_config": DiffusionGemmaConfig, "audio_encoder_config": WhisperConfig}

    backbone: str = "backbone"
    audio_encoder: str = "audio_encoder"
    backbone_revision: str | None = None
    audio_encoder_revision: str | None = None
    backbone_config: DiffusionGemmaConfig = field(default_factory=DiffusionGemmaConfig)
    audio_encoder_config: WhisperConfig = field(default_factory=WhisperConfig)
    audio_front_end: str = "whisper"
    projector_kind: str = "stack_mlp"
    projector_width: int = 512
    projector_stride: int = 2
    projector_activation: str | None = None
    projector_layers: list[str] | None = None
    lora_rank: int = 16
    lora_alpha: int = 32
    audio_positions: str = "frames"
    audio_embeddings: str = "projector"
    canvas_places: str = "transcript"
    prompt_prefix: str = "<bos>"
    prompt_suffix: str = "<|transcribe|>"
    prompt_context: str | None = None
    audio_token: str = "<|audio|>"
    language_tags: dict[str, str] = field(default_factory=dict)
    language_tag_place: str = "canvas"
    blank_token_id: int = 6
    mask_token_id: int | None = None
    ctc_softcap: bool = False
    has_draft: bool = True
    pad_to_30s: bool = False
    max_audio_s: float = 30.0
    canvas_length: int = 96
    max_canvas_length: int = 256
    decoding_init: str | None = None
    decoding_steps: int | None = None
    decoding_self_conditioning: str = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields and check all.

        Args:
            kwargs: Further fields of every configuration of ``transformers``.

        Raises:
            ValueError: If no model can be built from a value; the key is named.
        """
        self.backbone_config = _part(DiffusionGemmaConfig, self.backbone_config)
        self.audio_encoder_config = _part(WhisperConfig, self.audio_encoder_config)
        self.projector_activation = self.projector_activation or ACTIVATION_OF_KIND.get(
            self.projector_kind, "gelu"
        )
        if self.projector_kind == "chain":
            layers = parse_layers(self.projector_layers, self.d_audio, self.hidden_size)
            self.projector_width, self.projector_stride = width_of(layers), stride_of(layers)
        self.language_tags = self.language_tags or {language: f"<|{language}|>" for language in LANGUAGES}
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.validate()  # upstream's own checks, which only a @strict class runs by itself
        self._check()

    @property
    def hidden_size(self) -> int:
        """Width D of the backbone."""
        return int(text_config(self.backbone_config).hidden_size)

    @property
    def vocab_size(self) -> int:
        """Vocabulary V of the backbone."""
        return int(text_config(self.backbone_config).vocab_size)

    @property
    def d_audio(self) -> int:
        """Width of the frames that the projector takes: the audio encoder's, or those of the waveform."""
        return WAVEFORM_FRAME if self.reads_waveform else int(self.audio_encoder_config.d_model)

    @property
    def reads_waveform(self) -> bool:
        """Whether the waveform goes to the projector without an audio encoder."""
        return self.audio_front_end == "waveform"

    @property
    def projector_described(self) -> str:
        """The projector in a few words, its stride apart."""
        if self.projector_layers:
            return f"chain of {describe_layers(self.projector_layers, cast(str, self.projector_activation))}"
        return f"{self.projector_kind}, {self.projector_width} wide"

    @property
    def decoding(self) -> DecodingOptions:
        """How clips are decoded where a call gives no options."""
        return DecodingOptions().resolved(
            self.decoding_init, self.decoding_steps, self.decoding_self_conditioning
        )

    def _check(self) -> None:
        """Raise ValueError, naming the key, for values that no model can be built from."""
        choices = (
            ("audio_front_end", self.audio_front_end, AUDIO_FRONT_ENDS),
            ("projector_kind", self.projector_kind, PROJECTOR_KINDS),
            ("projector_activation", self.projector_activation, PROJECTOR_ACTIVATIONS),
            ("language_tag_place", self.language_tag_place, LANGUAGE_TAG_PLACES),
            ("audio_positions", self.audio_positions, AUDIO_POSITIONS),
            ("audio_embeddings", self.audio_embeddings, AUDIO_EMBEDDINGS),
            ("canvas_places", self.canvas_places, CANVAS_PLACES),
            ("decoding_self_conditioning", self.decoding_self_conditioning, SELF_CONDITIONING),
        )
        for key, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{key} is {value!r}; choose one of {', '.join(allowed)}.")
        if self.projector_layers is not None and self.projector_kind != "chain":
            raise ValueError(
                f"projector_layers is given; projector_kind is {self.projector_kind!r}, not 'chain'."
            )
        if self.prompt_context is not None and self.prompt_context.count(CONTEXT_PLACE) != 1:
            raise ValueError(f"prompt_context is {self.prompt_context!r}; write {CONTEXT_PLACE} in it once.")
        for key in ("projector_width", "projector_stride", "canvas_length", "max_canvas_length"):
            if int(getattr(self, key)) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1.")
        if int(self.lora_rank) < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be at least 1, or 0 for no LoRA.")
        stride = self.projector_stride
        if self.projector_kind == "conv" and stride & (stride - 1):
            raise ValueError(f"projector_stride is {stride}; stride-2 convolutions need a power of two.")
        for key in ("blank_token_id", "mask_token_id"):
            token = getattr(self, key)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{key} is {token}, outside the vocabulary of {self.vocab_size}.")
        if self.mask_token_id == self.blank_token_id:
            raise ValueError(f"mask_token_id and blank_token_id are both {self.blank_token_id}; they differ.")
        if self.canvas_length > self.max_canvas_length:
            raise ValueError(
                f"canvas_length {self.canvas_length} exceeds max_canvas_length {self.max_canvas_length}."
            )
        try:
            init = self.decoding.init
        except OptionError as error:  # "steps is 0; ...", of a field whose name begins otherwise
            raise ValueError(f"decoding_{error}") from error
        if init != RELEASED_INIT and not self.has_draft:
            raise ValueError(f"decoding_init is {init!r}, but has_draft is False: there is no draft.")


def load_configuration(folder: Path) -> CanvasASRConfig:
    """Read the configuration of a checkpoint folder, without its tensors.

    Raises:
        CheckpointError: If there is none, or it is not one of this package's, naming the file.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_NAME}; give the folder of a canvas-asr checkpoint.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type is {kind!r}, not {MODEL_TYPE!r}.")
    try:
        return CanvasASRConfig.from_dict(fields)
    except UNREADABLE as error:
        raise cannot_load(path, error) from error
