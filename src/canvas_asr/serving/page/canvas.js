// The canvas: chunks of the recording side by side, each denoised pass by pass and then set in words.
//
// Passes take milliseconds; they are shown one after the other at a pace that the eye can follow.

import { clock, level, wantsStillness } from "./format.js";

const PACE_MS = 120;
const MOST_WAITING = 12; // passes; behind more than that, some are left out
const MOST_KEPT = 24; // chunks whose passes are kept to be watched again
const N_NOISE = 28;

export class Canvas {
  /**
   * @param {HTMLElement} element Where the chunks go.
   * @param {(element: HTMLElement, segment: object) => void} write Sets the words of a segment.
   * @param {(text: string) => void} tell Says which pass is shown.
   */
  constructor(element, { write, tell }) {
    this.element = element;
    this.write = write;
    this.tell = tell;
    this.blocks = [];
    this.timer = 0;
    this.idle = []; // who waits until everything is shown
    element.replaceChildren(noise());
  }

  /** Take a `canvas.pass`. */
  addPass(pass) {
    const block = this.#blockAt(pass.start);
    if (!block.passes.length) block.passes.push(startOf(pass));
    block.passes.push(pass.tokens);
    this.#run();
  }

  /** Take a `canvas.segment`, the end of its chunk. */
  addSegment(segment) {
    this.#blockAt(segment.start).segment = segment;
    this.#run();
  }

  /** Resolves when all that came is shown; rejects when `signal` is aborted before. */
  settled(signal) {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      this.idle.push(resolve);
      this.#run();
    });
  }

  /** Stop showing, and take away what never became words. */
  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.element.querySelector(".noise")?.remove();
    for (const block of this.blocks.filter((block) => !block.isWritten)) block.element.remove();
    this.blocks = this.blocks.filter((block) => block.isWritten);
  }

  /** How many passes can be shown again; 0 if they were not kept. */
  get nPasses() {
    if (this.blocks.length > MOST_KEPT) return 0;
    return Math.max(0, ...this.blocks.map((block) => block.passes.length - 1));
  }

  /** Show what stood on the canvas after a pass, 0 for its start; after the last one, the words. */
  showPass(number) {
    const isLast = number >= this.nPasses;
    for (const block of this.blocks) {
      const tokens = block.passes[Math.min(number, block.passes.length - 1)];
      const showsWords = isLast || !tokens;
      if (!showsWords) draw(block.tokens, tokens);
      block.tokens.hidden = showsWords;
      block.words.hidden = !showsWords;
    }
  }

  #blockAt(start) {
    const known = this.blocks.find((block) => Math.abs(block.start - start) < 0.002);
    if (known) return known;
    this.element.querySelector(".noise")?.remove();
    const block = makeBlock(start);
    const after = this.blocks.findIndex((other) => other.start > start);
    const place = after < 0 ? this.blocks.length : after;
    this.element.insertBefore(block.element, this.blocks[place]?.element ?? null);
    this.blocks.splice(place, 0, block);
    return block;
  }

  #run() {
    if (!this.timer) {
      this.timer = setInterval(() => this.#tick(), PACE_MS);
      this.#tick();
    }
  }

  #tick() {
    const isHurried = document.hidden || wantsStillness();
    let isDone = true;
    for (const block of this.blocks) {
      if (block.isWritten) continue;
      const waiting = block.passes.length - block.nShown;
      if (waiting > 0) {
        block.nShown += isHurried ? waiting : Math.ceil(waiting / MOST_WAITING);
        draw(block.tokens, block.passes[block.nShown - 1]);
        this.tell(block.nShown > 1 ? `Pass ${block.nShown - 1}` : "");
        isDone = false;
      } else if (block.segment) {
        this.#writeWords(block);
      }
    }
    if (isDone) {
      clearInterval(this.timer);
      this.timer = 0;
      this.idle.splice(0).forEach((resolve) => resolve());
    }
  }

  #writeWords(block) {
    block.isWritten = true;
    block.words.lang = block.segment.language;
    this.write(block.words, block.segment);
    block.words.hidden = false;
    block.tokens.hidden = true;
    if (this.blocks.length > MOST_KEPT) this.blocks.forEach((one) => one.isWritten && (one.passes = []));
  }
}

function makeBlock(start) {
  const element = document.createElement("div");
  element.className = "block";
  const time = document.createElement("span");
  time.className = "start";
  time.textContent = clock(start);
  const tokens = document.createElement("p");
  tokens.className = "tokens";
  tokens.setAttribute("aria-hidden", "true"); // every pass read aloud would be noise indeed
  const words = document.createElement("p");
  words.className = "words";
  words.hidden = true;
  element.append(time, tokens, words);
  return { start, element, tokens, words, passes: [], nShown: 0, segment: null, isWritten: false };
}

/** What the first pass read, noise or a draft, in the places that it filled with text. */
function startOf({ before, tokens }) {
  return tokens.map((_, place) => ({ text: before[place] || " ·" }));
}

/** Show tokens in the places of those before them, so that only what differs is seen to change. */
function draw(paragraph, tokens) {
  const isStill = wantsStillness();
  while (paragraph.childElementCount > tokens.length) paragraph.lastElementChild.remove();
  tokens.forEach((token, place) => {
    let span = paragraph.children[place];
    if (!span) {
      span = document.createElement("span");
      paragraph.append(span);
    }
    const isNew = span.textContent !== token.text;
    span.textContent = token.text;
    span.className = `token ${level(token.confidence ?? 1)}${token.kept ? "" : " loose"}`;
    if (isNew && !isStill) span.animate([{ opacity: 0.15 }, { opacity: 1 }], { duration: 2 * PACE_MS });
  });
}

/** What stands there until the first pass: places that hold nothing yet. */
function noise() {
  const paragraph = document.createElement("p");
  paragraph.className = "noise";
  paragraph.setAttribute("aria-hidden", "true");
  for (let place = 0; place < N_NOISE; place++) {
    const span = document.createElement("span");
    span.className = `w${1 + ((place * 7 + (place % 3)) % 5)}`;
    paragraph.append(span);
  }
  return paragraph;
}
