// Words that can be heard: clicked, walked through by arrow keys, and marked while they are played.

import { clock, level, percent } from "./format.js";

/** The words of a segment with what stands before each: a space, or nothing in Chinese. */
export function placed(segment) {
  let seen = 0;
  return (segment.words ?? []).map((word) => {
    const found = segment.text.indexOf(word.text, seen);
    const glue = found < 0 ? " " : segment.text.slice(seen, found);
    if (found >= 0) seen = found + word.text.length;
    return { ...word, glue };
  });
}

export class Words {
  /**
   * @param {HTMLElement} container Of all segments; a single stop of the Tab key.
   * @param {HTMLAudioElement} audio Plays the recording.
   * @param {HTMLElement} readout Tells time and confidence of one word.
   */
  constructor(container, audio, readout) {
    this.container = container;
    this.audio = audio;
    this.readout = readout;
    this.canPlay = false;
    this.clear();
    container.addEventListener("click", (event) => this.#play(this.#indexOf(event.target)));
    container.addEventListener("pointerover", (event) => this.#tell(this.#indexOf(event.target)));
    container.addEventListener("focusin", (event) => this.#tell(this.#indexOf(event.target)));
    container.addEventListener("keydown", (event) => this.#key(event));
    audio.addEventListener("play", () => this.#follow());
    audio.addEventListener("seeked", () => this.#mark());
    audio.addEventListener("ended", () => this.#mark(-1));
  }

  clear() {
    this.words = []; // {start, end, text, confidence, span}
    this.marked = -1;
    this.stop = 0; // which word the Tab key reaches
    this.readout.textContent = "";
  }

  /** Set the words of a segment, or its text where words have no times. */
  write(paragraph, segment) {
    const words = placed(segment);
    if (!words.length) paragraph.textContent = segment.text;
    for (const word of words) {
      const span = document.createElement("span");
      span.className = `word ${level(word.confidence)}`;
      span.textContent = word.text;
      span.dataset.index = this.words.length;
      span.dataset.time = clock(word.start, 1);
      span.setAttribute("role", "button");
      span.tabIndex = this.words.length === this.stop ? 0 : -1;
      paragraph.append(word.glue, span);
      this.words.push({ ...word, span });
    }
  }

  #indexOf(element) {
    const index = element.closest?.(".word")?.dataset.index;
    return index === undefined ? -1 : Number(index);
  }

  #tell(index) {
    const word = this.words[index];
    if (!word) return;
    const times = `${clock(word.start, 2)} – ${clock(word.end, 2)}`;
    this.readout.replaceChildren(bold(word.text), `  ${times}  ·  ${percent(word.confidence)} sure`);
  }

  #play(index) {
    if (index < 0 || getSelection().toString()) return; // who selects text wants no sound
    this.#focus(index, false);
    if (!this.canPlay) return;
    this.audio.currentTime = this.words[index].start;
    this.audio.play().catch(() => {}); // the player shows what is wrong
  }

  #focus(index, moves = true) {
    const word = this.words[index];
    if (!word) return;
    this.words[this.stop].span.tabIndex = -1;
    word.span.tabIndex = 0;
    this.stop = index;
    if (moves) word.span.focus();
    this.#tell(index);
  }

  #key(event) {
    const index = this.#indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.words.length - 1;
    const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last };
    if (event.key in moves) this.#focus(Math.min(last, Math.max(0, moves[event.key])));
    else if (event.key === "Enter" || event.key === " ") this.#play(index);
    else if (event.key === "Escape") this.audio.pause();
    else return;
    event.preventDefault();
  }

  #follow() {
    this.#mark();
    if (!this.audio.paused) requestAnimationFrame(() => this.#follow());
  }

  #mark(index = this.#at(this.audio.currentTime)) {
    if (index === this.marked) return;
    this.words[this.marked]?.span.classList.remove("playing");
    this.words[index]?.span.classList.add("playing");
    this.marked = index;
    this.#tell(index);
  }

  /** The word that is said at a time, or the one before it during a short pause; -1 before the first. */
  #at(seconds) {
    let [low, high] = [0, this.words.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.words[middle].start <= seconds + 0.01) low = middle + 1;
      else high = middle;
    }
    const word = this.words[low - 1];
    return word && seconds < word.end + 0.5 ? low - 1 : -1;
  }
}

function bold(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}
