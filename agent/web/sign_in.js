// The token: where it comes from, where it is kept, and the form that asks for it.

import { Api, ApiError } from "./api.js";
import { confirmed } from "./dialogs.js";
import { byId } from "./dom.js";

const KEY = "holdfast.token";

// An Api whose token the server takes. Asks as often as it must; `problem` is shown with the form, which then comes first.
export async function signIn(problem = "") {
  const given = takeFromAddress(), before = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
  const isTaken = given !== null && (before === null || before === given || (await isWanted()));
  if (isTaken) sessionStorage.setItem(KEY, given);
  const kept = isTaken ? given : before;
  if (kept !== null && !problem) {
    const api = new Api(kept);
    problem = await problemOf(api);
    if (!problem) return api;
  }
  return ask(problem);
}

// An attacker can make a link with the attacker's token: what is typed after it would be the attacker's to read.
function isWanted() {
  const text = "This link signs in with another token than the one you use here. What you say then belongs to the user of that token.";
  return confirmed("Sign in with another token?", text, "Stay as I am", "Sign in");
}

export function forget() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

// `#token=` leaves the address at once: it must not be copied, kept in the history or photographed.
function takeFromAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const token = parts.get("token");
  if (token === null) return null;
  parts.delete("token");
  const rest = parts.toString();
  history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  return token.trim();
}

async function problemOf(api) {
  try {
    await api.get("/v1/workspaces");
    return "";
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return "The server does not know this token.";
    if (error instanceof ApiError) return error.message;
    return "The server cannot be reached: is holdfast serve running?";
  }
}

function ask(problem) {
  const [page, form, field] = [byId("sign-in"), byId("sign-in-form"), byId("token")];
  byId("app").hidden = true;
  page.hidden = false;
  byId("sign-in-problem").textContent = problem;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", async function submitted(event) {
      event.preventDefault();
      const token = field.value.trim();
      // a header takes no other characters
      const api = new Api(token);
      const found = /^[!-~]+$/.test(token) ? await problemOf(api) : "A token has no spaces and no letters beyond ASCII.";
      byId("sign-in-problem").textContent = found;
      field.setAttribute("aria-invalid", String(Boolean(found)));
      if (found) return field.select();
      form.removeEventListener("submit", submitted);
      sessionStorage.setItem(KEY, token);
      if (byId("keep").checked) localStorage.setItem(KEY, token);
      field.value = "";
      page.hidden = true;
      return resolve(api);
    });
  });
}
