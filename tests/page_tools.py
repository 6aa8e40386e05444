"""What tests of the page share: answers of a server, made up for the browser, and a look at colours."""

from __future__ import annotations

import json
from typing import Any

# Ratio of every text's colour to what lies behind it, by WCAG 2; the least of those that look alike.
CONTRASTS = """() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const mix = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratios = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [light(mix(behind)), light(mix([...behind, getComputedStyle(element).color]))];
    const name = `${element.tagName} ${element.className}`;
    ratios[name] = Math.min(ratios[name] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return ratios;
}"""


def answer_with(page: Any, *events: dict[str, Any]) -> None:
    """Have transcriptions answered by these events."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    page.route(
        "**/v1/audio/transcriptions", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )


def events_of(text: str) -> list[dict[str, Any]]:
    """A segment and its transcript: those fields that the page reads."""
    words = [
        {"text": word, "start": 0.5 * i, "end": 0.5 * i + 0.4, "confidence": 0.9}
        for i, word in enumerate(text.split())
    ]
    said = {"text": text, "language": "en", "language_confidence": 1.0, "confidence": 0.9, "words": words}
    segment = {"start": 0.0, "end": 0.5 * len(words), **said}
    rest = {"passes": 8, "audio_s": 2.0, "rtfx": 20.0, "truncated": False, "gaps": []}
    whole = {"type": "canvas.transcript", **said, **rest, "segments": [segment]}
    return [{"type": "canvas.segment", **segment}, whole]


def pass_of(text: str, step: int) -> dict[str, Any]:
    """One pass over a chunk."""
    tokens = [{"text": f" {word}", "confidence": 0.5, "kept": False} for word in text.split()]
    return {"type": "canvas.pass", "start": 0.0, "step": step, "before": [], "tokens": tokens}
