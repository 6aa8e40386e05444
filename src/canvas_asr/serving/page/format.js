// Times, languages and confidence, as they are shown.

const LEVELS = [
  [0.95, "sure"],
  [0.8, "likely"],
  [0.5, "unsure"],
];

/** The class that colours a confidence, from 0 to 1. */
export function level(confidence) {
  return LEVELS.find(([least]) => confidence >= least)?.[1] ?? "doubtful";
}

/** 83.4 -> "1:23"; with `digits`, "1:23.4". */
export function clock(seconds, digits = 0) {
  const scale = 10 ** digits;
  const ticks = Math.floor(seconds * scale + 1e-6);
  const s = (ticks / scale) % 60;
  const minutes = Math.floor(ticks / scale / 60);
  const rest = s.toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  if (minutes < 60) return `${minutes}:${rest}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function languageName(code) {
  return code === "zh" ? "Mandarin" : new Intl.DisplayNames(["en"], { type: "language" }).of(code);
}

/** A real-time factor with two digits that matter. */
export function speed(rtfx) {
  return `${rtfx < 10 ? rtfx.toFixed(1) : Math.round(rtfx)}× real time`;
}

export function wantsStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
