// The server's API: requests with the token, errors as exceptions, server-sent events. Must not know the page.

// EventSource cannot send a header, so streams are read through fetch. The server says something every ten seconds.
const SILENCE_MS = 40_000;

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  constructor(token) {
    this.token = token;
  }

  get(path) {
    return this.request("GET", path);
  }

  post(path, body = {}) {
    return this.request("POST", path, body);
  }

  delete(path) {
    return this.request("DELETE", path);
  }

  // The answer's JSON. Throws ApiError for a refusal, TypeError where there is no server.
  async request(method, path, body) {
    const headers = { Authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    if (!answer.ok) throw await refusal(answer);
    return answer.json();
  }

  // The frames of a stream as {id, data}, until the server ends it. Throws as `request`, and when it falls silent.
  async *stream(path, signal) {
    const abort = new AbortController();
    const stop = () => abort.abort();
    signal.addEventListener("abort", stop);
    let silence = setTimeout(stop, SILENCE_MS);
    try {
      const headers = { Authorization: `Bearer ${this.token}`, Accept: "text/event-stream" };
      const answer = await fetch(path, { headers, signal: abort.signal, cache: "no-store" });
      if (!answer.ok) throw await refusal(answer);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      while (true) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        for (const frame of frames.map(parseFrame)) if (frame) yield frame;
        silence = setTimeout(stop, SILENCE_MS);
      }
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", stop);
      abort.abort();
    }
  }
}

async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  return new ApiError(answer.status, body.error?.message ?? `the server answered ${answer.status}`, body.error?.code);
}

function parseFrame(frame) {
  let id = null;
  const data = [];
  for (const line of frame.split("\n")) {
    if (line.startsWith("id:")) id = line.slice(3).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { id, data: JSON.parse(data.join("\n")) } : null;
}
