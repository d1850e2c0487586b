// Server-sent events by fetch: unlike EventSource it sends a key, and tells why the server refuses.

import { Problem, call, parse, pause } from "./api.js";

const SILENCE = 45_000; // the server sends a comment every 15 seconds
const SHORTEST_PAUSE = 0.25; // after a stream that ended well, too: something between may end each at once
const LONGEST_PAUSE = 5;

export class JobStream {
  #stopping = new AbortController();
  #lastId = null;
  #connected = false;

  constructor(customer, { onEvent, onState }) {
    this.path = `/customers/${encodeURIComponent(customer)}/photos/stream?previews=true`;
    this.onEvent = onEvent;
    this.onState = onState;
    this.#run();
  }

  stop() {
    this.#stopping.abort();
  }

  async #run() {
    let failures = 0;
    while (!this.#stopping.signal.aborted) {
      try {
        await this.#once();
        failures = 0;
        await pause(SHORTEST_PAUSE);
      } catch (error) {
        if (this.#stopping.signal.aborted) return;
        if (error instanceof Problem && error.code === "invalid_request") this.#lastId = null;
        if (error instanceof Problem && [401, 403].includes(error.status))
          return this.onState("refused", error);
        if (this.#connected) failures = 0;
        this.#connected = false;
        failures += 1;
        // The first loss of a stream may be a matter of milliseconds.
        if (failures > 1) this.onState("lost", error);
        await pause(Math.min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** failures));
      }
    }
  }

  async #once() {
    const watched = new AbortController();
    const signal = AbortSignal.any([watched.signal, this.#stopping.signal]);
    const leave = () => watched.abort();
    addEventListener("offline", leave);
    try {
      await this.#read(watched, signal);
    } finally {
      removeEventListener("offline", leave);
    }
  }

  async #read(watched, signal) {
    const headers = this.#lastId === null ? {} : { "Last-Event-ID": this.#lastId };
    const response = await call(this.path, { signal, headers, cache: "no-store" });
    this.#connected = true;
    this.onState("open");
    let watch;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new EventParser((event) => this.#tell(event));
    try {
      for (;;) {
        clearTimeout(watch);
        watch = setTimeout(() => watched.abort(), SILENCE);
        const { done, value } = await reader.read();
        if (done) return;
        parser.feed(value);
      }
    } finally {
      clearTimeout(watch);
    }
  }

  #tell(event) {
    if (event.id !== null) this.#lastId = event.id;
    this.onEvent(event.kind, parse(event.data));
  }
}

// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
class EventParser {
  #rest = "";
  #event = { kind: "message", id: null, data: [] };

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  feed(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#take(line.replace(/\r$/, ""));
  }

  #take(line) {
    if (line === "") {
      const { kind, id, data } = this.#event;
      this.#event = { kind: "message", id: null, data: [] };
      if (data.length) this.onEvent({ kind, id, data: data.join("\n") });
      return;
    }
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "event") this.#event.kind = value;
    else if (name === "id") this.#event.id = value;
    else if (name === "data") this.#event.data.push(value);
  }
}
