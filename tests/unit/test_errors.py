"""The error types: one base to catch, and ValueError where a value is bad."""

from __future__ import annotations

import pickle

import pytest

from canvas_asr import errors

TYPES = [errors.AudioError, errors.OptionError, errors.CheckpointError, errors.RecipeError, errors.DataError]


@pytest.mark.parametrize("kind", TYPES)
def test_each_is_caught_by_the_base_and_as_a_value_error(kind: type[errors.CanvasASRError]) -> None:
    for caught in (errors.CanvasASRError, ValueError, kind):
        with pytest.raises(caught, match=r"^talk\.mp3: cut off$"):
            raise kind("talk.mp3: cut off")


@pytest.mark.parametrize("kind", TYPES)
def test_none_is_caught_as_another(kind: type[errors.CanvasASRError]) -> None:
    assert [other for other in TYPES if issubclass(kind, other)] == [kind]


@pytest.mark.parametrize("kind", TYPES)
def test_each_survives_a_worker_process(kind: type[errors.CanvasASRError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("talk.mp3: cut off")))
    assert type(copy) is kind
    assert str(copy) == "talk.mp3: cut off"


def test_every_public_error_is_exported_by_the_package() -> None:
    import canvas_asr

    public = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert len(public) == len(TYPES) + 1
    for name in public:
        assert name in canvas_asr.__all__
        assert getattr(canvas_asr, name) is getattr(errors, name)
