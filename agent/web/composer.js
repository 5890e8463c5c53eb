// The prompt: writing it, sending it, stopping the turn that it began.

import { byId } from "./dom.js";

const GO_ON = "Carry out the plan.";

export class Composer {
  // `actions`: send(prompt, policy), stop(); both may throw.
  constructor(actions) {
    this.actions = actions;
    this.prompt = byId("prompt");
    this.problem = byId("composer-problem");
    this.isRunning = false;
    this.isSending = false;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    this.former = byId("policy").value; // what planning goes back to
    byId("policy").addEventListener("change", () => {
      if (byId("policy").value !== "plan") this.former = byId("policy").value;
      this.offerPlan(false);
    });
    byId("carry-out").addEventListener("click", () => this.carryOut());
    this.prompt.addEventListener("input", () => this.grow());
    addEventListener("resize", () => this.grow());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends a composed word
      event.preventDefault();
      this.send();
    });
  }

  grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  setPolicy(policy) {
    byId("policy").value = this.former = policy;
  }

  // After a turn that only planned: the button that goes on, in the mode from before.
  offerPlan(isPlanned) {
    byId("carry-out").hidden = !(isPlanned && byId("policy").value === "plan");
  }

  async carryOut() {
    this.setPolicy(this.former === "plan" ? "ask" : this.former);
    const draft = this.prompt.value;
    this.write(GO_ON);
    await this.send();
    if (!this.prompt.value) this.write(draft);
    this.prompt.focus();
  }

  async send() {
    const prompt = this.prompt.value;
    if (this.isRunning || this.isSending || !prompt.trim()) return;
    this.isSending = true;
    this.offerPlan(false);
    this.tell("");
    this.write(""); // at once: what is typed from here on is the next prompt
    try {
      await this.actions.send(prompt, byId("policy").value);
    } catch (error) {
      this.write(this.prompt.value ? `${prompt}\n${this.prompt.value}` : prompt);
      this.tell(error.message);
    } finally {
      this.isSending = false;
    }
  }

  write(text) {
    this.prompt.value = text;
    this.grow();
  }

  async stop() {
    if (!this.isRunning) return;
    try {
      await this.actions.stop();
    } catch (error) {
      this.tell(error.message);
    }
  }

  setRunning(isRunning) {
    if (isRunning === this.isRunning) return;
    const hadFocus = [byId("stop"), byId("send")].includes(document.activeElement);
    this.isRunning = isRunning;
    byId("stop").hidden = !isRunning;
    byId("send").hidden = isRunning;
    byId("composer-hint").textContent = isRunning ? "Esc stops the turn" : "Enter sends, Shift+Enter breaks the line";
    if (hadFocus) this.prompt.focus(); // the button that had it is gone
  }

  // A line about what did not work; empty: none.
  tell(message) {
    this.problem.textContent = message;
  }
}
