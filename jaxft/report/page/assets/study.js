"use strict";

// As in page.js: figures are plain data, and colours come from the style sheet, so that a change of
// theme while the page is open is followed.
const figures = JSON.parse(document.getElementById("figures").textContent);
const PALETTE = 7;

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colour(series) {
  return themed(`--c${series.colour % PALETTE}`);
}

function line(series, format) {
  const faint = series.style === "faint";
  const spread = series.above
    ? { type: "data", symmetric: false, array: series.above, arrayminus: series.below }
    : undefined;
  return {
    x: series.x,
    y: series.y,
    name: series.name,
    // A line of one point would not be seen.
    mode: series.style === "points" || series.y.length === 1 ? "lines+markers" : "lines",
    line: { color: colour(series), width: faint ? 1 : 2.25, dash: series.dash },
    marker: { size: 8, color: colour(series) },
    error_y: spread && { ...spread, color: colour(series), thickness: 1.5, width: 5 },
    opacity: faint ? 0.4 : 1,
    hovertemplate: `%{y:${format}} <b>${series.name}</b><extra></extra>`,
    hoverinfo: faint ? "skip" : undefined,
    showlegend: !faint,
  };
}

// Depth x member; the scale is logarithmic, since rates a decade apart drift decades apart.
function heat(figure) {
  return [
    {
      type: "heatmap",
      x: figure.x,
      y: figure.y,
      z: figure.z.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))),
      text: figure.z.map((row) => row.map((value) => (value > 0 ? value.toPrecision(2) : value === 0 ? "frozen" : "not finite"))),
      texttemplate: figure.x.length <= 16 ? "%{text}" : undefined,
      hovertemplate: "%{x}<br>depth %{y}: %{text}<extra></extra>",
      colorscale: [
        [0, themed("--line")],
        [1, themed("--c0")],
      ],
      showscale: false,
      hoverongaps: false,
      xgap: 2,
      ygap: 2,
    },
  ];
}

function band([low, high]) {
  return {
    type: "rect",
    yref: "paper",
    x0: low,
    x1: high,
    y0: 0,
    y1: 1,
    line: { width: 0 },
    fillcolor: themed("--c2"),
    opacity: 0.14,
    layer: "below",
  };
}

function layout(figure) {
  const grid = themed("--line");
  const axis = {
    gridcolor: grid,
    linecolor: grid,
    zeroline: false,
    automargin: true,
    tickfont: { size: 11.5 },
  };
  const title = { text: figure.axis, standoff: 6, font: { size: 11.5 } };
  const scale = figure.scale === "log" ? { type: "log", exponentformat: "e" } : {};
  const flat = figure.kind === "heat";
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: themed("--font"), size: 12.5, color: themed("--soft") },
    margin: { l: 8, r: 12, t: 6, b: 8 },
    xaxis: {
      ...axis,
      ...scale,
      ...(figure.ticks?.length
        ? { tickvals: figure.ticks.map((t) => t[0]), ticktext: figure.ticks.map((t) => t[1]) }
        : {}),
      ...(figure.scale === "category" ? { type: "category" } : {}),
      title,
      showgrid: false,
      ticks: flat ? "" : "outside",
    },
    yaxis: {
      ...axis,
      ...(flat ? { type: "category", title: { text: "depth", font: { size: 11.5 } } } : {}),
      showgrid: !flat,
    },
    shapes: (figure.bands || []).map(band),
    hovermode: "closest",
    hoverlabel: {
      bgcolor: themed("--card"),
      bordercolor: grid,
      font: { color: themed("--ink"), family: themed("--font") },
    },
    showlegend: !flat && figure.legend,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
  };
}

function drawFigure(figure) {
  Plotly.react(
    document.getElementById(`figure-${figure.id}`),
    figure.kind === "heat"
      ? heat(figure)
      : figure.series.map((series) => line(series, figure.format)),
    layout(figure),
    { responsive: true, displaylogo: false, displayModeBar: false },
  );
}

function draw() {
  figures.forEach(drawFigure);
}

function wire() {} // nothing of a study's page answers to a person but its figures

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
