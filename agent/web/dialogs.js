// The two dialogs, and the drawer that the list of sessions is on a narrow screen.

import { byId, icon } from "./dom.js";

// Ask before what cannot be undone. Resolves to whether it was confirmed; the focus goes back where it was.
export function confirmed(title, text, no = "Keep it", yes = "Delete") {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-no").textContent = no;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

export function startDialogs() {
  byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  byId("shortcuts-close").addEventListener("click", () => byId("shortcuts").close());
  byId("show-shortcuts").addEventListener("click", () => byId("shortcuts").showModal());
  addEventListener("keydown", (event) => {
    const isWriting = event.target.closest?.("input, textarea, select, dialog");
    if (event.key !== "?" || isWriting || byId("app").hidden || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    byId("shortcuts").showModal();
  });
  for (const link of document.querySelectorAll("[data-skip]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the address holds the session's name
      byId(link.dataset.skip).focus();
    });
  }
}

export function startDrawer() {
  const [open, close] = [byId("open-sidebar"), byId("close-sidebar")];
  open.append(icon("menu"));
  close.append(icon("close"));
  open.addEventListener("click", () => {
    setDrawer(true);
    close.focus();
  });
  close.addEventListener("click", () => closeDrawer());
  byId("shade").addEventListener("click", () => closeDrawer());
  byId("sidebar").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isDrawerOpen()) return;
    event.stopPropagation();
    closeDrawer();
  });
}

export function closeDrawer() {
  if (!isDrawerOpen()) return;
  setDrawer(false);
  byId("open-sidebar").focus();
}

function isDrawerOpen() {
  return document.body.classList.contains("drawer-open");
}

function setDrawer(isOpen) {
  document.body.classList.toggle("drawer-open", isOpen);
  byId("main").inert = isOpen;
  byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
}
