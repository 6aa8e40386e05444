"""The whole model: audio encoder, projector, CTC tap and backbone with its LoRA.

Importing it registers it with the Auto classes and the pipelines of ``transformers``. What ``transformers``
wants as methods of a model, loading, saving and generation, is written in modules that build on this one, and
is imported when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from . import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none
from .backbone import build_backbone, denoise, encode_prefix, inject_lora, output_logits, soft_embed
from .configuration import CanvasASRConfig
from .encoder import encode_audio
from .errors import OptionError
from .hub import HubAccess, upload
from .options import StrategyOptions
from .parts import LoadOptions, OtherParts
from .positions import prompt_positions
from .processing import CanvasASRProcessor
from .projector import AudioProjector, CTCTap
from .registration import register

if TYPE_CHECKING:
    from transformers import DiffusionGemmaForBlockDiffusion
    from transformers.generation.streamers import BaseStreamer
    from typing_extensions import Unpack


# Arguments that the Auto classes and pipelines of transformers pass to every class.
_FOR_OTHERS = (
    "adapter_kwargs",
    "code_revision",
    "low_cpu_mem_usage",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
)


def _refuse_unknown(arguments: Iterable[str], owner: str) -> None:
    """Raise TypeError for an argument of ``from_pretrained`` that no class of ``transformers`` is given."""
    for name in arguments:
        if not name.startswith("_") and name not in _FOR_OTHERS:
            raise TypeError(f"from_pretrained() of {owner} has no argument {name!r}.")


class CanvasASRModel(PreTrainedModel):
    """Speech recognition by denoising a canvas of tokens.

    Only the projector, the CTC tap and the LoRA matrices (the adapter) require gradients.
    """

    config: CanvasASRConfig
    config_class = CanvasASRConfig
    main_input_name = "input_features"
    input_modalities = "audio"
    _supports_sdpa = True
    # transformers declares it, a class's constant, as an instance's variable.
    _no_split_modules: ClassVar[list[str]] = [  # type: ignore[misc]
        "DiffusionGemmaDecoderTextLayer",
        "DiffusionGemmaEncoderTextLayer",
    ]

    def __init__(
        self,
        config: CanvasASRConfig,
        *,
        backbone: DiffusionGemmaForBlockDiffusion | None = None,
        audio_encoder: WhisperEncoder | None = None,
    ) -> None:
        """Build around the frozen parts, with random weights where none are given.

        Args:
            config: Geometry of all parts.
            backbone: A loaded backbone; LoRA is injected into it.
            audio_encoder: A loaded audio encoder.
        """
        super().__init__(config)
        self.audio_encoder = audio_encoder or WhisperEncoder(config.audio_encoder_config)
        self.audio_encoder.requires_grad_(False)
        self.projector = AudioProjector(config)
        self.ctc_tap = CTCTap(config)
        self.backbone = backbone or build_backbone(config.backbone_config)
        inject_lora(self.backbone, config.lora_rank, config.lora_alpha)
        self.processor: CanvasASRProcessor | None = None  # of the checkpoint that it was loaded from
        # Features are what the projector takes: frames of a waveform, or of the audio encoder, run before.
        self.takes_frames = config.reads_waveform

    def _init_weights(self, module: Any) -> None:
        """Leave weights alone: each part initialises its own, and stock initialisation would undo LoRA's."""

    def audio_tokens(self, mel: Tensor, n_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio and project it.

        Args:
            mel: Log-mel features, (B, n_mels, T_mel), right-padded; with ``takes_frames``, frames
                (B, d_audio, T).
            n_mel: Valid mel frames of each clip, (B,) int64.

        Returns:
            Audio tokens (B, A, D) and how many of them are valid (B,).
        """
        if self.takes_frames:
            given: tuple[Tensor, Tensor] = self.projector(mel.mT.to(self.ctc_tap.scale.dtype), n_mel)
            return given
        # A frozen encoder keeps no activations.
        trains = self.audio_encoder.conv1.weight.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(trains):
            frames, n_frames = encode_audio(self.audio_encoder, mel, n_mel, pad_to_30s=self.config.pad_to_30s)
        tokens: tuple[Tensor, Tensor] = self.projector(frames, n_frames)
        return tokens

    def ctc_logits(self, audio_tokens: Tensor) -> Tensor:
        """Read audio tokens (B, A, D) through the frozen output layer, (B, A, V)."""
        return self.read_ctc_states(self.ctc_tap(audio_tokens))

    def read_ctc_states(self, states: Tensor) -> Tensor:
        """Read states of the CTC tap (..., D) through the frozen output layer, (..., V)."""
        return output_logits(self.backbone, states, softcap=self.config.ctc_softcap)

    def expected_embeddings(self, logits: Tensor) -> Tensor | None:
        """Mean input embedding under CTC logits (B, A, V), (B, A, D); None where prompts hold none."""
        if self.config.audio_embeddings == "projector":
            return None
        return soft_embed(self.backbone, logits)

    def embed_audio(self, audio_tokens: Tensor, expected: Tensor | None) -> Tensor:
        """Say what stands in the audio slots of a prompt, (B, A, D).

        Args:
            audio_tokens: (B, A, D).
            expected: What :meth:`expected_embeddings` makes of their CTC logits.
        """
        if expected is None:
            return audio_tokens
        return expected + self.ctc_tap.prompt_scale * audio_tokens

    def embed_prompt(
        self, prompt_ids: Tensor, audio_tokens: Tensor, n_audio: Tensor, audio_id: int
    ) -> Tensor:
        """Embed a prompt and scatter audio into its placeholder slots.

        Args:
            prompt_ids: (B, P) int64, right-padded.
            audio_tokens: (B, A, D), as :meth:`embed_audio` gives them.
            n_audio: Valid audio tokens of each clip, (B,) int64.
            audio_id: Id of the placeholder token.

        Returns:
            Scaled input embeddings, (B, P, D).

        Raises:
            ValueError: If a row's placeholders and audio tokens differ in number.
        """
        slots = prompt_ids == audio_id
        if not torch.equal(slots.sum(dim=1), n_audio):
            raise ValueError(
                f"the prompt has {slots.sum(dim=1).tolist()} audio slots for {n_audio.tolist()} audio tokens."
            )
        embeds: Tensor = self.backbone.get_input_embeddings()(prompt_ids)
        valid = torch.arange(audio_tokens.shape[1], device=n_audio.device)[None, :] < n_audio[:, None]
        return embeds.masked_scatter(slots[..., None], audio_tokens[valid].to(embeds.dtype))

    def prompt_positions(
        self, prompt_ids: Tensor, labels: Tensor, n_audio: Tensor, audio_id: int
    ) -> Tensor | None:
        """Positions of a prompt, (B, P) float32, as the configuration has them; None: 0, 1, 2, ...

        Args:
            prompt_ids: (B, P) int64, right-padded.
            labels: Likeliest CTC label of every audio token, (B, A) int64.
            n_audio: Valid audio tokens of each clip, (B,) int64.
            audio_id: Id of the placeholder token.
        """
        if self.config.audio_positions == "frames":
            return None
        return prompt_positions(prompt_ids == audio_id, labels, n_audio, self.config.blank_token_id)

    def encode_prefix(self, embeds: Tensor, positions: Tensor | None = None) -> tuple[Tensor, DynamicCache]:
        """See :func:`canvas_asr.backbone.encode_prefix`."""
        return encode_prefix(self.backbone, embeds, positions)

    def denoise(self, canvas: Tensor, prefix: DynamicCache, n_prompt: Tensor, **kwargs: Any) -> Tensor:
        """See :func:`canvas_asr.backbone.denoise`."""
        return denoise(self.backbone, canvas, prefix, n_prompt, **kwargs)

    def output_logits(self, hidden: Tensor) -> Tensor:
        """Read decoder states (..., D) through the output layer, (..., V)."""
        return output_logits(self.backbone, hidden)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: CanvasASRConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | None = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        backbone: str | os.PathLike[str] | None = None,
        audio_encoder: str | os.PathLike[str] | None = None,
        backbone_revision: str | None = None,
        audio_encoder_revision: str | None = None,
        **kwargs: Any,
    ) -> CanvasASRModel:
        """Load a checkpoint, or an adapter and the frozen parts that it names.

        Args:
            pretrained_model_name_or_path: ``tiny``, a folder, a name of the hub, or a released adapter file.
            config: In place of the checkpoint's.
            dtype: Of the tensors; None or ``auto``: as the backbone is stored.
            device_map: For the backbone; None loads to the CPU.
            revision: Branch, tag or commit of the adapter; its parts have theirs in the configuration.
            token: Of an account on the hub.
            local_files_only: Make no connection.
            cache_dir: Of the hub's files.
            quantization_config: For the backbone.
            attn_implementation: ``sdpa`` or ``eager``.
            backbone: Folder or hub name, in place of the one that the checkpoint names.
            audio_encoder: The same for the audio encoder.
            backbone_revision: Branch, tag or commit of the backbone, in place of the configuration's.
            audio_encoder_revision: The same for the audio encoder.
            kwargs: What the Auto classes and pipelines add for classes of other kinds.

        Returns:
            The model in evaluation mode, its processor as its attribute ``processor``.

        Raises:
            CheckpointError: If something is missing, damaged or does not fit.
            OptionError: If the dtype is unknown.
            TypeError: For an argument that is none of these.
        """
        from .loading import load_model

        _refuse_unknown(kwargs, cls.__name__)
        options = LoadOptions(
            dtype=kwargs.get("torch_dtype", dtype) or "auto",
            device_map=device_map,
            quantization_config=quantization_config,
            attn_implementation=attn_implementation,
            access=HubAccess(revision, token, local_files_only, cache_dir),
            others=OtherParts(backbone, audio_encoder, backbone_revision, audio_encoder_revision),
        )
        return load_model(pretrained_model_name_or_path, options, config=config)[0]

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the adapter, with a model card; frozen parts only where the configuration has them beside it.

        Args:
            save_directory: Folder, made if need be. A ``README.md`` that is there stays.
            push_to_hub: Upload the folder too, to the repository ``repo_id``, or one named like it.
            kwargs: ``repo_id`` and what else :meth:`push_to_hub` takes.

        Raises:
            CheckpointError: If a part that is not written was trained, or a quantised one would be written.
        """
        from .card import write_model_card
        from .checkpoint import save_checkpoint

        folder = Path(save_directory)
        beside = any("/" not in name for name in (self.config.backbone, self.config.audio_encoder))
        save_checkpoint(self, self.processor, folder, whole=beside, dtype=None)
        write_model_card(folder, self.config)
        if push_to_hub:
            upload(folder, kwargs.pop("repo_id", folder.name), **_for_upload(kwargs))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Write the model to a repository of the hub, as :meth:`save_pretrained` writes it to a folder.

        Args:
            repo_id: ``owner/name``, or ``name`` for the account's own; made if need be.
            kwargs: ``token``, ``private``, ``revision``, ``create_pr``, ``commit_message`` and
                ``commit_description``, as for every model of ``transformers``.

        Returns:
            Address of the commit.

        Raises:
            CheckpointError: If the model cannot be written, or the repository not be written to.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, **_for_upload(kwargs))

    def generate(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_steps: int | None = None,
        init: str | None = None,
        canvas_length: int | str | None = None,
        language: str | None = None,
        seed: int = 0,
        streamer: BaseStreamer | None = None,
        processor: CanvasASRProcessor | None = None,
        **strategies: Unpack[StrategyOptions],
    ) -> Tensor:
        """Transcribe log-mel features to token ids; :func:`canvas_asr.load` gives text, confidence and more.

        Args:
            input_features: (B, n_mels, T_mel), right-padded, as the processor makes them.
            attention_mask: 1 at valid frames, (B, T_mel); None: all are valid.
            num_steps: Most denoising passes; 0, with ``init="draft"`` only, gives the draft as it is.
            init: What the canvas starts from: ``noise``, the CTC ``draft``, or ``draft-slots``. If neither is
                given, the checkpoint's defaults hold; ``num_steps`` alone means passes from noise.
            canvas_length: Tokens of the canvas; ``auto``: as the draft needs; None: the checkpoint's.
            language: Code of all clips; None detects it.
            seed: Of the noise, which is drawn for each clip from it and the clip's length.
            streamer: Is shown the draft (B, L), then the canvas (B, C) after every pass.
            processor: Of the checkpoint; None: the one that came with the model.
            strategies: Further options, such as ``acceptance``, ``gate`` or ``candidates``: see
                :class:`~canvas_asr.options.DecodingOptions`.

        Returns:
            Text token ids without language tag, (B, L) int64, right-padded.

        Raises:
            OptionError: If an option or a shape is wrong, or there is no processor.
        """
        from .generation import generate

        processor = processor or self.processor
        if processor is None:
            raise OptionError(
                "the model was not loaded with a processor; give processor=, as CanvasASRProcessor loads it."
            )
        return generate(
            self,
            processor,
            input_features,
            attention_mask,
            streamer=streamer,
            steps=num_steps,
            init=init,
            canvas_length=canvas_length,
            language=language,
            seed=seed,
            **strategies,
        )


def _for_upload(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out what push_to_hub takes of models that come in shards and may be tagged."""
    return {name: value for name, value in arguments.items() if name not in ("max_shard_size", "tags")}


register(CanvasASRModel)
