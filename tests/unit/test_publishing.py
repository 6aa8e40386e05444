"""``canvas-asr push`` against a made-up hub: what is checked, listed and uploaded, and how it is refused."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from small_models import small_model, small_processor

from canvas_asr import publishing
from canvas_asr.card import write_model_card
from canvas_asr.checkpoint import save_checkpoint
from canvas_asr.cli import main
from canvas_asr.errors import CheckpointError
from canvas_asr.publishing import pack

ADAPTER_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
}


def save(folder: Path, *, whole: bool) -> Path:
    model = small_model()
    if not whole:
        model.config.backbone, model.config.audio_encoder = "some/backbone", "some/encoder"
    save_checkpoint(model, small_processor(), folder, whole=whole)
    write_model_card(folder, model.config)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("adapter"), whole=False)


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """An adapter whose frozen parts are on the hub."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("Client Error\nfor url", response=response)


class Hub:
    """A hub in memory, in place of ``HfApi``'s methods.

    Attributes:
        repositories: Whether each is private, by name.
        uploads: What was uploaded: name, token, files, options.
        refusal: Raised by whatever is asked of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repositories: dict[str, bool] = {}
        self.uploads: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        for name in ("repo_info", "create_repo", "create_branch", "file_exists", "upload_folder"):
            monkeypatch.setattr(HfApi, name, self._bound(name))
        monkeypatch.setattr(publishing, "get_token", lambda: "stored")

    def _bound(self, name: str) -> Any:
        def call(api: HfApi, *args: Any, **options: Any) -> Any:
            if self.refusal is not None:
                raise self.refusal
            return getattr(self, name)(api, *args, **options)

        return call

    def repo_info(self, _: HfApi, name: str) -> Any:
        if name not in self.repositories:
            raise answer(RepositoryNotFoundError, 404)
        return SimpleNamespace(private=self.repositories[name])

    def create_repo(self, _: HfApi, name: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        self.repositories.setdefault(name, bool(private))
        return SimpleNamespace(repo_id=name)

    def create_branch(self, *_: Any, **__: Any) -> None:
        pass

    def file_exists(self, *_: Any, **__: Any) -> bool:
        return True

    def upload_folder(
        self,
        api: HfApi,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None,
        **options: Any,
    ) -> Any:
        files = {
            path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()
        }
        sent = {
            file
            for file in files
            if any(fnmatch(file, pattern) for pattern in allow_patterns)
            and not any(fnmatch(file, pattern) for pattern in ignore_patterns or ())
        }
        self.uploads.append({"name": repo_id, "token": api.token, "files": sent, **options})
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


# What is uploaded


def test_an_adapter_goes_up_without_what_is_not_its_own(
    adapter: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "notes.txt").write_text("mine")
    (adapter / "optimizer.pt").write_bytes(b"x")
    (adapter / "runs").mkdir()
    (adapter / "runs" / "log.json").write_text("{}")
    assert main(["push", str(adapter), "me/speech"]) == 0
    (sent,) = hub.uploads
    assert sent["name"] == "me/speech"
    assert ADAPTER_FILES <= sent["files"] <= {*ADAPTER_FILES, "tokenizer_config.json", "chat_template.jinja"}
    assert hub.repositories == {"me/speech": False}
    said = capsys.readouterr().out
    assert said.startswith("to me/speech (public if it is new):\n")
    for file in sent["files"]:
        assert f"MB  {file}\n" in said
    assert "not uploaded: notes.txt, optimizer.pt, runs/log.json\n" in said
    assert said.endswith("uploaded: https://hub/commit/1\n")


def test_a_model_with_its_parts_goes_up_whole(tmp_path: Path, hub: Hub) -> None:
    folder = save(tmp_path / "whole", whole=True)
    assert main(["push", str(folder), "me/speech"]) == 0
    parts = {
        f"{part}/{file}"
        for part in ("backbone", "audio_encoder")
        for file in ("config.json", "model.safetensors")
    }
    assert ADAPTER_FILES | parts <= hub.uploads[0]["files"]


def test_a_dry_run_lists_and_uploads_nothing(
    adapter: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusal = AssertionError("asked")
    assert main(["push", str(adapter), "me/speech", "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_token_branch_and_message_are_passed_on(
    adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret\n")
    options = ["--private", "--token-from-env", "MY_TOKEN", "--revision", "v2", "--message", "Second"]
    assert main(["push", str(adapter), "me/speech", *options]) == 0
    (sent,) = hub.uploads
    assert (sent["token"], sent["revision"], sent["commit_message"]) == ("secret", "v2", "Second")
    assert hub.repositories == {"me/speech": True}
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


# What is refused


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "the hub cannot be reached"),
        (ConnectionError("Name or service not known"), "the hub cannot be reached"),
        (answer(HfHubHTTPError, 401), "by someone whom the hub does not know"),
        (answer(HfHubHTTPError, 403), "by this account or token"),
        (answer(RepositoryNotFoundError, 404), "by this account or token"),
        (answer(HfHubHTTPError, 500), "Client Error for url"),
    ],
)
def test_each_refusal_is_one_sentence(
    adapter: Path, hub: Hub, capsys: pytest.CaptureFixture[str], refusal: Exception, words: str
) -> None:
    hub.refusal = refusal
    assert main(["push", str(adapter), "me/speech"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("canvas-asr: error: me/speech: cannot be written")
    assert words in line


def test_nobody_is_logged_in(
    adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    hub.refusal = AssertionError("asked")
    assert main(["push", str(adapter), "me/speech"]) == 1
    assert "nobody is logged in here; run `hf auth login`" in capsys.readouterr().err
    monkeypatch.delenv("MY_TOKEN", raising=False)
    assert main(["push", str(adapter), "me/speech", "--token-from-env", "MY_TOKEN"]) == 1
    assert "--token-from-env MY_TOKEN: this environment variable is not set" in capsys.readouterr().err


def test_private_is_not_forgotten_where_a_public_repository_exists(
    adapter: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["me/speech"] = False
    assert main(["push", str(adapter), "me/speech", "--private"]) == 1
    assert "exists and is public" in capsys.readouterr().err
    assert not hub.uploads
    hub.repositories["me/speech"] = True
    assert main(["push", str(adapter), "me/speech", "--private"]) == 0


def test_a_name_without_owner_is_refused(adapter: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(adapter), "speech"]) == 1
    assert "speech: give the repository as owner/name" in capsys.readouterr().err


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["projector.out.weight"]
    save_file(state, folder / "model.safetensors")


def spoil_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["projector.out.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors")


def name_a_folder(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": "/home/me/backbone"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_tensor, r"model\.safetensors: tensor 'projector\.out\.weight' is missing"),
        (spoil_tensor, r"'projector\.out\.weight' holds values that are not finite"),
        (name_a_folder, r"backbone is '/home/me/backbone', which others do not have"),
        (lambda folder: (folder / "README.md").unlink(), r"no model card; make it with `canvas-asr card"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
    ],
)
def test_what_does_not_load_is_not_uploaded(adapter: Path, damage: Any, words: str) -> None:
    damage(adapter)
    with pytest.raises(CheckpointError, match=words):
        pack(adapter)
