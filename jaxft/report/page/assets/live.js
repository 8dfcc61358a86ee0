"use strict";

// A page that a server sends again, piece by piece, as its runs go on: regions of markup, which are
// the server's own and escaped there, and figures. A figure is drawn when it is on the screen, and
// one a frame, so that the page answers at all times.
const waiting = new Set(); // names of figures to draw
const onScreen = new Set();
let frame = null;

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const name = entry.target.id;
    if (entry.isIntersecting) onScreen.add(name);
    else onScreen.delete(name);
  }
  plan();
});

function plan() {
  if (frame === null && [...waiting].some((name) => onScreen.has(name))) {
    frame = requestAnimationFrame(drawNext);
  }
}

function drawNext() {
  frame = null;
  const name = [...waiting].find((one) => onScreen.has(one));
  if (name === undefined) return;
  waiting.delete(name);
  const figure = figures.find((one) => `figure-${one.id}` === name);
  if (figure && document.getElementById(name)) drawFigure(figure);
  plan();
}

function watch(part) {
  part.querySelectorAll(".figure").forEach((figure) => watcher.observe(figure));
}

function renew(changed, names) {
  const older = new Map(figures.map((figure) => [figure.id, figure]));
  for (const figure of changed) {
    older.set(figure.id, figure);
    waiting.add(`figure-${figure.id}`);
  }
  figures.splice(0, figures.length, ...names.map((name) => older.get(name)).filter(Boolean));
}

// What a person opened, ticked or is typing in stays so.
function replace(region, markup) {
  const open = new Set(Array.from(region.querySelectorAll("details[open][id]"), (one) => one.id));
  const ticked = new Set(Array.from(region.querySelectorAll("input:checked"), (one) => one.id));
  const focus = region.contains(document.activeElement) ? document.activeElement.id : "";
  const scrolled = region.querySelector(".log")?.scrollTop ?? 0;
  region.querySelectorAll(".figure").forEach((figure) => {
    watcher.unobserve(figure);
    onScreen.delete(figure.id);
    waiting.add(figure.id);
    Plotly.purge(figure);
  });
  region.innerHTML = markup;
  region.querySelectorAll("details[id]").forEach((one) => (one.open = open.has(one.id)));
  region.querySelectorAll("input[type=checkbox]").forEach((one) => (one.checked = ticked.has(one.id)));
  if (focus) document.getElementById(focus)?.focus();
  region.querySelector(".log")?.scrollTo(0, scrolled);
  wire(region);
  wireStops(region);
  watch(region);
}

// Read out by screen readers too.
function announce(sentence) {
  document.querySelectorAll(".announcement").forEach((line) => (line.textContent = sentence));
}

async function stop(button) {
  button.disabled = true;
  const address = new URL(document.body.dataset.events, location.href);
  const asked = new URLSearchParams({ run: button.dataset.stop });
  if (address.searchParams.has("token")) asked.set("token", address.searchParams.get("token"));
  try {
    const answer = await fetch(`/stop?${asked}`, { method: "POST" });
    announce(await answer.text());
  } catch {
    announce("The board does not answer.");
  }
  button.disabled = false;
}

function wireStops(part) {
  part.querySelectorAll("button[data-stop]").forEach((button) => {
    button.addEventListener("click", () => stop(button));
  });
}

wireStops(document);
watch(document);
const source = new EventSource(document.body.dataset.events);
source.onmessage = (message) => {
  const change = JSON.parse(message.data);
  renew(change.figures, change.names);
  for (const [name, markup] of Object.entries(change.regions)) {
    const region = document.querySelector(`[data-region="${name}"]`);
    if (region) replace(region, markup);
  }
  if (change.announcement) announce(change.announcement);
  plan();
};
source.onerror = () => announce("The board does not answer: this page shows what it last knew.");
