"use strict";
// Fetches fragments that the server has drawn and puts them in. No framework, no build: this is all of it.

const parts = [
  { id: "overview", every: 2000, next: 0, text: "" },
  { id: "matrices", every: 15000, next: 0, text: "" },
];
const state = document.getElementById("state");
const pause = document.getElementById("pause");
const door = document.getElementById("door");
const key = document.getElementById("key");
let paused = false;
let failures = 0;

function say(text) {
  if (state.textContent !== text) state.textContent = text; // a screen reader reads it once
}

function show(part, text) {
  if (text === part.text) return;
  const home = document.getElementById(part.id);
  // What the reader had open, scrolled or focused stays so, though the elements are new ones.
  const open = new Set([...home.querySelectorAll("details[open]")].map((one) => one.id));
  const scrolled = [...home.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  const reached = [...home.querySelectorAll("summary, [tabindex]")];
  const focused = reached.indexOf(document.activeElement);
  home.innerHTML = text;
  part.text = text;
  for (const one of home.querySelectorAll("details")) one.open = open.has(one.id);
  home.querySelectorAll(".scroll").forEach((one, n) => { one.scrollLeft = scrolled[n] || 0; });
  if (focused >= 0) {
    const now = home.querySelectorAll("summary, [tabindex]")[focused];
    if (now) now.focus({ preventScroll: true });
  }
}

async function fetchPart(part) {
  const token = sessionStorage.getItem("treering-key");
  const headers = token ? { authorization: "Bearer " + token } : {};
  const answer = await fetch("/page/" + part.id, { headers, signal: AbortSignal.timeout(10000) });
  if (answer.status === 401 || answer.status === 403) {
    sessionStorage.removeItem("treering-key");
    if (door.hidden) {
      door.hidden = false;
      key.focus();
    }
    say(token ? "This key isn't good for it" : "This server wants a key");
    return false;
  }
  if (!answer.ok) throw new Error("status " + answer.status);
  show(part, await answer.text());
  return true;
}

async function tick() {
  const now = Date.now();
  if (!paused && !document.hidden && door.hidden) {
    try {
      let told = true;
      for (const part of parts) {
        if (now < part.next) continue;
        part.next = now + part.every;
        told = (await fetchPart(part)) && told;
        if (!told) break;
      }
      failures = 0;
      document.body.classList.remove("stale");
      if (told) say("Live");
    } catch {
      failures += 1;
      document.body.classList.add("stale");
      say("The server can't be reached; trying again");
      for (const part of parts) part.next = now + Math.min(30000, 1000 * 2 ** failures);
    }
  }
  setTimeout(tick, 250);
}

pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
  say(paused ? "Paused" : "Live");
});

door.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("treering-key", key.value.trim());
  key.value = "";
  door.hidden = true;
  pause.focus();
  for (const part of parts) part.next = 0;
});

tick();
