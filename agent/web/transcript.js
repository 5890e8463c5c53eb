// All turns of the open session, and where the reader is in them. Must not know the server.

import { announce, byId, element } from "./dom.js";
import { ENDS, TurnView, turnButtons } from "./turn.js";

const SHOWN_TURNS = 100; // at first, and more on each request
const NEAR_END_PX = 90;

export class Transcript {
  constructor(actions) {
    this.actions = actions;
    this.scroller = byId("transcript");
    this.list = byId("turns");
    this.toLatest = byId("to-latest");
    this.earlier = []; // [number, events] of turns that are not drawn yet
    this.views = [];
    this.isFollowing = true;
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.toLatest.addEventListener("click", () => this.follow());
    // what grows without an event of ours: text that is drawn a moment later, a fold that opens
    new ResizeObserver(() => this.keepAtEnd()).observe(this.list);
  }

  // The turns of the log, each with its number, before the one that runs.
  show(events, numTurns) {
    const turns = new Map();
    for (const event of events) {
      if (event.turn > numTurns) continue;
      if (!turns.has(event.turn)) turns.set(event.turn, []);
      turns.get(event.turn).push(event);
    }
    this.earlier = [...turns];
    this.views = [];
    this.list.replaceChildren();
    this.numTurns = numTurns;
    this.showEarlier();
    this.follow();
  }

  showEarlier() {
    const found = this.earlier.splice(Math.max(0, this.earlier.length - SHOWN_TURNS));
    const drawn = found.map(([number, events]) => {
      const view = new TurnView(number, this.actions);
      for (const event of events) view.add(event);
      if (!view.isOver) view.end();
      return view;
    });
    this.views.unshift(...drawn);
    this.list.querySelector(".begin")?.remove();
    this.list.prepend(this.beginning(), ...drawn.map((view) => view.root));
    drawn.at(0)?.root.scrollIntoView({ block: "nearest" });
  }

  beginning() {
    if (!this.earlier.length) return element("div", { class: "begin" }, element("span", {}, "Beginning of the session"), turnButtons(0, this.actions));
    const text = `Show earlier turns (${this.earlier.length})`;
    return element("div", { class: "begin" }, element("button", { type: "button", onclick: () => this.showEarlier() }, text));
  }

  // An event of the turn that runs. Returns whether it ended the turn.
  add(event) {
    if (event.type === "user") this.begin(event.turn ?? (this.views.at(-1)?.number ?? this.numTurns) + 1);
    const view = this.views.at(-1);
    if (!view || view.isOver) return false;
    view.add(event);
    if (event.type === "turn_done") view.setNumber(event.turn);
    const isEnd = ENDS.includes(event.type);
    if (isEnd) {
      this.scroller.removeAttribute("aria-busy");
      announce(event.type === "turn_done" ? `Answer: ${view.answer.slice(0, 1000)}` : view.parts.lastChild?.textContent ?? "");
    }
    this.keepAtEnd();
    return isEnd;
  }

  // A turn that ended while the log was read is in both: the stream's is whole.
  begin(number) {
    while (this.views.at(-1)?.number >= number) this.views.pop().root.remove();
    const view = new TurnView(number, this.actions);
    this.views.push(view);
    this.list.append(view.root);
    this.scroller.setAttribute("aria-busy", "true");
    this.follow();
  }

  // What the log says after a turn: one that was refused before it began is not in it.
  settle(numTurns) {
    const view = this.views.at(-1);
    if (view?.isOver && view.number > numTurns) view.setNumber(null);
    this.numTurns = numTurns;
  }

  get lastUsage() {
    return this.views.findLast((view) => view.usage)?.usage ?? null;
  }

  clear() {
    this.earlier = [];
    this.views = [];
    this.list.replaceChildren();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.toLatest.hidden = this.isFollowing;
  }

  follow() {
    this.isFollowing = true;
    this.toLatest.hidden = true;
    this.keepAtEnd();
  }

  keepAtEnd() {
    if (this.isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}
