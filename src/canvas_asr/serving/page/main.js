// The page: a recording goes to the server, its canvas and words come back.

import { ServerError, readModel, transcribe } from "./api.js";
import { Canvas } from "./canvas.js";
import { clock, languageName, percent, speed } from "./format.js";
import { MAX_S, Recorder } from "./recorder.js";
import { MEDIA_TYPES, write } from "./subtitles.js";
import { Words } from "./words.js";

const at = (id) => document.getElementById(id);
const audio = at("audio");
const words = new Words(at("canvas"), audio, at("readout"));
const recorder = new Recorder(at("meter"));
const AGAIN_MS = 300; // a pass, when watched again

let model = "";
let key = "";
let job = null; // what is transcribed, or was last
let canvas = null;
let replay = 0;
let recordingTimer = 0;

// -- A transcription --------------------------------------------------------------------------------------

async function run(file, name) {
  job?.controller.abort();
  const mine = { file, name, controller: new AbortController(), transcript: null };
  job = mine;
  prepare(mine);
  const [init, steps] = at("start").value.split(" ");
  const wish = { name, language: at("language").value, init, steps };
  try {
    await knowModel();
    for await (const event of transcribe(file, { ...wish, model, key, signal: mine.controller.signal })) if (job === mine) take(event);
    await canvas.settled(mine.controller.signal);
    if (job === mine) finish(mine);
  } catch (error) {
    if (job === mine) fail(error);
  }
}

function prepare({ file, name }) {
  clearInterval(replay);
  canvas?.stop();
  for (const id of ["error", "times-choice", "passes", "outcome", "key-form"]) at(id).hidden = true;
  at("work").hidden = false;
  at("cancel").hidden = false;
  at("name").textContent = name;
  URL.revokeObjectURL(audio.src);
  audio.src = URL.createObjectURL(file);
  words.clear();
  words.canPlay = true;
  at("player").hidden = false;
  canvas = new Canvas(at("canvas"), {
    write: (paragraph, segment) => words.write(paragraph, segment),
    tell: (text) => at("readout").replaceChildren(text),
  });
  showProgress(0, null);
  say("Listening …");
}

async function knowModel() {
  if (model) return;
  const served = await readModel(key);
  model = served.id;
  at("model").textContent = `Model: ${model}. `;
  const names = served.languages.map((code) => [languageName(code), code]).sort();
  at("language").append(...names.map(([name, code]) => new Option(name, code)));
  at("language-choice").hidden = !names.length;
  if (!served.has_draft) at("start").querySelector("[value^=draft]").remove();
}

function take(event) {
  if (event.type === "canvas.progress") showProgress(event.done_s, event.total_s);
  else if (event.type === "canvas.pass") {
    canvas.addPass(event);
    say("Writing …");
  } else if (event.type === "canvas.segment") canvas.addSegment(event);
  else if (event.type === "canvas.transcript") job.transcript = event;
}

function finish({ transcript }) {
  endWork();
  at("times-choice").hidden = !words.words.length;
  at("readout").textContent = words.words.length && words.canPlay ? "Click a word to hear it." : "";
  showFacts(transcript);
  at("outcome").hidden = false;
  at("passes").hidden = canvas.nPasses < 2;
  at("pass").max = canvas.nPasses;
  at("pass").value = canvas.nPasses;
  namePass();
  if (!transcript.text) return say("Done. No speech was found.");
  const isShort = transcript.text.length < 500;
  say("Done.", isShort ? transcript.text : "The transcript follows.", transcript.language);
}

function fail(error) {
  endWork();
  canvas.stop();
  if (error.name === "AbortError") return say("Cancelled.");
  say("");
  if (!canvas.blocks.length) at("work").hidden = true;
  if (error.status === 401 && !key) return askKey();
  const isPassing = error instanceof ServerError && (error.status === 0 || error.status === 429 || error.status >= 500);
  showError(`${job.name}: ${error.message}`, isPassing);
  if (error.status === 401) askKey();
}

function endWork() {
  if (document.activeElement === at("cancel")) at("name").focus();
  at("cancel").hidden = true;
  at("progress").classList.add("over");
}

function showProgress(done, total) {
  const bar = at("progress");
  bar.classList.remove("over");
  if (total) {
    bar.value = Math.min(1, done / total);
    bar.setAttribute("aria-valuetext", `${clock(done)} of ${clock(total)}`);
  } else bar.removeAttribute("value");
}

/** Tell what is going on; `more` is for those who listen to the page. */
function say(text, more = "", language = "") {
  if (at("status").firstChild?.textContent === text && !more) return;
  const unseen = document.createElement("span");
  unseen.className = "unseen";
  unseen.lang = language;
  unseen.textContent = more;
  at("status").replaceChildren(text, " ", unseen);
}

function showError(message, canRetry = false) {
  at("error-text").textContent = message;
  at("retry").hidden = !canRetry;
  at("error").hidden = false;
}

