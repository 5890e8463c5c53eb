// A tool call in the transcript: its arguments or its change, its outcome, and the question whether it may run.

import { diffView } from "./diff.js";
import { announce, byId, element } from "./dom.js";
import { counted, exact, neutral, oneLine } from "./text.js";

const MAX_SUMMARY_CHARS = 120;
const FOLDED_LINES = 400; // of an output; the rest is one click away
const RUNNING_LINES = 12, MAX_RUNNING_CHARS = 8000; // of what a running call has put out
// A key that was meant for the prompt must not answer a question that has just appeared.
const DEAF_MS = 600;

export class CallView {
  // `answer(id, approve)` tells the server; it may throw.
  constructor(call, answer) {
    this.call = call;
    this.answer = answer;
    this.arguments = parsed(call.arguments);
    this.state = element("span", { class: "state running" }, "running");
    this.note = element("span", { class: "note" });
    this.body = element("div", { class: "call-body" }, this.isEdit ? null : this.listed(neutral));
    if (this.isEdit) this.body.append(this.change(neutral));
    this.details = element(
      "details", { class: "call", open: this.isEdit },
      element(
        "summary", {},
        element("span", { class: "call-name" }, oneLine(call.name, 60)),
        element("span", { class: "call-arguments" }, this.summary()),
        this.note, this.state,
      ),
      this.body,
    );
    this.root = element("div", { class: "call-box" }, this.details);
    this.card = null;
    this.isAnswering = false;
    this.output = null; // of a call that runs
    this.text = "";
  }

  get isEdit() {
    const given = this.arguments;
    return this.call.name === "edit" && typeof given?.old === "string" && typeof given?.new === "string";
  }

  summary() {
    const given = this.arguments;
    if (given === null) return oneLine(this.call.arguments, MAX_SUMMARY_CHARS);
    if (this.isEdit) return oneLine(`${given.path}`, MAX_SUMMARY_CHARS);
    return oneLine(Object.entries(given).map(([key, value]) => `${key}=${asText(value)}`).join(" "), MAX_SUMMARY_CHARS);
  }

  // The arguments, whole; `show` is what makes them fit to be shown.
  listed(show) {
    if (this.arguments === null) return element("pre", { tabindex: "0" }, show(this.call.arguments));
    const rows = Object.entries(this.arguments).flatMap(([key, value]) => [
      element("dt", {}, show(key)), element("dd", {}, show(asText(value))),
    ]);
    return element("dl", { class: "arguments" }, ...rows);
  }

  change(show) {
    const { path, old, new: now, all, ...others } = this.arguments;
    const where = element("p", { class: "change-path" }, show(asText(path)), all ? " · every match" : "");
    const rest = Object.keys(others).length ? element("p", {}, show(JSON.stringify(others))) : null;
    return element("div", {}, where, diffView(old, now, show), rest ?? "");
  }

  setState(state) {
    this.state.className = `state ${state}`;
    this.state.textContent = state;
  }

  // What the call has put out so far, its end alone: the result has the rest.
  running(delta) {
    if (this.output === null) {
      this.output = element("pre", { class: "output", "aria-label": "Output so far" });
      this.body.append(this.output);
      this.details.open = true;
    }
    this.text = (this.text + delta).slice(-MAX_RUNNING_CHARS);
    const lines = neutral(this.text).split("\n");
    this.output.textContent = lines.slice(-RUNNING_LINES).join("\n");
  }

  finish(ok, output) {
    this.closeCard();
    if (this.output !== null) {
      this.output.remove();
      this.output = null;
      this.details.open = this.isEdit;
    }
    this.setState(ok ? "ok" : this.state.textContent === "refused" ? "refused" : "failed");
    const text = neutral(output), lines = text.split("\n");
    this.note.textContent = ok ? counted(lines.length, "line") : oneLine(output, 80);
    const pre = element("pre", { class: "output", tabindex: "0", "aria-label": "Output" }, lines.slice(0, FOLDED_LINES).join("\n"));
    this.body.append(pre);
    if (lines.length <= FOLDED_LINES) return;
    const more = element("button", { class: "quiet", onclick: () => { pre.textContent = text; more.remove(); } }, `Show all ${lines.length} lines`);
    this.body.append(more);
  }

  // Ask the user. Every character that cannot be seen is spelled out.
  ask() {
    if (this.card !== null) return;
    this.setState("waiting");
    this.details.hidden = true;
    const title = element("h4", { id: `approval-${this.call.id}` }, `Allow ${oneLine(this.call.name, 60)}?`);
    this.problem = element("p", { class: "problem", role: "alert" });
    const buttons = [
      element("button", { class: "primary", type: "button", "aria-keyshortcuts": "y", onclick: () => this.say(true) }, "Allow", element("kbd", { "aria-hidden": "true" }, "y")),
      element("button", { type: "button", "aria-keyshortcuts": "n", onclick: () => this.say(false) }, "Refuse", element("kbd", { "aria-hidden": "true" }, "n")),
    ];
    this.card = element(
      "div", { class: "approval", role: "group", tabindex: "-1", "aria-labelledby": title.id, onkeydown: (event) => this.key(event) },
      title, this.isEdit ? this.change(exact) : this.listed(exact), this.problem,
      element("div", { class: "buttons" }, ...buttons),
    );
    this.root.append(this.card);
    setTimeout(() => this.present(), 60); // an answer may be right behind, when a turn is shown again
  }

  present() {
    if (this.card === null || !this.root.isConnected) return;
    this.askedAt = performance.now();
    announce(`Approval needed: ${this.call.name} ${this.summary()}. Press y to allow, n to refuse.`);
    this.card.scrollIntoView({ block: "nearest" });
    const prompt = byId("prompt");
    if (!document.querySelector("dialog[open]") && !(document.activeElement === prompt && prompt.value)) this.card.focus();
  }

  key(event) {
    const answers = { y: true, n: false };
    const approve = answers[event.key.toLowerCase()];
    if (approve === undefined || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (performance.now() - this.askedAt > DEAF_MS) this.say(approve);
  }

  async say(approve) {
    if (this.isAnswering) return;
    this.isAnswering = true; // the stream says how it was answered, and by then another page may have been faster
    try {
      await this.answer(this.call.id, approve);
    } catch (error) {
      this.problem.textContent = error.message;
    } finally {
      this.isAnswering = false;
    }
  }

  // It is answered: by this page, or another one.
  answered(approved) {
    this.closeCard();
    if (["waiting", "running"].includes(this.state.textContent)) this.setState(approved ? "running" : "refused");
  }

  // The turn is over: nothing waits or runs any more.
  close() {
    this.closeCard();
    if (["waiting", "running"].includes(this.state.textContent)) this.setState("stopped");
  }

  closeCard() {
    if (this.card === null) return;
    const hadFocus = this.card.contains(document.activeElement);
    this.card.remove();
    this.card = null;
    this.details.hidden = false;
    if (hadFocus) byId("prompt").focus();
  }
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value) ?? "";
}
