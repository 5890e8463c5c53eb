// The difference of two texts, line by line. Must not know tools.

import { element } from "./dom.js";

// Above this many comparisons the middle is shown as replaced: no browser should wait for a table of that size.
const MAX_CELLS = 1_000_000;

// [["-" | "+" | " ", line], ...]: a longest common subsequence between the common beginning and the common end.
export function diffLines(before, after) {
  const old = before === "" ? [] : before.split("\n");
  const now = after === "" ? [] : after.split("\n");
  let head = 0;
  while (head < old.length && head < now.length && old[head] === now[head]) head += 1;
  let tail = 0;
  while (tail < old.length - head && tail < now.length - head && old.at(-1 - tail) === now.at(-1 - tail)) tail += 1;
  return [
    ...old.slice(0, head).map((line) => [" ", line]),
    ...middle(old.slice(head, old.length - tail), now.slice(head, now.length - tail)),
    ...old.slice(old.length - tail).map((line) => [" ", line]),
  ];
}

function middle(old, now) {
  if (old.length * now.length > MAX_CELLS) return [...old.map((line) => ["-", line]), ...now.map((line) => ["+", line])];
  const width = now.length + 1;
  const common = new Uint32Array((old.length + 1) * width); // lines in common from (i, j) on
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) {
      common[i * width + j] = old[i] === now[j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const lines = [];
  let i = 0, j = 0;
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) {
      lines.push([" ", old[i]]);
      i += 1, j += 1;
    } else if (i < old.length && (j === now.length || common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      lines.push(["-", old[i]]);
      i += 1;
    } else {
      lines.push(["+", now[j]]);
      j += 1;
    }
  }
  return lines;
}

const NAMES = { "-": "removed: ", "+": "added: ", " ": "" };
const CLASSES = { "-": "del", "+": "ins", " ": "same" };

const NUMBERED = /^(\d+) ([-+])(.*)$/s;

// Lines of a server's preview, `12 -line` and `12 +line` among others; `show` makes one fit to be shown.
export function previewView(lines, show) {
  const rows = lines.map((line) => {
    const [, number, sign, text] = NUMBERED.exec(line) ?? [null, "", " ", line];
    return row(sign, text, show, number);
  });
  return element("div", { class: "diff", role: "group", "aria-label": "What it would do", tabindex: "0" }, ...rows);
}

function row(sign, line, show, number = null) {
  return element(
    "div", { class: CLASSES[sign] },
    number === null ? null : element("span", { class: "number" }, number),
    element("span", { class: "visually-hidden" }, NAMES[sign]),
    element("span", { class: "sign", "aria-hidden": "true" }, sign),
    element("span", { class: "line" }, show(line) || " "),
  );
}

// A difference to look at; `show` makes a line fit to be shown. The sign is text, so it does not hang on colour.
export function diffView(before, after, show) {
  const rows = diffLines(before, after).map(([sign, line]) => row(sign, line, show));
  return element("div", { class: "diff", role: "group", "aria-label": "Change", tabindex: "0" }, ...rows);
}