function showFacts(transcript) {
  const facts = {
    Language: languagesOf(transcript),
    Confidence: transcript.text ? percent(transcript.confidence) : "–",
    Passes: transcript.passes,
    Length: clock(transcript.audio_s, 1),
    Speed: speed(transcript.rtfx),
  };
  const rows = Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("div");
    row.append(element("dt", name), element("dd", String(value)));
    return row;
  });
  at("facts").replaceChildren(...rows);
  const notes = transcript.gaps.map((gap) => `${clock(gap.start)} – ${clock(gap.end)} could not be read.`);
  if (transcript.truncated) notes.push("The text filled the canvas: its end may be missing.");
  if (!words.canPlay) notes.push("The browser cannot play this file.");
  at("notes").replaceChildren(...notes.map((note) => element("li", note)));
}

function languagesOf({ segments, language, language_confidence }) {
  const codes = [...new Set(segments.map((segment) => segment.language))];
  if (codes.length > 1) return codes.map(languageName).join(", ");
  return language ? `${languageName(language)} (${percent(language_confidence)})` : "not told";
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

at("cancel").addEventListener("click", () => job.controller.abort());
at("retry").addEventListener("click", () => run(job.file, job.name));
audio.addEventListener("error", () => {
  words.canPlay = false;
  at("player").hidden = true;
});

// -- A key, where the server wants one ---------------------------------------------------------------------

function askKey() {
  at("key-form").hidden = false;
  at("key").focus();
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("error").hidden = true;
  if (job && !job.transcript) return run(job.file, job.name);
  await greet();
});

/** Name the model; ask for a key before somebody speaks in vain. */
async function greet() {
  try {
    await knowModel();
    at("key-form").hidden = true;
  } catch (error) {
    if (error.status === 401) {
      if (key) showError(error.message);
      askKey();
    } else showError(error.message);
  }
}

// -- A file ------------------------------------------------------------------------------------------------

at("choose").addEventListener("click", () => at("file").click());

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) run(file, file.name);
  event.target.value = ""; // so that the same file can be chosen again
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const isOutside = kind === "drop" || (kind === "dragleave" && !event.relatedTarget);
    at("input").classList.toggle("over", !isOutside);
    const [file] = event.dataTransfer.files;
    if (kind === "drop" && file && at("recording").hidden) run(file, file.name);
  });
}

// -- The microphone ----------------------------------------------------------------------------------------

at("record").addEventListener("click", async () => {
  at("error").hidden = true;
  audio.pause();
  at("record").disabled = true; // until the microphone is given or refused
  try {
    await recorder.open();
  } catch (error) {
    return showError(error.message);
  } finally {
    at("record").disabled = false;
  }
  showRecording(true);
  recorder.begin();
  recordingTimer = setInterval(() => {
    at("clock").textContent = clock(recorder.seconds);
    if (recorder.seconds >= MAX_S) at("stop").click();
  }, 200);
});

at("stop").addEventListener("click", async () => {
  showRecording(false);
  at("record").focus();
  let recorded;
  try {
    recorded = await recorder.stop();
  } catch {
    return showError("The recording is too short.");
  }
  const now = new Date().toTimeString().slice(0, 5).replace(":", ".");
  await run(recorded, `recording ${now}.wav`);
});

at("discard").addEventListener("click", () => {
  recorder.discard();
  showRecording(false);
  at("record").focus();
});

function showRecording(isOn) {
  clearInterval(recordingTimer);
  at("clock").textContent = "0:00";
  at("recording").hidden = !isOn;
  at("choices").hidden = isOn;
  if (isOn) at("stop").focus();
}

// -- Passes, watched again ---------------------------------------------------------------------------------

function namePass() {
  const [now, all] = [Number(at("pass").value), canvas.nPasses];
  at("pass-name").textContent = now ? `${now} of ${all}` : "start";
}

function showPass() {
  canvas.showPass(Number(at("pass").value));
  namePass();
}

at("pass").addEventListener("input", () => {
  clearInterval(replay);
  showPass();
});

at("again").addEventListener("click", () => {
  clearInterval(replay);
  at("pass").value = 0;
  showPass();
  replay = setInterval(() => {
    at("pass").stepUp();
    showPass();
    if (Number(at("pass").value) >= canvas.nPasses) clearInterval(replay);
  }, AGAIN_MS);
});

at("times").addEventListener("change", (event) => at("canvas").classList.toggle("timed", event.target.checked));

// -- The transcript, to keep -------------------------------------------------------------------------------

for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const { format } = button.dataset;
    const file = new Blob([write(job.transcript, format)], { type: MEDIA_TYPES[format] });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${job.name.replace(/\.[^.]*$/, "")}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(write(job.transcript, "txt").trim());
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(at("canvas")); // the browser gives the clipboard on https only
    say("Press Ctrl+C to copy.");
  }
});

greet();
