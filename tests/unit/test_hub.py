"""Names of the hub: what is taken from the cache, and what is said where something cannot be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_layout import put_in_cache
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from canvas_asr.errors import CheckpointError
from canvas_asr.hub import HubAccess, fetch, hub_error, is_hub_name, model_folder, released_file, upload

NAME = "someone/speech"
OURS = '{"model_type": "canvas_asr"}'


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """The error that the hub's library makes of an answer."""
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("Client Error\nfor url", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(GatedRepoError, 403), ("agree", "https://huggingface.co/someone/speech", "hf auth login")),
        (
            answer(RepositoryNotFoundError, 401),
            (
                "no such repository, or a private one",
                "https://huggingface.co/someone/speech",
                "hf auth login",
            ),
        ),
        (answer(RevisionNotFoundError, 404), ("no revision 'v9'", "speech/commits/main")),
        (answer(HfHubHTTPError, 403), ("access is denied", "hf auth login")),
        (answer(HfHubHTTPError, 503), ("hf download someone/speech --revision v9",)),
        (LocalEntryNotFoundError("gone"), ("hf download someone/speech --revision v9", "cache")),
        (OfflineModeIsEnabled("offline"), ("hf download someone/speech --revision v9",)),
    ],
)
def test_each_refusal_says_what_to_do(error: Exception, words: tuple[str, ...]) -> None:
    try:
        raise OSError("a long text of transformers\nin lines") from error  # as from_pretrained wraps it
    except OSError as wrapped:
        for found in (hub_error(NAME, error, "v9"), hub_error(NAME, wrapped, "v9")):
            message = str(found)
            assert message.startswith(f"{NAME}: ")
            assert "\n" not in message
            assert all(word in message for word in words)


def test_other_errors_are_not_the_hubs() -> None:
    assert hub_error(NAME, ValueError("a bad file")) is None


@pytest.mark.parametrize(
    ("name", "is_name"),
    [("a/b", True), ("a-b/c.d_e", True), ("a", False), ("a/b/c", False), ("./a", False), ("/a", False)],
)
def test_names_have_an_owner(name: str, is_name: bool) -> None:
    assert is_hub_name(name) is is_name


@pytest.fixture
def access(tmp_path: Path) -> HubAccess:
    return HubAccess(cache_dir=str(tmp_path / "cache"))


def repository(tmp_path: Path, access: HubAccess, files: dict[str, str], **options: str) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return put_in_cache(Path(str(access.cache_dir)), NAME, folder, **options)


def test_what_is_cached_needs_no_connection(tmp_path: Path, access: HubAccess) -> None:
    cached = repository(tmp_path, access, {"config.json": OURS, "model.safetensors": "x"})
    assert fetch(NAME, access) == cached
    assert model_folder(NAME, access) == cached
    assert fetch(NAME, HubAccess(None, None, True, access.cache_dir)) == cached


def test_a_revision_is_looked_for_by_its_name(tmp_path: Path, access: HubAccess) -> None:
    cached = repository(tmp_path, access, {"config.json": OURS}, revision="v2")
    assert fetch(NAME, HubAccess("v2", cache_dir=access.cache_dir)) == cached
    with pytest.raises(CheckpointError, match=r"^someone/speech: .* `hf download someone/speech` where"):
        fetch(NAME, access)


def test_what_is_not_cached_is_one_error_that_names_the_command(access: HubAccess) -> None:
    with pytest.raises(CheckpointError, match=r"`hf download someone/speech --revision v1`") as raised:
        fetch(NAME, HubAccess("v1", cache_dir=access.cache_dir))
    assert "https://huggingface.co/someone/speech" in str(raised.value)


def test_a_repository_may_hold_a_released_file_alone(tmp_path: Path, access: HubAccess) -> None:
    repository(tmp_path, access, {"adapter.pt": "x", "config.json": '{"model_type": "other"}'})
    folder = fetch(NAME, access)
    assert released_file(folder) == folder / "adapter.pt"
    (folder / "config.json").write_text(OURS)
    assert released_file(folder) is None


def test_a_repository_of_another_kind_is_refused(tmp_path: Path, access: HubAccess) -> None:
    repository(tmp_path, access, {"config.json": '{"model_type": "whisper"}', "model.safetensors": "x"})
    with pytest.raises(CheckpointError, match=r"^someone/speech: holds no canvas-asr checkpoint and no \.pt"):
        fetch(NAME, access)


def test_of_several_released_files_none_is_guessed(tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds one\.pt, two\.pt; give the path"):
        released_file(tmp_path)


# Upload


@pytest.mark.parametrize("has_card", [False, True])
def test_an_upload_keeps_a_card_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_card: bool
) -> None:
    calls: dict[str, Any] = {}

    def create_repo(self: HfApi, name: str, **options: Any) -> Any:
        calls["repo"] = (self.token, options["private"])
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self: HfApi, **options: Any) -> Any:
        calls["upload"] = options
        return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_branch", lambda self, name, **o: calls.update(branch=(name, o)))
    monkeypatch.setattr(HfApi, "file_exists", lambda *_, **__: has_card)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert upload(tmp_path, "speech", token="t", private=True, revision="v1") == "https://hub/commit/1"
    assert calls["repo"] == ("t", True)
    assert calls["branch"][0] == calls["upload"]["repo_id"] == "me/speech"
    assert calls["upload"]["revision"] == "v1"
    assert calls["upload"]["ignore_patterns"] == (["README.md"] if has_card else None)


def test_an_upload_that_is_refused_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise answer(HfHubHTTPError, 403)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"^me/speech: cannot be written .* `hf auth login`"):
        upload(tmp_path, "me/speech")


# The library


def test_a_transformers_without_the_backbone_is_one_error() -> None:
    code = """
import sys
import transformers

lazy = type(transformers)
given = lazy.__getattr__

def without(self, name):
    if name.startswith("DiffusionGemma"):
        raise AttributeError(name)
    return given(self, name)

lazy.__getattr__ = without
from canvas_asr.cli import main

for command in (["transcribe", "clip.wav"], ["info", "tiny"], ["convert", "adapter.pt", "out"]):
    print(main(command))
from canvas_asr.inference import main

print(main([sys.argv[1]]))
import canvas_asr

try:
    canvas_asr.CanvasASRModel
except canvas_asr.CanvasASRError as error:
    print(error)
"""
    clip = str(Path(__file__).parents[2] / "examples" / "en.flac")
    done = subprocess.run([sys.executable, "-c", code, clip], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    advice = "has no DiffusionGemma; install one that has it: pip install 'transformers>=5.17'."
    *codes, message = done.stdout.splitlines()
    assert codes == ["1"] * 4
    assert message.endswith(advice)
    assert done.stderr == f"canvas-asr: error: {message}\n" * 4
