// The list of sessions: by workspace, each with the tree of its branches. Must not know turns or streams.
//
// Nested lists of buttons and no tree role: every screen reader knows them, and the arrow keys work all the same.

import { byId, element, icon } from "./dom.js";
import { ago, count, counted, neutral, oneLine } from "./text.js";

const LABEL_CHARS = 60;

export class SessionList {
  // `actions`: open(name), create(workspace), remove(session), goTo(name, branch), attempt(act).
  constructor(api, actions) {
    this.api = api;
    this.actions = actions;
    this.root = byId("session-list");
    this.sessions = [];
    this.workspaces = [];
    this.openName = null;
    this.details = new Map(); // name -> the session with its branches, of those that are unfolded
    this.unfolded = new Set();
    this.drawn = "";
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  // Ask the server again. Throws what the API throws.
  async refresh() {
    const [sessions, workspaces] = await Promise.all([this.api.get("/v1/sessions"), this.api.get("/v1/workspaces")]);
    this.sessions = sessions.data;
    this.workspaces = workspaces.data;
    this.draw();
    const unfolded = this.sessions.filter((session) => session.branches > 1 && this.unfolded.has(session.name));
    if (!unfolded.length) return;
    await Promise.all(unfolded.map((session) => this.readBranches(session.name)));
    this.draw();
  }

  async readBranches(name) {
    const path = `/v1/sessions/${encodeURIComponent(name)}`;
    this.details.set(name, await this.api.get(path));
  }

  setOpen(name) {
    this.openName = name;
    if (name !== null) this.unfolded.add(name);
    this.draw();
  }

  // Only what has changed is drawn: a button must not be replaced under a finger.
  draw() {
    const minute = Math.floor(Date.now() / 60_000); // what "5 min ago" hangs on
    const state = JSON.stringify([this.sessions, this.workspaces, this.openName, [...this.unfolded], [...this.details], minute]);
    if (state === this.drawn) return;
    this.drawn = state;
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const scroll = this.root.scrollTop;
    const places = [...new Set([...this.sessions.map((session) => session.workspace), ...this.workspaces])];
    this.root.replaceChildren(...places.map((place) => this.group(place)));
    this.root.scrollTop = scroll;
    if (focused) [...this.root.querySelectorAll("[data-key]")].find((button) => button.dataset.key === focused)?.focus();
  }

  group(place) {
    const parts = neutral(place).split("/").filter(Boolean);
    const create = element("button", {
      class: "icon-button", "aria-label": `New session in ${neutral(place)}`, title: "New session here",
      "data-key": `new ${place}`, onclick: () => this.actions.create(place),
    }, icon("plus"));
    const found = this.sessions.filter((session) => session.workspace === place);
    return element(
      "section", { class: "workspace" },
      element("div", { class: "workspace-head" }, element("h2", { title: neutral(place) }, parts.at(-1) ?? "/"), this.workspaces.includes(place) ? create : null),
      found.length ? element("ul", {}, ...found.map((session) => this.item(session))) : element("p", { class: "empty" }, "No session yet"),
    );
  }

  item(session) {
    const isOpen = session.name === this.openName, isUnfolded = this.unfolded.has(session.name);
    const meta = [counted(session.turns, "turn"), ago(session.used_at)];
    if (session.state === "running") meta.unshift("running");
    const open = element(
      "button", { class: "session", "aria-current": isOpen ? "page" : null, "data-key": `open ${session.name}`, onclick: () => this.actions.open(session.name) },
      element("span", { class: "name" }, session.name), element("span", { class: "meta" }, meta.join(" · ")),
    );
    const remove = element("button", {
      class: "icon-button remove", "aria-label": `Delete session ${session.name}`, title: "Delete",
      "data-key": `remove ${session.name}`, onclick: () => this.actions.remove(session),
    }, icon("trash"));
    const hasTree = session.branches > 1;
    const fold = hasTree ? element("button", {
      class: "icon-button fold", "aria-expanded": String(isUnfolded), "aria-label": `${session.branches} branches of ${session.name}`,
      "data-key": `fold ${session.name}`, onclick: () => this.actions.attempt(() => this.fold(session.name)),
    }, icon("chevron")) : null;
    const tree = hasTree && isUnfolded && this.details.has(session.name) ? this.tree(this.details.get(session.name)) : null;
    return element("li", { class: session.state }, element("div", { class: "row" }, open, fold, remove), tree);
  }

  async fold(name) {
    if (this.unfolded.delete(name)) return this.draw();
    this.unfolded.add(name);
    await this.readBranches(name);
    return this.draw();
  }

  // Branches under the branch that they left. The first branch of a fork grew from one of another session.
  tree(session) {
    const known = new Set(session.branches.map((branch) => branch.id));
    const level = (parent) => {
      const found = session.branches.filter((branch) => (known.has(branch.parent) ? branch.parent : null) === parent);
      if (!found.length) return null;
      return element("ul", { class: "branches", "aria-label": parent === null ? `Branches of ${session.name}` : null },
        ...found.map((branch) => element("li", {}, this.branch(session, branch), level(branch.id))));
    };
    return level(null);
  }

  branch(session, branch) {
    const prompt = branch.turns.find((turn) => turn.prompt)?.prompt;
    const origin = branch.parent_turn ? `after turn ${branch.parent_turn}` : "from the beginning";
    const label = prompt ? oneLine(prompt, LABEL_CHARS) : origin;
    const meta = branch.is_current ? "current" : `${counted(branch.turns.length, "turn")}, ${origin}`;
    return element(
      "button", {
        class: "branch", "aria-current": branch.is_current ? "true" : null, "data-key": `branch ${session.name} ${branch.id}`,
        title: branch.is_current ? null : "Go back to this branch", onclick: () => this.actions.goTo(session.name, branch.is_current ? null : branch.id),
      },
      icon("branch"), element("span", { class: "name" }, label), element("span", { class: "meta" }, meta),
    );
  }

  // Up and Down, Home and End go through all buttons that open something; Left and Right fold.
  key(event) {
    const buttons = [...this.root.querySelectorAll("button.session, button.branch")];
    const row = document.activeElement.closest("li");
    const at = buttons.indexOf(row?.querySelector("button"));
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 };
    const fold = row?.querySelector(":scope > .row > .fold");
    if (event.key in steps && buttons.length) {
      buttons[Math.max(0, Math.min(steps[event.key], buttons.length - 1))].focus();
    } else if (fold && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      if ((fold.getAttribute("aria-expanded") === "true") !== (event.key === "ArrowRight")) fold.click();
    } else {
      return;
    }
    event.preventDefault();
  }
}

export function placeLine(session) {
  return `${neutral(session.workspace)} · ${counted(session.turns, "turn")} · ${count(session.tokens)} tokens`;
}
