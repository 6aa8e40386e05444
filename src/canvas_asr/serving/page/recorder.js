// The microphone: a recording as a WAV file of 16 kHz, which every server reads and every browser seeks in.

import { wantsStillness } from "./format.js";

const RATE_HZ = 16_000;
export const MAX_S = 600; // 19 MB

const REASONS = {
  NotAllowedError: "The microphone is blocked. Allow it in the browser's settings for this page.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone is in use by another program.",
};

export class Recorder {
  /** @param {HTMLCanvasElement} meter Shows how loud it is. */
  constructor(meter) {
    this.meter = meter;
  }

  /** Ask for the microphone; throws an Error in words for the reader. */
  async open() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      throw new Error("The browser gives the microphone to pages on https or localhost only.");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
  }

  /** Record what the microphone hears from now on. */
  begin() {
    this.parts = [];
    this.media = new MediaRecorder(this.stream, { audioBitsPerSecond: 128_000 });
    this.media.addEventListener("dataavailable", (event) => this.parts.push(event.data));
    this.media.start();
    this.begun = performance.now();
    this.#watch();
  }

  get seconds() {
    return (performance.now() - this.begun) / 1000;
  }

  /** End; give what was recorded. */
  async stop() {
    const ended = new Promise((resolve) => this.media.addEventListener("stop", resolve, { once: true }));
    if (this.media.state !== "inactive") { // as it is where the microphone was unplugged
      this.media.stop();
      await ended;
    }
    this.#release();
    const bytes = await new Blob(this.parts).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(bytes);
    return wav(mono(sound));
  }

  /** End, and keep nothing. */
  discard() {
    if (this.media.state !== "inactive") this.media.stop();
    this.#release();
  }

  #release() {
    this.stream.getTracks().forEach((track) => track.stop());
    cancelAnimationFrame(this.frame);
    this.sound.close();
  }

  /** Draw the loudness of the last seconds, newest on the right. */
  #watch() {
    this.sound = new AudioContext();
    const analyser = this.sound.createAnalyser();
    this.sound.createMediaStreamSource(this.stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const pen = this.meter.getContext("2d");
    const [width, height] = [this.meter.clientWidth, this.meter.clientHeight];
    this.meter.width = width * devicePixelRatio;
    this.meter.height = height * devicePixelRatio;
    pen.scale(devicePixelRatio, devicePixelRatio);
    pen.fillStyle = getComputedStyle(this.meter).color;
    const bars = new Array(Math.floor(width / 5)).fill(0);
    if (wantsStillness()) bars.splice(1);
    let next = 0;
    const draw = (now) => {
      this.frame = requestAnimationFrame(draw);
      if (now < next) return;
      next = now + 60;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
      bars.push(Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-9) / 5))); // -50 dBFS to full scale
      bars.shift();
      pen.clearRect(0, 0, width, height);
      bars.forEach((loud, place) => {
        const tall = Math.max(2, loud * height);
        pen.fillRect(place * 5, (height - tall) / 2, 3, tall);
      });
    };
    this.frame = requestAnimationFrame(draw);
  }
}

function mono(sound) {
  const mixed = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((value, place) => {
      mixed[place] += value / sound.numberOfChannels;
    });
  }
  return mixed;
}

function wav(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); // length of this part
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // channels
  bytes.setUint32(24, RATE_HZ, true);
  bytes.setUint32(28, 2 * RATE_HZ, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true); // bits
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, place) => {
    bytes.setInt16(44 + 2 * place, Math.round(32767 * Math.max(-1, Math.min(1, value))), true);
  });
  return new Blob([bytes], { type: "audio/wav" });
}
