"""Language, hotwords and prompt on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from canvas_asr.cli.decoding_options import add_decoding_options, decoding_arguments, read_hotwords
from canvas_asr.errors import OptionError
from canvas_asr.options import DecodingOptions


def arguments(*given: str, watched: bool = False) -> dict:
    parser = argparse.ArgumentParser()
    add_decoding_options(parser)
    return decoding_arguments(parser.parse_args(given), watched=watched)


def test_nothing_given_is_the_default_and_the_language_is_found() -> None:
    assert DecodingOptions(**arguments()) == DecodingOptions()
    assert arguments("--language", "auto")["language"] is None
    assert arguments("--language", "de")["language"] == "de"


def test_passes_that_are_watched_are_from_noise_unless_told() -> None:
    def chosen(*given: str) -> tuple[str, int]:
        found = arguments(*given, watched=True)
        return found["init"], found["steps"]

    assert chosen() == ("noise", 8)
    assert chosen("--steps", "3") == ("noise", 3)
    assert chosen("--init", "draft") == ("draft", 1)
    assert arguments()["init"] is arguments()["steps"] is None


def test_hotwords_come_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffTim Kan\r\n\n  柳溪镇 \n", encoding="utf-8")
    found = arguments(
        "--hotword", "Kent", "--hotword", "Bern", "--hotwords", str(path), "--hotword-boost", "4"
    )
    assert found["hotwords"] == ["Kent", "Bern", "Tim Kan", "柳溪镇"]
    assert found["hotword_boost"] == 4.0
    assert arguments("--prompt", "A talk.")["prompt"] == "A talk."


def test_a_file_without_hotwords_is_named(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    with pytest.raises(OptionError, match=r"names\.txt: cannot be read as a UTF-8 list of hotwords"):
        read_hotwords(path)
    path.write_bytes(b"K\xfcln\n")
    with pytest.raises(OptionError, match=r"names\.txt: cannot be read as a UTF-8 list of hotwords"):
        read_hotwords(path)
    path.write_text("\n \n")
    with pytest.raises(OptionError, match=r"names\.txt: no hotwords in it; write one a line"):
        read_hotwords(path)
