"use strict";

// What page.js shows and png.js saves. Figures come as plain data; colours come from the style
// sheet, so that both themes are in one place and a change of theme while the page is open is
// followed.
const figures = JSON.parse(document.getElementById("figures").textContent);
const PALETTE = 7;
// Several runs share one legend, in the page itself.
const several = document.body.dataset.runs !== "1";

// Plotly reads `<b>` and `<a href>` in a text as markup, and shows entities as what they stand for.
// Characters that control a terminal or reorder a line are written out, as elsewhere on the page.
function plain(text) {
  return String(text ?? "")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replace(
      /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
      (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
}

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A colour between the palette's, for lines in an order: 0 the lowest, 1 the highest.
function shaded(share) {
  const stops = ["--c0", "--c3", "--c1"].map((name) =>
    themed(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16)),
  );
  const place = share * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (place - low)));
  return `rgb(${mixed.join(", ")})`;
}

// A line of one point would not be seen.
function dotted(series) {
  return series.style === "points" || series.y.filter((value) => value !== null).length === 1;
}

// `picked` is the run that stands before all others, or null.
function trace(series, format, curve, picked) {
  const colour = series.shade === undefined ? themed(`--c${series.colour % PALETTE}`) : shaded(series.shade);
  const faint = series.style === "faint";
  const star = series.style === "star";
  return {
    x: series.x,
    y: series.y,
    name: plain(series.name),
    mode: star || series.style === "dots" ? "markers" : dotted(series) ? "lines+markers" : "lines",
    line: { color: colour, width: faint ? 1.25 : 2.25, dash: series.dash },
    marker: star
      ? { symbol: "star", size: 15, color: colour, line: { color: themed("--card"), width: 1.5 } }
      : { size: series.style === "dots" ? 5 : 7, color: colour, symbol: series.symbol },
    cliponaxis: false, // a point of step 0 is a whole one
    opacity: picked !== null && series.run !== picked ? 0.08 : faint ? 0.45 : 1,
    hovertemplate: curve ? `%{x:${format}}: %{y:${format}}` : `%{y:${format}}`,
    hoverinfo: star || !series.name ? "skip" : undefined,
    showlegend: Boolean(series.name) && !series.unlisted,
  };
}

// Layer x step; the scale is logarithmic, since layers are decades apart.
function heat(figure) {
  const positive = figure.z.flat().filter((value) => value > 0);
  const [low, high] = [Math.min(...positive), Math.max(...positive)].map(Math.log10);
  // A measurement stands for the steps since the one before it, so nothing lies after the last.
  const before = Math.max(figure.x[0] - (figure.x.length > 1 ? figure.x[1] - figure.x[0] : 1), 0);
  const ticks = high - low > 0.01 ? [low, (low + high) / 2, high] : [low];
  return {
    type: "heatmap",
    x: [before, ...figure.x],
    y: figure.y.map(plain),
    z: figure.z.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))),
    text: figure.z.map((row) =>
      row.map((value, i) => (value === null ? "" : `step ${figure.x[i]}: ${value.toExponential(2)}`)),
    ),
    hovertemplate: "layer %{y}, %{text}<extra></extra>",
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
  const scatter = figure.kind === "scatter";
  const curve = scatter || figure.kind === "curve"; // without steps
  const free = flat || scatter || figure.id === "numbers"; // what of the rest is a share goes from 0
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
      rangemode: free ? "normal" : "tozero",
      showgrid: false,
      ticks: "outside",
    },
    yaxis: {
      ...axis,
      ...(flat ? { type: "category", showgrid: false, nticks: 0, title: { text: "depth", font: { size: 11.5 } } } : {}),
      ...(curve ? { title: { text: figure.axes[1], standoff: 4, font: { size: 11.5 } } } : {}),
      rangemode: figure.from_zero || (curve && !free) ? "tozero" : "normal",
      ...(figure.id === "rates" || figure.id === "depth-rates" ? { exponentformat: "e" } : {}),
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

function traces(figure, picked = null) {
  return figure.kind === "heat"
    ? [heat(figure)]
    : figure.series.map((series) => trace(series, figure.format, "axes" in figure, picked));
}
