// Asking the server: JSON and server-sent events. Knows addresses and errors, nothing of the page.

export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let key = "";

// The key is in this module's memory, and goes when the page does.
export function useKey(given) {
  key = given;
}

async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.");
  }
  if (response.ok) return response;
  let told;
  try {
    told = (await response.json()).error;
  } catch {
    told = null;
  }
  throw new Refused(told?.message ?? `The server answered with status ${response.status}.`, response.status);
}

export async function get(path) {
  return (await ask(path)).json();
}

// Gives each event of an answer. `body` is JSON as text, since a seed may be longer than a number.
export async function* events(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const response = await ask(path, { method: "POST", headers, body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The connection to the server was lost.");
    }
    if (piece.done) throw new Refused("The server ended before the answer did.");
    const parts = (kept + piece.value).split("\n\n");
    kept = parts.pop();
    for (const part of parts) {
      const text = part.replace(/^data: /, "");
      if (text === "[DONE]") return;
      const event = JSON.parse(text);
      if (event.error) throw new Refused(event.error.message);
      yield event;
    }
  }
}
