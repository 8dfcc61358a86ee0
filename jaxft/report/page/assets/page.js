"use strict";

let picked = null; // of several runs, the one that a person wants to see before the others

function drawFigure(figure) {
  Plotly.react(
    document.getElementById(`figure-${figure.id}`),
    traces(figure, picked),
    layout(figure),
    { responsive: true, displaylogo: false, displayModeBar: false },
  );
}

function draw() {
  figures.forEach(drawFigure);
}

function sortable(table) {
  table.querySelectorAll("thead button").forEach((button) => {
    const header = button.closest("th");
    const column = header.cellIndex;
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const order = Array.from(body.rows).sort((a, b) => {
        const [left, right] = [a, b].map((row) => row.cells[column].dataset.value);
        const byNumber = Number(left) - Number(right);
        const first = Number.isNaN(byNumber)
          ? left.localeCompare(right, undefined, { numeric: true })
          : byNumber;
        return down ? -first : first;
      });
      body.append(...order);
    });
  });
}

function filtered(input) {
  const table = document.getElementById(input.dataset.filters);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

function pick(button) {
  const run = Number(button.dataset.run);
  picked = picked === run ? null : run;
  document.querySelectorAll(".pick").forEach((other) => {
    other.setAttribute("aria-pressed", String(Number(other.dataset.run) === picked));
  });
  draw();
}

// A link to a run opens it.
function opened() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

// What of a part of the page answers to a person.
function wire(part) {
  part.querySelectorAll(".pick").forEach((button) => {
    button.addEventListener("click", () => pick(button));
  });
  part.querySelectorAll("table.sortable").forEach(sortable);
  part.querySelectorAll("input[data-filters]").forEach(filtered);
}

draw();
wire(document);
opened();
addEventListener("hashchange", opened);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
