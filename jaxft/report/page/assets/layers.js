"use strict";

// As in page.js: figures are plain data, and colours come from the style sheet, so that a change of
// theme while the page is open is followed.
const figures = JSON.parse(document.getElementById("figures").textContent);

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Criteria differ by powers of ten between matrices, so that their colours follow ranks, not values.
function ranks(z) {
  const ordered = [...new Set(z.flat().filter((value) => value !== null))].sort((a, b) => a - b);
  const last = Math.max(ordered.length - 1, 1);
  return z.map((row) => row.map((value) => (value === null ? null : ordered.indexOf(value) / last)));
}

function trace(figure) {
  const range = figure.signed ? { zmin: -1, zmax: 1 } : { zmin: 0, zmax: 1 };
  const middle = figure.signed ? [[0, themed("--c1")], [0.5, themed("--card")]] : [[0, themed("--card")]];
  return {
    type: "heatmap",
    x: figure.x,
    y: figure.y,
    z: figure.signed ? figure.z : ranks(figure.z),
    text: figure.text,
    texttemplate: "%{text}",
    textfont: { size: 11 },  // its color is the one of the two that contrasts
    hovertemplate: "%{y}, %{x}: %{text}<extra></extra>",
    hoverongaps: false,
    ...range,
    colorscale: [...middle, [1, themed("--c0")]],
    showscale: false,
    xgap: 2,
    ygap: 2,
  };
}

function layout(figure) {
  const axis = {
    type: "category",
    showgrid: false,
    zeroline: false,
    automargin: true,
    ticks: "",
    tickfont: { size: 11.5 },
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: themed("--font"), size: 12.5, color: themed("--soft") },
    margin: { l: 8, r: 12, t: 6, b: 8 },
    height: 90 + 26 * figure.y.length,
    xaxis: axis,
    yaxis: { ...axis, autorange: figure.signed ? "reversed" : true },
    hoverlabel: {
      bgcolor: themed("--card"),
      bordercolor: themed("--line"),
      font: { color: themed("--ink"), family: themed("--font") },
    },
  };
}

function draw() {
  for (const figure of figures) {
    Plotly.react(`figure-${figure.id}`, [trace(figure)], layout(figure), {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
