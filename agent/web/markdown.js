// Markdown as models write it: blocks of lines to DOM nodes. Must not know where the text comes from.
//
// Appended text can change the last block only, so a stream keeps all nodes but the last one: no flicker, and the work
// per piece does not grow with the answer.

import { appendAll, element } from "./dom.js";
import { inline } from "./inline.js";
import { neutral } from "./text.js";

const MAX_DEPTH = 8;
const MAX_PARTS = 2000; // blocks, items or rows drawn at once; the rest is shown as it is written
const MAX_CELLS = 100; // of a row
const MAX_MARK_CHARS = 1000; // a longer line is text: matching a mark may take the square of a line's length
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

// One text that grows.
export class MarkdownView {
  constructor() {
    this.root = element("div", { class: "markdown" });
    this.text = "";
    this._start = 0; // of the last block, in `text`
    this._last = null; // its node
    this._timer = null;
  }

  append(delta) {
    this.text += delta;
    this._timer ??= setTimeout(() => this.flush(), 40);
  }

  // Show what has come. Call it at the end: a timer of a page in the background may be late.
  flush() {
    clearTimeout(this._timer);
    this._timer = null;
    const text = neutral(this.text.slice(this._start));
    const found = blocks(text.split("\n"));
    if (!found.length) return;
    this._last?.remove();
    const nodes = found.map((block) => block.node());
    appendAll(this.root, nodes);
    this._last = nodes.at(-1);
    this._start += rawLength(this.text.slice(this._start), found.at(-1).line);
  }
}

// A whole text at once.
export function markdown(text) {
  const view = new MarkdownView();
  view.text = text;
  view.flush();
  return view.root;
}

function rawLength(text, numLines) {
  let at = 0;
  for (let line = 0; line < numLines; line += 1) at = text.indexOf("\n", at) + 1;
  return at;
}

// The blocks of some lines as {line, node()}: the line that each begins at, and how to draw it.
function blocks(lines, depth = 0) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const from = at;
    if (found.length === MAX_PARTS) {
      found.push({ line: from, node: () => asWritten(lines.slice(from)) });
      break;
    }
    const [end, node] = blockAt(lines, at, depth);
    found.push({ line: at, node });
    at = end;
  }
  return found;
}

// A block of `num` parts that ends at a line; where they are too many, what comes after it is shown as it is written.
function drawn(lines, end, num, node) {
  if (num < MAX_PARTS) return [end, node];
  return [lines.length, () => element("div", {}, node(), asWritten(lines.slice(end)))];
}

function asWritten(lines) {
  return element("pre", { tabindex: "0" }, lines.join("\n"));
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  let match;
  if ((match = mark(FENCE, line))) return fence(lines, at, match);
  if ((match = mark(HEADING, line))) {
    const level = Math.min(match[1].length + 3, 6); // the page itself has the first three
    return [at + 1, () => element(`h${level}`, {}, ...inline((match[2] ?? "").trimEnd().replace(/[ \t]#+$/, "")))];
  }
  if (mark(RULE, line)) return [at + 1, () => element("hr")];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function mark(pattern, line) {
  return line.length <= MAX_MARK_CHARS ? pattern.exec(line) : null;
}

function fence(lines, at, [, indent, marks, language]) {
  const closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const pad = new RegExp(`^ {0,${indent.length}}`);
  const code = lines.slice(at + 1, end).map((line) => line.replace(pad, "")).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(code, language)];
}

export function codeBlock(code, language) {
  const shown = element("code", {}, code);
  const copy = element("button", { type: "button", class: "quiet copy", onclick: () => copyCode(shown, copy) }, "Copy");
  return element(
    "div", { class: "code" },
    element("div", { class: "code-head" }, element("span", {}, language || "text"), copy),
    element("pre", { tabindex: "0" }, shown),
  );
}

async function copyCode(shown, button) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(shown.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } else {
    getSelection().selectAllChildren(shown); // without a secure context there is only the user's own copying
  }
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return [end, () => element("blockquote", {}, nodes(inner, depth + 1))];
}

function nodes(lines, depth) {
  return blocks(lines, depth).map((block) => block.node());
}

// Items of one kind with the same indentation. What stands deeper belongs to the item above.
function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let end = at, width = 0;
  while (end < lines.length && items.length < MAX_PARTS) {
    const line = lines[end], item = ITEM.exec(line);
    const indent = line.length - line.trimStart().length;
    if (!line.trim()) {
      const next = lines.slice(end + 1, end + 3).find((other) => other.trim());
      if (next === undefined || !belongs(next, first, width, isOrdered)) break;
      items.at(-1).push("");
    } else if (item && indent < first[1].length + Math.max(width, 2) && !mark(RULE, line)) {
      if (/\d/.test(item[2]) !== isOrdered || indent < first[1].length) break;
      width = item[2].length + Math.min((item[3] ?? " ").length, 4);
      items.push([item[4] ?? ""]);
    } else if (indent >= 2 && indent > first[1].length) {
      items.at(-1).push(line.slice(Math.min(indent, first[1].length + width)));
    } else if (items.at(-1).at(-1) === "" || startsBlock(line)) {
      break;
    } else {
      items.at(-1).push(line); // a paragraph that goes on without its indentation
    }
    end += 1;
  }
  const start = isOrdered ? Number.parseInt(first[2], 10) : 1;
  return drawn(lines, end, items.length, () => element(
    isOrdered ? "ol" : "ul", { start: start === 1 ? null : start },
    items.map((inner) => element("li", {}, itemNodes(inner, depth + 1))),
  ));
}

function belongs(line, first, width, isOrdered) {
  const item = ITEM.exec(line), indent = line.length - line.trimStart().length;
  if (item && indent === first[1].length) return /\d/.test(item[2]) === isOrdered;
  return indent >= first[1].length + Math.min(width, 2) && indent > 0;
}

// A tight item has no paragraph around its text.
function itemNodes(lines, depth) {
  return nodes(lines, depth).flatMap((node) => (node.tagName === "P" && !lines.includes("") ? [...node.childNodes] : [node]));
}

function isTable(lines, at) {
  const [head, below] = [lines[at], lines[at + 1] ?? ""];
  return head.includes("|") && head.length <= MAX_MARK_CHARS && below.includes("-") && mark(DELIMITER, below) && cells(head).length === cells(below).length;
}

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && end - at < MAX_PARTS && lines[end].trim() && lines[end].includes("|")) end += 1;
  const sides = cells(lines[at + 1]).slice(0, MAX_CELLS).map((mark) => (/^:-+:$/.test(mark) ? "center" : /:$/.test(mark) ? "right" : null));
  const row = (tag, line) => {
    const given = cells(line);
    return element("tr", {}, sides.map((side, n) => element(tag, { class: side }, inline(given[n] ?? ""))));
  };
  return drawn(lines, end, end - at, () => element(
    "div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    element("table", {}, element("thead", {}, row("th", lines[at])), element("tbody", {}, lines.slice(at + 2, end).map((line) => row("td", line)))),
  ));
}

function startsBlock(line) {
  return mark(FENCE, line) || mark(HEADING, line) || mark(RULE, line) || QUOTE.test(line);
}

function paragraph(lines, at, depth) {
  const goesOn = (line) => lines[line].trim() && !startsBlock(lines[line]) && !(depth < MAX_DEPTH && ITEM.test(lines[line]));
  let end = at + 1;
  while (end < lines.length && goesOn(end) && !isTable(lines, end)) end += 1;
  return [end, () => element("p", {}, inline(lines.slice(at, end).map((line) => line.trimStart()).join("\n")))];
}
