// A transcript as txt, srt, vtt and json: the files that `canvas-asr transcribe --output-format` writes.
//
// The rules are those of canvas_asr/subtitles.py: a cue is a sentence, halved where it lasts too long.

import { placed } from "./words.js";

const LONG_PAUSE_S = 3;
const MAX_CUE_S = 7;
const MIN_CUE_S = 1;
const SENTENCE_END = /[.?!…。？！।॥]["'”’»)\]」』）]*$/u;
const CLAUSE_END = /[,;:，、；：]["'”’»)\]」』）]*$/u;

export const MEDIA_TYPES = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  json: "application/json",
};

/** Write a transcript, as the event `canvas.transcript` gives it, in one of the formats. */
export function write(transcript, format) {
  const segments = transcript.segments.filter((segment) => segment.text.trim());
  if (format === "txt") return segments.map((segment) => `${oneLine(segment.text)}\n`).join("");
  if (format === "json") return `${JSON.stringify(transcript)}\n`;
  const cues = inOrder(segments.flatMap(cuesOf));
  if (format === "srt") return cues.map(srtCue).join("");
  return `WEBVTT\n\n${cues.map(vttCue).join("")}`;
}

function oneLine(text) {
  return text.replace(/\s+/gu, " ").replace(/[\p{Cc}\p{Cs}]/gu, "").trim();
}

function srtCue(cue, index) {
  const times = `${stamp(cue.start, ",", true)} --> ${stamp(cue.end, ",", true)}`;
  return `${index + 1}\n${times}\n${cue.text.replace(/-{2,}>/g, "->")}\n\n`;
}

function vttCue(cue) {
  const text = cue.text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `${stamp(cue.start, ".")} --> ${stamp(cue.end, ".")}\n${text}\n\n`;
}

function stamp(milliseconds, mark, showsHours = false) {
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const hours = Math.floor(milliseconds / 3_600_000);
  const minutes = two((milliseconds / 60_000) % 60);
  const seconds = two((milliseconds / 1000) % 60);
  const rest = String(milliseconds % 1000).padStart(3, "0");
  return `${hours || showsHours ? `${two(hours)}:` : ""}${minutes}:${seconds}${mark}${rest}`;
}

function cuesOf(segment) {
  const whole = { text: segment.text.trim(), start: segment.start, end: segment.end, glue: "" };
  const words = segment.words?.length ? placed(segment) : [whole];
  const pieces = words.map((word) => ({ ...word, text: oneLine(word.text) })).filter((word) => word.text);
  return sentences(pieces).flatMap(halves).map(cue);
}

function sentences(pieces) {
  const groups = [];
  for (const piece of pieces) {
    const group = groups.at(-1);
    const last = group?.at(-1);
    const ends =
      !last ||
      piece.start - last.end > LONG_PAUSE_S ||
      (SENTENCE_END.test(last.text) && last.end - group[0].start >= MIN_CUE_S);
    if (ends) groups.push([piece]);
    else group.push(piece);
  }
  return groups;
}

function halves(group) {
  const [start, end] = [group[0].start, group.at(-1).end];
  if (end - start <= MAX_CUE_S || group.length === 1) return [group];
  const cost = (place) => {
    const bonus = CLAUSE_END.test(group[place - 1].text) ? 0.25 : 0;
    return Math.abs(group[place].start - (start + end) / 2) / (end - start) - bonus;
  };
  let best = 1;
  for (let place = 2; place < group.length; place++) if (cost(place) < cost(best)) best = place;
  return [...halves(group.slice(0, best)), ...halves(group.slice(best))];
}

function cue(group) {
  const text = group.map((piece, index) => (index && piece.glue ? " " : "") + piece.text).join("");
  return { start: Math.round(1000 * group[0].start), end: Math.round(1000 * group.at(-1).end), text };
}

/** Let no cue begin before the one before it has ended, nor end when it begins. */
function inOrder(cues) {
  let before = 0;
  return cues.map(({ start, end, text }) => {
    const from = Math.max(start, before);
    before = Math.max(end, from + 1);
    return { start: from, end: before, text };
  });
}
