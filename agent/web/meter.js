// The token meter: how full the context is, and where the input of the last turn came from.

import { byId, element } from "./dom.js";
import { count, origins } from "./text.js";

export class Meter {
  constructor() {
    this.root = byId("meter");
    this.bar = byId("origins-bar");
  }

  // `usage` of the last turn that was answered, or null.
  show(used, limit, usage) {
    this.root.hidden = !limit;
    const meter = byId("context-meter");
    meter.max = limit || 1;
    meter.high = 0.9 * meter.max;
    meter.value = used;
    byId("context-text").textContent = `${count(used)} of ${count(limit)}`;
    meter.textContent = byId("context-text").textContent;
    byId("origins").hidden = usage === null;
    if (usage !== null) this.showOrigins(usage);
  }

  showOrigins(usage) {
    byId("origins-text").textContent = `${count(usage.input_tokens)} in, ${count(usage.output_tokens)} out`;
    const parts = origins(usage);
    this.bar.replaceChildren(...parts.filter(([, , tokens]) => tokens).map(([key, , tokens]) => {
      const part = element("span", { class: key });
      part.style.flexGrow = tokens;
      return part;
    }));
    byId("origins-list").replaceChildren(...parts.map(([key, name, tokens]) => element(
      "div", {}, element("dt", {}, element("span", { class: `swatch ${key}`, "aria-hidden": "true" }), name), element("dd", {}, count(tokens)),
    )));
  }

  hide() {
    this.root.hidden = true;
  }
}
