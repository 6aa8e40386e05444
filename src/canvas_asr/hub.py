"""The hub: fetch what a model's name stands for, and say what to do where that fails.

With ``local_files_only`` or ``HF_HUB_OFFLINE=1`` no connection is made: files come from the cache alone.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers.utils import logging

from .errors import CheckpointError

HUB = "https://huggingface.co"
CONFIG_NAME = "config.json"
MODEL_TYPE = "canvas_asr"
EMBEDDED_MODEL = "tiny"
# What transformers and its libraries raise for files that they cannot make sense of, or cannot read alone.
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, StrictDataclassError)

RELEASED_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]  # configuration and tokenizer
_OFFLINE = threading.RLock()
_HTTPError: Any = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, as the hub's library has it
NOT_WRITTEN = (OSError, HFValidationError, _HTTPError)  # what an upload raises


@dataclass(frozen=True)
class HubAccess:
    """How the hub is asked for files.

    Attributes:
        revision: Branch, tag or commit of the adapter; its frozen parts have theirs in the configuration.
        token: Of an account; True takes the stored one, None takes it where there is one.
        local_files_only: Take files from the cache alone.
        cache_dir: Where the cache is; None: where ``HF_HOME`` says.
    """

    revision: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    cache_dir: str | None = None

    def options(self, revision: str | None) -> dict[str, Any]:
        """Give the arguments of a ``from_pretrained`` for a repository at its own revision."""
        return {
            "revision": revision or "main",
            "token": self.token,
            "local_files_only": self.local_files_only,
            "cache_dir": self.cache_dir,
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Make no connection where files are to come from the cache alone, as with ``HF_HUB_OFFLINE=1``.

        Told ``local_files_only``, the hub's library still asks on its own account, for what its User-Agent
        says. The switch is the process's: other threads are offline too meanwhile.
        """
        if not self.local_files_only:
            yield
            return
        with _OFFLINE:
            before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
            try:
                yield
            finally:
                constants.HF_HUB_OFFLINE = before


DEFAULT_ACCESS = HubAccess()


@contextmanager
def quietly(*, keep_bars: bool = False) -> Iterator[None]:
    """Hold back the advice of transformers: what is wrong is raised, as one sentence.

    Args:
        keep_bars: Let progress bars through, for what may be a download.
    """
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not keep_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars and not keep_bars:
            logging.enable_progress_bar()


def is_hub_name(name: str) -> bool:
    """Whether a string has the form ``owner/name``."""
    return _NAME.fullmatch(name) is not None


