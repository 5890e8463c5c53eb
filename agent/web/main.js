// The page: which session is open, and what its parts tell each other.

import { ApiError } from "./api.js";
import { Composer } from "./composer.js";
import { closeDrawer, confirmed, startDialogs, startDrawer } from "./dialogs.js";
import { announce, byId } from "./dom.js";
import { Follower } from "./follow.js";
import { Meter } from "./meter.js";
import { SessionList, placeLine } from "./sessions.js";
import { forget, signIn } from "./sign_in.js";
import { startTheme } from "./theme.js";
import { Transcript } from "./transcript.js";

const AWAY_MS = 30_000; // out of sight for so long, it stops to watch a session in which nothing runs
const REFRESH_MS = 15_000; // of the list: other clients make sessions too

class Page {
  constructor(api) {
    this.api = api;
    this.name = null;
    this.follower = null;
    this.context = { used: 0, limit: 0 };
    const here = (act) => (turn) => this.attempt(() => act.call(this, turn));
    this.transcript = new Transcript({ answer: (call, answer) => this.answer(call, answer), fork: here(this.fork), rewind: here(this.rewind) });
    this.composer = new Composer({ send: (prompt, policy) => this.send(prompt, policy), stop: () => this.stop() });
    this.list = new SessionList(api, {
      open: (name) => this.open(name),
      create: (workspace) => this.attempt(() => this.create(workspace)),
      remove: (session) => this.attempt(() => this.remove(session)),
      goTo: (name, branch) => this.attempt(() => this.goTo(name, branch)),
      attempt: (act) => this.attempt(act),
    });
    this.meter = new Meter();
  }

