// Markdown inside a line: code, bold, italic, struck, links. DOM nodes out, never HTML.
//
// Every pattern is bounded, so that no text takes more than a fixed time per character.

import { element } from "./dom.js";

const MAX_CHARS = 20_000; // a paragraph longer than that is no prose, and is shown as it is
const MAX_DEPTH = 6;
const SPECIAL = /[\\`*_~[h<\n]/g;
const CODE = /(`{1,8})(?!`)([^]{1,2000}?[^`]|[^`])\1(?!`)/y;
const STRONG = /(\*\*)(?=\S)([^]{1,2000}?\S|\S)\1(?!\*)/y;
const EMPHASIS = /([*_])(?=[^\s*_])([^]{1,2000}?[^\s*_]|[^\s*_])\1(?![\p{L}\p{N}*_])/uy;
const STRUCK = /(~~)(?=\S)([^]{1,2000}?\S|\S)\1/y;
const LINK = /\[([^[\]\n]{1,500})\]\((https?:\/\/[^\s()<>"]{1,2000})\)/iy;
const BARE = /https?:\/\/[^\s()<>"'`\\]{1,2000}/iy;
const ANGLE = /<(https?:\/\/[^\s<>"]{1,2000})>/iy;
const WORD = /[\p{L}\p{N}_]/u;

// The nodes of a text.
export function inline(text, depth = 0) {
  if (text.length > MAX_CHARS || depth > MAX_DEPTH) return [text];
  const nodes = [];
  let plain = "", at = 0;
  const push = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const [node, length] = special(text, at, depth);
    if (typeof node === "string") plain += node;
    else push(node);
    at += length;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

// What a special character begins: a node, or text, and how many characters it took.
function special(text, at, depth) {
  const sign = text[at];
  const find = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  const afterWord = at > 0 && WORD.test(text[at - 1]);
  let found;
  if (sign === "\\") {
    return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], 2] : ["\\", 1];
  }
  if (sign === "\n") return / {2}$/.test(text.slice(Math.max(0, at - 2), at)) ? [element("br"), 1] : ["\n", 1];
  if (sign === "`") {
    if ((found = find(CODE))) return [element("code", {}, codeText(found[2])), found[0].length];
    const run = /`+/y;
    run.lastIndex = at;
    const ticks = run.exec(text)[0];
    return [ticks, ticks.length];
  }
  if (sign === "[" && (found = find(LINK))) return [link(found[2], inline(found[1], depth + 1)), found[0].length];
  if (sign === "<" && (found = find(ANGLE))) return [link(found[1], [found[1]]), found[0].length];
  if (sign === "h" && !afterWord && (found = find(BARE))) {
    const address = found[0].replace(/[.,;:!?*_~\]]+$/, "");
    return [link(address, [address]), address.length];
  }
  if (sign === "~" && (found = find(STRUCK))) return [element("del", {}, ...inline(found[2], depth + 1)), found[0].length];
  // no bold from __: here it is far more often __init__
  if (sign === "*" && (found = find(STRONG))) return [element("strong", {}, ...inline(found[2], depth + 1)), found[0].length];
  if ((sign === "*" || (sign === "_" && !afterWord)) && (found = find(EMPHASIS))) {
    return [element("em", {}, ...inline(found[2], depth + 1)), found[0].length];
  }
  return [sign, 1];
}

function codeText(text) {
  return /^ .* $/s.test(text) && text.trim() ? text.slice(1, -1) : text;
}

function link(address, content) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", title: address }, ...content);
}
