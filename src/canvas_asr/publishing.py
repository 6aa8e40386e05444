"""Sharing a checkpoint on the hub: whether others can load it, what is uploaded, and the upload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from .card import CARD_NAME
from .checkpoint import ADAPTER_NAME, apply_adapter, load_checkpoint, read_adapter
from .configuration import CanvasASRConfig, load_configuration
from .errors import CheckpointError, OptionError
from .hub import CONFIG_NAME, NOT_WRITTEN, is_hub_name, upload, upload_error
from .modeling import CanvasASRModel
from .processing import load_processor

# What loading reads, and the card; anything else in a folder is not meant for others.
SUFFIXES = (".json", ".jinja", ".model", ".safetensors")


@dataclass(frozen=True)
class Shipment:
    """What of a folder is uploaded.

    Attributes:
        folder: Of the checkpoint.
        files: Size in bytes by relative path.
        left_out: Other files of the folder.
    """

    folder: Path
    files: dict[str, int]
    left_out: list[str]

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def pack(folder: Path) -> Shipment:
    """Check that a checkpoint loads, also for others, and choose what is uploaded.

    Args:
        folder: Of the checkpoint.

    Raises:
        CheckpointError: If it does not load, names frozen parts that others do not have, or has no card.
    """
    config = load_configuration(folder)
    beside = [name for name in (config.backbone, config.audio_encoder) if (folder / name).is_dir()]
    for key in ("backbone", "audio_encoder"):
        name = getattr(config, key)
        if name not in beside and (not is_hub_name(name) or Path(name).is_dir()):
            raise CheckpointError(
                f"{folder / CONFIG_NAME}: {key} is {name!r}, which others do not have; name one of the hub, "
                "as owner/name, or save the model whole."
            )
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{folder}: has no model card; make it with `canvas-asr card {folder}`.")
    _check_loads(folder, config, whole=len(beside) == 2)
    files, left_out = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        parent = path.parent.relative_to(folder).as_posix()
        if (path.suffix in SUFFIXES and parent in (".", *beside)) or name == CARD_NAME:
            files[name] = path.stat().st_size
        else:
            left_out.append(name)
    return Shipment(folder, files, left_out)


def _check_loads(folder: Path, config: CanvasASRConfig, *, whole: bool) -> None:
    """Load a checkpoint; where its parts are on the hub, all but these, into a model without memory."""
    path = folder / ADAPTER_NAME
    state = read_adapter(path, config)
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: tensor {name!r} holds values that are not finite numbers.")
    if whole:
        load_checkpoint(folder)
        return
    load_processor(folder, config)
    with torch.device("meta"):
        model = CanvasASRModel(config)
    apply_adapter(model, state, path)


def publish(
    shipment: Shipment,
    name: str,
    *,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> str:
    """Upload a checkpoint with its card.

    Args:
        shipment: What to upload.
        name: ``owner/name``; the repository is made if need be.
        token: Of an account; None takes the stored one.
        private: Only the owner sees a new repository.
        revision: Branch, made if need be; None: the default one.
        create_pr: Propose the change instead of making it.
        message: Of the commit.

    Returns:
        Address of the commit.

    Raises:
        OptionError: If the name is none, or something private would go to a public repository.
        CheckpointError: If there is no account, it may not write there, or the hub cannot be reached.
    """
    if not is_hub_name(name):
        raise OptionError(f"{name}: give the repository as owner/name.")
    if token is None and get_token() is None:
        raise CheckpointError(
            f"{name}: cannot be written: nobody is logged in here; run `hf auth login`, or give a token with "
            "--token-from-env."
        )
    if private:
        _check_private(name, token)
    return upload(
        shipment.folder,
        name,
        token=token,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        files=list(shipment.files),
        replace_card=True,
    )


def _check_private(name: str, token: str | None) -> None:
    """Refuse a public repository: to one that exists, being private is not applied."""
    try:
        is_private = bool(HfApi(token=token).repo_info(name).private)
    except RepositoryNotFoundError:
        return
    except NOT_WRITTEN as error:
        raise upload_error(name, error) from error
    if not is_private:
        raise OptionError(
            f"{name}: exists and is public; make it private on its page, or leave --private out."
        )
