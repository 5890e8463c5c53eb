// A tool call in the transcript: its arguments or its change, its outcome, and the question whether it may run.

import { diffView, previewView } from "./diff.js";
import { announce, byId, element } from "./dom.js";
import { counted, exact, neutral, oneLine } from "./text.js";

const MAX_SUMMARY_CHARS = 120;
const FOLDED_LINES = 400; // of an output; the rest is one click away
const RUNNING_LINES = 12, MAX_RUNNING_CHARS = 8000; // of what a running call has put out
// A key that was meant for the prompt must not answer a question that has just appeared.
const DEAF_MS = 600;
const DIFF_LINE = /^\d+ [-+]/;

export class CallView {
  // `answer(call, answer)` tells the server; it may throw.
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
  ask(event) {
    if (this.card !== null) return;
    this.asked = event;
    this.setState("waiting");
    this.details.hidden = true;
    const title = element("h4", { id: `approval-${this.call.id}` }, `Allow ${oneLine(this.call.name, 60)}?`);
    this.problem = element("p", { class: "problem", role: "alert" });
    this.buttons = element("div", { class: "buttons" });
    this.whole = element("div", { hidden: true }, this.listed(exact));
    this.card = element(
      "div", { class: "approval", role: "group", tabindex: "-1", "aria-labelledby": title.id, onkeydown: (event) => this.key(event) },
      title, ...this.shown(), this.always ? element("p", { class: "always" }, exact(this.always)) : null,
      this.whole, this.problem, this.buttons,
    );
    this.offer();
    this.root.append(this.card);
    setTimeout(() => this.present(), 60); // an answer may be right behind, when a turn is shown again
  }

  // What it would do: changed lines with their numbers, or its arguments and what the server says of it.
  shown() {
    const preview = this.asked.preview ?? [];
    const view = preview.length ? previewView(preview, exact) : null;
    if (preview.some((line) => DIFF_LINE.test(line))) return [element("p", { class: "change-path" }, exact(asText(this.arguments?.path ?? ""))), view];
    return [this.isEdit ? this.change(exact) : this.listed(exact), view];
  }

  get always() {
    const { always_rule: rule, always_mode: mode } = this.asked;
    if (rule) return `Always, in this workspace: ${rule}`;
    return mode ? `Always: mode ${mode} for this session` : "";
  }

  // The first choices: each a button and a key.
  offer() {
    this.choose([
      ["y", "Allow", () => this.say({ approve: true })],
      ...(this.always ? [["a", "Always", () => this.confirmAlways()]] : []),
      ["n", "Refuse", () => this.say({ approve: false })],
      ["t", "No, and say why", () => this.askWhy()],
      ["v", "Show whole", () => (this.whole.hidden = !this.whole.hidden)],
    ]);
  }

  choose(choices, ...before) {
    const hadFocus = this.buttons.contains(document.activeElement);
    this.choices = Object.fromEntries(choices.map(([key, , act]) => [key, act]));
    this.buttons.replaceChildren(...before, ...choices.map(([key, text, act], at) => element(
      "button", { class: at === 0 ? "primary" : "", type: "button", "aria-keyshortcuts": key, onclick: act }, text, element("kbd", { "aria-hidden": "true" }, key),
    )));
    if (hadFocus) this.card.focus();
  }

  confirmAlways() {
    announce(`${this.always}? Press y or n.`);
    this.choose(
      [["y", "Yes, always", () => this.say({ approve: true, always: true })], ["n", "Back", () => this.offer()]],
      element("p", {}, `${exact(this.always)}?`),
    );
  }

  askWhy() {
    const why = element("input", { type: "text", maxlength: "2000", "aria-label": "Why not? The model reads it" });
    const send = () => this.say({ approve: false, reason: why.value });
    why.addEventListener("keydown", (event) => {
      event.stopPropagation(); // its letters are no choices
      if (event.key === "Enter" && !event.isComposing) send();
      if (event.key === "Escape") this.offer();
    });
    this.choose([["Enter", "Refuse", send]], why);
    why.focus();
  }

  present() {
    if (this.card === null || !this.root.isConnected) return;
    this.askedAt = performance.now();
    announce(`Approval needed: ${this.call.name} ${this.summary()}. Press y to allow, n to refuse, ${this.always ? "a for always, " : ""}t to say why.`);
    this.card.scrollIntoView({ block: "nearest" });
    const prompt = byId("prompt");
    if (!document.querySelector("dialog[open]") && !(document.activeElement === prompt && prompt.value)) this.card.focus();
  }

  key(event) {
    const act = this.choices[event.key.toLowerCase()];
    if (act === undefined || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (performance.now() - this.askedAt > DEAF_MS) act();
  }

  async say(answer) {
    if (this.isAnswering) return;
    this.isAnswering = true; // the stream says how it was answered, and by then another page may have been faster
    try {
      await this.answer(this.asked, answer);
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
