"""Settings of the server, and its keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from canvas_asr.errors import OptionError
from canvas_asr.serving.auth import given_key, is_key
from canvas_asr.serving.settings import ServerSettings


def test_a_model_is_served_under_its_name_and_never_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "adapter.pt"
    file.touch()
    assert ServerSettings().served_names == ("tiny",)
    assert ServerSettings(model="owner/name").served_names == ("owner/name",)
    assert ServerSettings(model=str(folder)).served_names == ("mine",)
    assert ServerSettings(model=f"{folder}/").served_names == ("mine",)
    assert ServerSettings(model=str(file)).served_names == ("adapter",)
    assert ServerSettings(model=str(file), model_names=("a", "b")).served_names == ("a", "b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("max_batch", 0),
        ("max_queue", -1),
        ("max_upload_bytes", 0),
        ("max_audio_s", float("inf")),
        ("drain_s", -0.1),
        ("decode_workers", 0),
        ("decode_timeout_s", 0.0),
        ("steps", 65),
        ("init", "blank"),
        ("canvas", 1),
        ("api_keys", ("",)),
        ("api_keys", ("with space",)),
        ("api_keys", ("schlüssel",)),
        ("model_names", ("",)),
    ],
)
def test_what_no_server_can_run_with_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name.removesuffix("s")):
        ServerSettings(**{name: value})  # type: ignore[arg-type]


def test_only_whole_keys_are_right() -> None:
    keys = ("first", "second")
    assert all(is_key(key, keys) for key in keys)
    for wrong in (None, "", "firs", "firstt", "First", "first,second", "fürst", "\udcff"):
        assert not is_key(wrong, keys)
    assert not is_key(None, ())


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer one"}, "one"),
        ({"authorization": "bearer  one "}, "one"),
        ({"authorization": "Basic one"}, None),
        ({"authorization": "one"}, None),
        ({}, None),
        ({"sec-websocket-protocol": "realtime, openai-insecure-api-key.one"}, "one"),
        ({"sec-websocket-protocol": "realtime"}, None),
    ],
)
def test_where_a_key_is_found(headers: dict[str, str], key: str | None) -> None:
    assert given_key(Headers(headers)) == key
