"use strict";

// Figures come as plain data; colours come from the style sheet, so that both themes are in one
// place and a change of theme while the page is open is followed.
const figures = JSON.parse(document.getElementById("figures").textContent);
const PALETTE = 7;
// Several runs share one legend, in the page itself.
const several = document.body.dataset.runs !== "1";

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function trace(series, format, curve) {
  const colour = themed(`--c${series.colour % PALETTE}`);
  const faint = series.style === "faint";
  const star = series.style === "star";
  return {
    x: series.x,
    y: series.y,
    name: series.name,
    mode: star || series.style === "dots" ? "markers" : series.style === "points" ? "lines+markers" : "lines",
    line: { color: colour, width: faint ? 1.25 : 2.25, dash: series.dash },
    marker: star
      ? { symbol: "star", size: 15, color: colour, line: { color: themed("--card"), width: 1.5 } }
      : { size: series.style === "dots" ? 5 : 7, color: colour },
    opacity: faint ? 0.45 : 1,
    hovertemplate: curve ? `%{x:${format}}: %{y:${format}}` : `%{y:${format}}`,
    hoverinfo: star || !series.name ? "skip" : undefined,
    showlegend: Boolean(series.name),
  };
}

// Layer x step; the scale is logarithmic, since layers are decades apart.
function heat(figure) {
  const positive = figure.z.flat().filter((value) => value > 0);
  const [low, high] = [Math.min(...positive), Math.max(...positive)].map(Math.log10);
  const ticks = high - low > 0.01 ? [low, (low + high) / 2, high] : [low];
  return {
    type: "heatmap",
    x: figure.x,
    y: figure.y,
    z: figure.z.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))),
    text: figure.z.map((row) => row.map((value) => (value === null ? "" : value.toExponential(2)))),
    hovertemplate: "step %{x}, layer %{y}: %{text}<extra></extra>",
    hoverongaps: false,
    colorscale: [
      [0, themed("--line")],
      [0.5, themed("--c0")],
      [1, themed("--ink")],
    ],
    xgap: figure.x.length > 60 ? 0 : 1,
    ygap: 1,
    colorbar: {
      thickness: 8,
      outlinewidth: 0,
      tickvals: ticks,
      ticktext: ticks.map((value) => (10 ** value).toExponential(0)),
      tickfont: { size: 10.5 },
    },
  };
}

function layout(figure) {
  const flat = figure.kind === "heat";
  const curve = figure.kind === "curve"; // both axes are shares, but for what has a unit of its own
  const grid = themed("--line");
  const axis = {
    gridcolor: grid,
    linecolor: grid,
    zeroline: false,
    automargin: true,
    tickfont: { size: 11.5 },
    nticks: 7,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: themed("--font"), size: 12.5, color: themed("--soft") },
    margin: { l: 8, r: 12, t: 6, b: 8 },
    xaxis: {
      ...axis,
      title: { text: curve ? figure.axes[0] : "step", standoff: 4, font: { size: 11.5 } },
      rangemode: flat || figure.id === "numbers" ? "normal" : "tozero",
      showgrid: false,
      ticks: "outside",
    },
    yaxis: {
      ...axis,
      ...(flat ? { type: "category", showgrid: false, nticks: 0, title: { text: "depth", font: { size: 11.5 } } } : {}),
      ...(curve ? { title: { text: figure.axes[1], standoff: 4, font: { size: 11.5 } } } : {}),
      rangemode: figure.from_zero || (curve && figure.id !== "numbers") ? "tozero" : "normal",
      ...(figure.id === "rates" ? { exponentformat: "e" } : {}),
    },
    hovermode: flat || curve ? "closest" : "x unified",
    hoverlabel: {
      bgcolor: themed("--card"),
      bordercolor: grid,
      font: { color: themed("--ink"), family: themed("--font") },
    },
    showlegend: !flat && !several && figure.series.length > 1,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
  };
}

function draw() {
  for (const figure of figures) {
    Plotly.react(
      document.getElementById(`figure-${figure.id}`),
      figure.kind === "heat"
        ? [heat(figure)]
        : figure.series.map((series) => trace(series, figure.format, figure.kind === "curve")),
      layout(figure),
      { responsive: true, displaylogo: false, displayModeBar: false },
    );
  }
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

// A link to a run opens it.
function opened() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

draw();
opened();
addEventListener("hashchange", opened);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("input[data-filters]").forEach(filtered);
