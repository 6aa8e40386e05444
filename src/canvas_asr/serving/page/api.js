// The server's interface: which model it has, and a transcription as a stream of events.

export class ServerError extends Error {
  /**
   * @param {string} message In words for the reader.
   * @param {number} status Of the answer; 0 if there was none, or if it failed half-way.
   */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The model that is served: `id`, `languages` that it tells apart, and `has_draft`. */
export async function readModel(key) {
  const answer = await ask("v1/models", { headers: authorization(key) });
  const { data } = await answer.json();
  return data[0];
}

/**
 * Send a recording; yield the events of its transcription until `canvas.transcript`, the last that is read.
 *
 * Leaving the loop or aborting `signal` closes the connection, which ends the work on the server.
 */
export async function* transcribe(file, { name, model, language, init, steps, key, signal }) {
  const form = new FormData();
  form.append("model", model);
  if (language) form.append("language", language);
  form.append("init", init);
  form.append("steps", steps);
  form.append("stream", "true");
  form.append("canvas", "true");
  form.append("file", file, name);
  const request = { method: "POST", body: form, headers: authorization(key), signal };
  const answer = await ask("v1/audio/transcriptions", request);
  for await (const event of events(answer.body)) {
    if (event.error) throw new ServerError(event.error.message);
    yield event;
    if (event.type === "canvas.transcript") return;
  }
  throw new ServerError("The connection broke before the transcript was done.");
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, request) {
  let answer;
  try {
    answer = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const message = body?.error?.message ?? `The server refused it (status ${answer.status}).`;
  throw new ServerError(message, answer.status);
}

/** Events of a stream in the format of server-sent events, JSON in each. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const lines = (unread + value).split(/\r?\n/);
      unread = lines.pop();
      for (const line of lines) {
        const data = line.match(/^data: ?(.*)/)?.[1];
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the stream is broken already where this fails
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection broke before the transcript was done.");
  }
}