def hub_error(name: str, error: BaseException, revision: str | None = None) -> CheckpointError | None:
    """Say in one sentence what to do about a repository that cannot be had.

    Args:
        name: Of the repository.
        error: What was raised; the hub's own error may be its cause.
        revision: That was asked for.

    Returns:
        The error to raise; None if the hub is not the reason.
    """
    page = f"{HUB}/{name}"
    download = f"hf download {name}" + (f" --revision {revision}" if revision not in (None, "main") else "")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return CheckpointError(
                f"{name}: its authors ask for your agreement first; visit {page}, agree there, then run "
                "`hf auth login` (or give token=)."
            )
        if isinstance(cause, RevisionNotFoundError):
            return CheckpointError(f"{name}: has no revision {revision!r}; see {page}/commits/main.")
        if isinstance(cause, (RepositoryNotFoundError, LocalTokenNotFoundError)):
            return CheckpointError(
                f"{name}: no such repository, or a private one; check {page}, and run `hf auth login` if you "
                "may see it."
            )
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            return CheckpointError(f"{name}: access is denied; visit {page}, and run `hf auth login`.")
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, _HTTPError)):
            return CheckpointError(
                f"{name}: not whole in the cache, and the hub cannot be reached; run `{download}` where it "
                f"can ({page}), or give a local folder."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def cannot_load(source: str | Path, error: Exception, revision: str | None = None) -> CheckpointError:
    """Say in one sentence why something cannot be loaded, and what to do where the hub is the reason."""
    if not Path(source).exists() and (explained := hub_error(str(source), error, revision)):
        return explained
    reason = " ".join(str(error).split())  # some span lines
    kind = f"no key {reason}" if isinstance(error, KeyError) else reason
    return CheckpointError(f"{source}: cannot be loaded ({kind}).")


def model_folder(model: str | os.PathLike[str], access: HubAccess = DEFAULT_ACCESS) -> Path:
    """Find the folder of a model: in the package for ``tiny``, at a path, or fetched from the hub.

    Args:
        model: ``tiny``, a folder, or ``owner/name``.
        access: To the hub.

    Raises:
        CheckpointError: If there is no such folder, or it cannot be fetched.
    """
    if model == EMBEDDED_MODEL:
        return Path(__file__).parent / "models" / EMBEDDED_MODEL
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or not is_hub_name(str(model)):
        reason = "is a file, not a folder" if folder.exists() else "no such model"
        raise CheckpointError(
            f"{model}: {reason}; give {EMBEDDED_MODEL!r} (embedded), the folder of a canvas-asr checkpoint, "
            "or owner/name of one on the hub."
        )
    return fetch(str(model), access)


def fetch(name: str, access: HubAccess) -> Path:
    """Fetch the adapter of a repository, by its configuration or as the one ``.pt`` file it holds.

    What is neither, the weights of a backbone for example, is not downloaded.

    Args:
        name: ``owner/name``.
        access: At which revision, and how.

    Returns:
        Its folder in the cache.

    Raises:
        CheckpointError: If it cannot be had, saying what to do, or holds no adapter.
    """
    folder = _snapshot(name, access, _SMALL_FILES)
    if model_type(folder) == MODEL_TYPE:
        return _snapshot(name, access, [*_SMALL_FILES, "*.safetensors"])
    folder = _snapshot(name, access, ["*.pt"])
    if not any(folder.glob("*.pt")):
        raise CheckpointError(f"{name}: holds no canvas-asr checkpoint and no .pt adapter; see {HUB}/{name}.")
    return folder


def _snapshot(name: str, access: HubAccess, patterns: list[str]) -> Path:
    try:
        # Its options have the same names as those of from_pretrained.
        with access.kept():
            return Path(snapshot_download(name, allow_patterns=patterns, **access.options(access.revision)))
    except HFValidationError as error:
        raise CheckpointError(f"{name}: not a name of the hub ({' '.join(str(error).split())}).") from error
    except (OSError, _HTTPError) as error:
        raise hub_error(name, error, access.revision) or CheckpointError(f"{name}: {error}.") from error


def model_type(folder: Path) -> str | None:
    """Give ``model_type`` of a folder's configuration; None if there is none that can be read."""
    try:
        content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = content.get("model_type") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def released_file(folder: Path) -> Path | None:
    """Find the one ``.pt`` file of a folder that holds no configuration of ours.

    Raises:
        CheckpointError: If there are several.
    """
    if model_type(folder) == MODEL_TYPE:
        return None
    files = sorted(folder.glob("*.pt"))
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise CheckpointError(f"{folder}: holds {names}; give the path of the one that is the adapter.")
    return files[0] if files else None


def upload(
    folder: Path,
    name: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    files: Sequence[str] | None = None,
    replace_card: bool = False,
) -> str:
    """Write a folder to a repository of the hub, which is made if need be.

    Args:
        folder: What to upload.
        name: ``owner/name``, or ``name`` for the account's own.
        token: Of the account; None takes the stored one.
        private: Whether a new repository is private; None: as the account is set.
        revision: Branch, made if need be; None: the default one.
        create_pr: Propose the change instead of making it.
        commit_message: First line of the commit.
        commit_description: The rest of it.
        files: What of the folder, by relative path; None: all.
        replace_card: Whether the repository's own README, if it has one, is replaced.

    Returns:
        Address of the commit.

    Raises:
        CheckpointError: If the account may not write there, or the hub cannot be reached.
    """
    api = HfApi(token=token)
    try:
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        keeps_card = not replace_card and api.file_exists(
            name, "README.md", revision=None if create_pr else revision
        )
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=commit_message or "Upload canvas-asr checkpoint",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=None if files is None else list(files),
            ignore_patterns=["README.md"] if keeps_card else None,
        )
    except NOT_WRITTEN as error:
        raise upload_error(name, error) from error
    return str(commit.commit_url)


def upload_error(name: str, error: BaseException) -> CheckpointError:
    """Say in one sentence why a repository cannot be written, and what to do.

    Args:
        name: Of the repository.
        error: One of ``NOT_WRITTEN``.
    """
    reason = " ".join(str(error).split())
    answered = isinstance(error, HfHubHTTPError)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return CheckpointError(
            f"{name}: cannot be written by someone whom the hub does not know ({reason}); run `hf auth "
            "login`, or give another token."
        )
    if isinstance(error, (OfflineModeIsEnabled, ConnectionError)) or (
        isinstance(error, _HTTPError) and not answered
    ):
        return CheckpointError(
            f"{name}: cannot be written: the hub cannot be reached ({reason}); run it again where it can, "
            "without HF_HUB_OFFLINE."
        )
    if status in (403, 404):
        return CheckpointError(
            f"{name}: cannot be written by this account or token ({reason}); check the owner's name, or run "
            "`hf auth login` with a token that may write there."
        )
    return CheckpointError(f"{name}: cannot be written ({reason}).")
