// One turn in the transcript: its events in, elements out. Must not know where events come from.

import { CallView } from "./calls.js";
import { element, icon } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { neutral, usageLine } from "./text.js";

export const ENDS = ["turn_done", "error", "interrupted"];

export class TurnView {
  // `actions`: answer(call, answer), fork(turn), rewind(turn).
  constructor(number, actions) {
    this.actions = actions;
    this.title = element("h3", { class: "visually-hidden" });
    this.parts = element("div", { class: "parts" });
    this.foot = element("div", { class: "turn-foot" });
    this.root = element("article", { class: "turn" }, this.title, this.parts, this.foot);
    this.calls = new Map();
    this.text = null; // the text or the thinking that grows
    this.progress = null;
    this.isOver = false;
    this.usage = null;
    this.answer = "";
    this.setNumber(number);
  }

  // null for a turn that is not in the log: nothing can go on from it.
  setNumber(number) {
    this.number = number;
    const name = number === null ? "Turn that was not kept" : `Turn ${number}`;
    this.title.textContent = name;
    this.root.setAttribute("aria-label", name);
    if (this.isOver) this.drawFoot();
  }

  add(event) {
    if (event.type !== "prefill_progress") this.clearProgress();
    if (!["text", "thinking"].includes(event.type)) this.endText();
    switch (event.type) {
      case "user": return this.parts.append(element("div", { class: "user" }, element("span", { class: "visually-hidden" }, "You: "), neutral(event.text)));
      case "text": return this.addText(event.delta);
      case "thinking": return this.addThinking(event.delta);
      case "prefill_progress": return this.showProgress(event.done, event.total);
      case "tool_call": return this.addCall(event);
      case "approval_needed": return this.addCall(event).ask(event);
      case "approval_done": return this.calls.get(event.id)?.answered(event.approved);
      case "tool_output": return this.calls.get(event.id)?.running(event.delta);
      case "tool_result": return this.calls.get(event.id)?.finish(event.ok, event.output);
      case "notice": return this.line("notice", event.message);
      case "rolled": return this.line("notice", "the oldest tokens left the window");
      case "error": this.line("error", event.message); break;
      case "interrupted": this.line("notice", "interrupted"); break;
      case "turn_done": this.usage = event.usage; break;
      default: return undefined; // an event of a newer server
    }
    return this.end();
  }

  addText(delta) {
    if (!(this.text instanceof MarkdownView)) {
      this.endText();
      this.text = new MarkdownView();
      this.parts.append(this.text.root);
      this.answer = "";
    }
    this.answer += delta;
    this.text.append(delta);
  }

  addThinking(delta) {
    if (!(this.text instanceof ThinkingView)) {
      this.endText();
      this.text = new ThinkingView();
      this.parts.append(this.text.root);
    }
    this.text.append(delta);
  }

  endText() {
    this.text?.flush();
    this.text = null;
  }

  addCall(event) {
    const known = this.calls.get(event.id);
    if (known) return known;
    const call = new CallView(event, this.actions.answer);
    this.calls.set(event.id, call);
    this.parts.append(call.root);
    return call;
  }

  showProgress(done, total) {
    if (done >= total) return this.clearProgress();
    if (this.progress === null) {
      this.progress = element("label", { class: "reading" }, "", element("progress"));
      this.parts.append(this.progress);
    }
    const bar = this.progress.lastChild;
    bar.max = total;
    bar.value = done;
    this.progress.firstChild.data = `Reading ${done.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} tokens `;
    return undefined;
  }

  clearProgress() {
    this.progress?.remove();
    this.progress = null;
  }

  line(kind, message) {
    const last = this.parts.lastChild; // the log says "interrupted" as a notice, the stream as an event too
    if (last?.classList.contains("line") && last.textContent === message) return;
    this.parts.append(element("p", { class: `line ${kind}` }, neutral(message)));
  }

  // Nothing more comes. Also called for a turn of the log, whose end may not be in it.
  end() {
    this.endText();
    this.clearProgress();
    for (const call of this.calls.values()) call.close();
    this.isOver = true;
    this.drawFoot();
  }

  drawFoot() {
    const usage = this.usage ? element("p", { class: "usage" }, usageLine(this.usage)) : "";
    this.foot.replaceChildren(usage, this.number === null ? "" : turnButtons(this.number, this.actions));
  }
}

// What can be done from the end of a turn; 0: before the first.
export function turnButtons(number, actions) {
  const where = number ? `after turn ${number}` : "before the first turn";
  const button = (name, text, act) => element(
    "button", { class: "quiet", type: "button", "aria-label": `${text} (${where})`, onclick: () => act(number) }, icon(name), text,
  );
  return element("div", { class: "turn-buttons" }, button("fork", "Fork from here", actions.fork), button("rewind", "Rewind to here", actions.rewind));
}

class ThinkingView {
  constructor() {
    this.summary = element("summary", {}, "Thinking…");
    this.body = element("div", { class: "thought" });
    this.root = element("details", { class: "thinking" }, this.summary, this.body);
  }

  append(delta) {
    this.body.append(neutral(delta));
  }

  flush() {
    this.summary.textContent = "Thought";
  }
}
