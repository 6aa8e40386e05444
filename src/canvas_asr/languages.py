"""The six languages, by code."""

from __future__ import annotations

LANGUAGES = ("en", "de", "fr", "es", "hi", "zh")
