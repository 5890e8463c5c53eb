// Making elements. Text always arrives as text nodes: nothing here, or anywhere on the page, reads a string as HTML.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  menu: "M3 5h14M3 10h14M3 15h14",
  close: "M5 5l10 10M15 5L5 15",
  trash: "M4 6h12M8 6V4h4v2M6 6l1 10h6l1-10M9 9v4.5M11 9v4.5",
  plus: "M10 4v12M4 10h12",
  chevron: "M7 5l5 5-5 5",
  fork: "M6 4v12M6 11c0-3 8-1 8-5V4M4.5 4.5L6 3l1.5 1.5M12.5 4.5L14 3l1.5 1.5",
  rewind: "M4 4v4.5h4.5M4.6 8.5a6 6 0 1 1-.4 4",
  branch: "M5 4v7a3 3 0 0 0 3 3h7M12 11l3 3-3 3",
};

// element("button", { class: "quiet", onclick: f, "aria-label": "Delete" }, "x"): properties on..., attributes otherwise.
// A list may be among the children: as arguments, a long one would overflow the stack.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  appendAll(made, children.flat());
  return made;
}

export function appendAll(parent, children) {
  for (const child of children) if (child !== null && child !== undefined) parent.append(child);
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export function byId(id) {
  return document.getElementById(id);
}

// Said by screen readers, never shown. A line that is said twice must change to be heard twice.
export function announce(text) {
  const announcer = byId("announcer");
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}
