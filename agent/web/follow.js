// Following one session: the log first, then the stream, over lost connections and restarts of the server.

import { ApiError } from "./api.js";

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 8000;

export class Follower {
  // `on`: connection(problem, "" for none), loaded(session, events), event(event), closed(), refused(error).
  constructor(api, name, on) {
    this.api = api;
    this.name = name;
    this.on = on;
    this.path = `/v1/sessions/${encodeURIComponent(name)}`;
    this.abort = new AbortController(); // of the connection
    this.lastId = null; // null: the log has to be read (again)
    this.wake = () => {};
    this.isShown = false;
    this.isAway = false;
    this.isStopped = false;
  }

  async run() {
    const online = () => this.wake();
    addEventListener("online", online);
    try {
      await this.follow();
    } finally {
      removeEventListener("online", online);
    }
  }

  async follow() {
    let wait = FIRST_WAIT_MS;
    while (!this.isStopped) {
      while (this.isAway && !this.isStopped) await this.pause();
      let isAgain = false, problem = "Reconnecting…";
      try {
        isAgain = await this.once(() => (wait = FIRST_WAIT_MS));
      } catch (error) {
        if (this.isStopped) return;
        if (this.isAway) continue;
        if (error instanceof ApiError && [401, 403, 404].includes(error.status)) return void this.on.refused(error);
        if (error instanceof ApiError) problem = error.message;
        else if (!(error instanceof TypeError || error instanceof DOMException)) throw error; // our bug
      }
      if (this.isStopped) return;
      if (isAgain || this.isAway) continue;
      if (!this.isShown) await this.readOnly();
      this.on.connection(problem);
      setTimeout(() => this.wake(), wait);
      await this.pause();
      wait = Math.min(2 * wait, MAX_WAIT_MS);
    }
  }

  // One connection. True when the log is to be read again at once.
  async once(onLive) {
    this.abort = new AbortController();
    const after = this.lastId === null ? "" : `?after=${encodeURIComponent(this.lastId)}`;
    for await (const { id, data } of this.api.stream(`${this.path}/stream${after}`, this.abort.signal)) {
      if (this.isStopped) return false;
      if (data.type === "session") {
        // the stream has begun, so nothing falls between the log and what comes: the turn that runs comes whole
        if (this.lastId === null) await this.load(data);
        if (this.isStopped) return false;
        onLive();
        this.on.connection("");
        continue;
      }
      if (data.type === "reload" || data.type === "rewound") {
        this.lastId = null;
        return true;
      }
      if (data.type === "closed") {
        this.stop();
        this.on.closed();
        return false;
      }
      this.lastId = id ?? this.lastId;
      this.on.event(data);
    }
    return false;
  }

  async load(session) {
    const { data } = await this.api.get(`${this.path}/events`);
    if (this.isStopped) return;
    this.isShown = true;
    const numTurns = session.turn === null ? session.turns : session.turn - 1; // the one that runs comes with the stream
    this.on.loaded({ ...session, numTurns }, data);
  }

  // There is no stream, for one because a terminal has the session open: the log can be read all the same.
  async readOnly() {
    try {
      await this.load({ ...(await this.api.get(this.path)), turn: null });
    } catch (error) {
      if (!(error instanceof ApiError || error instanceof TypeError)) throw error; // the next round tries again
    }
  }

  pause() {
    return new Promise((resolve) => (this.wake = resolve));
  }

  // While the page is hidden it gives its connection back: a browser has six for a server, over all its windows.
  setAway(isAway) {
    this.isAway = isAway;
    if (isAway) this.abort.abort();
    else this.wake();
  }

  stop() {
    this.isStopped = true;
    this.abort.abort();
    this.wake();
  }
}
