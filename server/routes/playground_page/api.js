// Requests to the server. Every failure becomes an ApiError with a message for the reader.

export class ApiError extends Error {
  constructor(message, {status = null, param = null, retryAfter = null} = {}) {
    super(message);
    Object.assign(this, {status, param, retryAfter});
  }
}

const UNREACHABLE = "The server cannot be reached. Check that it runs, then try again.";
const BROKEN = "The connection ended before the answer was complete.";

export class Api {
  constructor(getKey, onLocked) {
    Object.assign(this, {getKey, onLocked});
  }
  async call(path, body, signal) {
    const key = this.getKey();
    const headers = key ? {authorization: `Bearer ${key}`} : {};
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body)});
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError(UNREACHABLE);
    }
    if (response.ok) return response;
    if (response.status === 401) this.onLocked();
    throw await readError(response);
  }
  async getJson(path) {
    const response = await this.call(path);
    try {
      return await response.json();
    } catch {
      throw new ApiError(`The response of ${path} cannot be read.`);
    }
  }
  async* stream(path, body, signal) {
    yield* readEvents(await this.call(path, body, signal));
  }
}

const readError = async (response) => {
  const error = (await response.json().catch(() => null))?.error;
  const {status} = response, retryAfter = Number(response.headers.get("retry-after")) || null;
  const message = typeof error?.message === "string" ? error.message : `The server responded with status ${status}.`;
  const param = typeof error?.param === "string" ? error.param : null;
  const again = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  return new ApiError(`${message}${again}`, {status, param, retryAfter});
};

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", isComplete = false;
  for (;;) {
    const {done, value} = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError(BROKEN);
    });
    if (done) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") isComplete = true;
      else if (data) yield parseChunk(data);
    }
  }
  if (!isComplete) throw new ApiError(BROKEN);
}

const parseChunk = (data) => {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent an event that is no JSON.");
  }
  if (chunk.error) throw new ApiError(String(chunk.error.message), {param: chunk.error.param});
  return chunk;
};