  async start() {
    byId("new-session").addEventListener("click", () => this.attempt(() => this.create(this.workspace)));
    byId("sign-out").addEventListener("click", () => {
      forget();
      location.reload();
    });
    addEventListener("hashchange", () => {
      if (inAddress("token") !== null) location.reload(); // a link with a token, opened where the page is already
      else this.open(inAddress("session"));
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) this.composer.stop();
    });
    addEventListener("pagehide", () => this.follower?.setAway(true));
    addEventListener("pageshow", () => this.follower?.setAway(false));
    document.addEventListener("visibilitychange", () => this.visible());
    setInterval(() => document.hidden || this.refresh(), REFRESH_MS);
    byId("app").hidden = false;
    await this.attempt(() => this.list.refresh());
    const wanted = inAddress("session");
    if (wanted === null || !this.list.sessions.some((session) => session.name === wanted)) {
      this.open(this.list.sessions[0]?.name ?? null);
      if (wanted !== null) this.composer.tell(`There is no session ${wanted}.`);
    } else {
      this.open(wanted);
    }
    byId("prompt").focus();
  }

  visible() {
    clearTimeout(this.awayTimer);
    if (!document.hidden) return void this.follower?.setAway(false);
    this.awayTimer = setTimeout(() => this.composer.isRunning || this.follower?.setAway(true), AWAY_MS);
  }

  get workspace() {
    return this.list.sessions.find((session) => session.name === this.name)?.workspace;
  }

  get path() {
    return `/v1/sessions/${encodeURIComponent(this.name)}`;
  }

  // Show a session and follow it; null: none.
  open(name, isAgain = false) {
    closeDrawer();
    if (name === this.name && !isAgain) return;
    this.follower?.stop();
    this.follower = null;
    this.name = name;
    if (inAddress("session") !== name) history.pushState(null, "", name === null ? location.pathname : `#${new URLSearchParams({ session: name })}`);
    this.transcript.clear();
    this.shownLog = null;
    this.composer.setRunning(false);
    this.composer.offerPlan(false);
    this.composer.tell("");
    this.meter.hide();
    byId("session-name").textContent = name ?? "No session";
    byId("session-place").textContent = name === null ? "Say something, and one begins" : "";
    byId("connection").textContent = "";
    this.setTitle(false);
    this.list.setOpen(name);
    if (name === null) return;
    const follower = new Follower(this.api, name, {
      connection: (problem) => (byId("connection").textContent = problem),
      loaded: (session, events) => this.loaded(session, events),
      event: (event) => this.event(event),
      closed: () => this.closed(),
      refused: (error) => this.refused(error),
    });
    this.follower = follower;
    follower.run();
  }

  loaded(session, events) {
    byId("session-place").textContent = placeLine(session);
    const log = [this.name, session.turns, session.turn, session.tokens, session.used_at, events.length].join(" ");
    if (log !== this.shownLog) this.transcript.show(events, session.numTurns); // else the reader stays where they are
    this.shownLog = log;
    this.context = { used: session.context_used, limit: session.context_limit };
    this.meter.show(this.context.used, this.context.limit, this.transcript.lastUsage);
    this.setRunning(session.turn !== null);
    this.refresh();
  }

  event(event) {
    if (event.type === "user") this.setRunning(true);
    this.shownLog = null;
    const isEnd = this.transcript.add(event);
    if (event.type === "turn_done") {
      this.context = { used: event.usage.context_used, limit: event.usage.context_limit };
      this.meter.show(this.context.used, this.context.limit, event.usage);
    }
    if (!isEnd) return;
    this.setRunning(false);
    this.composer.offerPlan(event.type === "turn_done");
    this.settle();
  }

  // After a turn: what the log says of it.
  async settle() {
    const name = this.name;
    await this.refresh();
    const session = this.list.sessions.find((other) => other.name === name);
    if (!session || name !== this.name || this.composer.isRunning) return;
    this.transcript.settle(session.turns);
    byId("session-place").textContent = placeLine(session);
  }

  setRunning(isRunning) {
    this.composer.setRunning(isRunning);
    this.setTitle(isRunning);
  }

  setTitle(isRunning) {
    document.title = `${isRunning ? "● " : ""}${this.name ? `${this.name} · ` : ""}holdfast`;
  }

  closed() {
    const text = `Session ${this.name} was deleted.`;
    this.open(null);
    this.composer.tell(text);
    this.refresh();
  }

  refused(error) {
    if (error.status === 401) return this.signOut();
    this.open(null);
    this.composer.tell(error.message);
    return this.refresh();
  }

  async refresh() {
    try {
      await this.list.refresh();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) this.signOut();
      else if (!(error instanceof ApiError || error instanceof TypeError)) throw error; // no server: the stream says so
    }
  }

  // The token is no longer good: ask for another, and go on with it.
  async signOut() {
    if (byId("app").hidden) return;
    this.follower?.stop();
    forget();
    const fresh = await signIn("The server no longer knows this token.");
    this.api.token = fresh.token;
    byId("app").hidden = false;
    this.open(this.name, true);
  }

  // Do it, or tell why not.
  async attempt(act) {
    this.composer.tell("");
    try {
      await act();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return void this.signOut();
      if (!(error instanceof ApiError || error instanceof TypeError)) throw error;
      this.composer.tell(error instanceof ApiError ? error.message : "The server cannot be reached.");
    }
  }

  async create(workspace) {
    const session = await this.api.post("/v1/sessions", workspace ? { workspace } : {});
    await this.list.refresh();
    this.open(session.name);
    byId("prompt").focus();
    announce(`New session ${session.name}.`);
  }

  async remove(session) {
    const text = "Its turns, all its branches and what is stored of them are deleted. Forks of it stay.";
    if (!(await confirmed(`Delete session ${session.name}?`, text))) return;
    await this.api.delete(`/v1/sessions/${encodeURIComponent(session.name)}`);
    if (session.name === this.name) this.open(null);
    await this.list.refresh();
    byId("new-session").focus();
    announce(`Session ${session.name} was deleted.`);
  }

  async send(prompt, policy) {
    if (this.name === null) await this.create();
    await this.api.post(`${this.path}/turns`, { prompt, approve: policy });
  }

  stop() {
    return this.api.post(`${this.path}/cancel`);
  }

  async answer(call, answer) {
    try {
      await this.api.post(`${this.path}/approvals/${encodeURIComponent(call.id)}`, answer);
      if (answer.always && call.always_mode) this.composer.setPolicy(call.always_mode);
    } catch (error) {
      if (error.code !== "approval_answered") throw error; // another client was faster: the stream says what it answered
    }
  }

  async fork(turn) {
    const fork = await this.api.post(`${this.path}/fork`, { turn });
    await this.list.refresh();
    this.open(fork.name);
    byId("prompt").focus();
    announce(`Fork ${fork.name} ${turn ? `after turn ${turn}` : "from the beginning"}.`);
  }

  async rewind(turn) {
    await this.api.post(`${this.path}/rewind`, { turn });
    this.open(this.name, true);
    byId("prompt").focus();
    announce(`The session goes on ${turn ? `after turn ${turn}` : "from the beginning"}; what came after stays as a branch.`);
  }

  async goTo(name, branch) {
    if (branch !== null) await this.api.post(`/v1/sessions/${encodeURIComponent(name)}/rewind`, { branch });
    this.open(name, branch !== null);
    announce("The session goes on with this branch.");
  }
}

function inAddress(key) {
  return new URLSearchParams(location.hash.slice(1)).get(key);
}

startTheme();
startDialogs();
startDrawer();
new Page(await signIn()).start();
