"use strict";

// Each figure by itself: on the page its title and, of several runs, the legend stand beside it.
const SIZE = { width: 960, height: 540 };
const LINE = 20; // of the legend

// Of several runs one line a run is named, and there is room for all.
function listed(figure) {
  return (figure.series || []).filter(
    (series) => series.name && !series.unlisted && !(several && ["faint", "star"].includes(series.style)),
  );
}

function size(figure) {
  return { ...SIZE, height: Math.max(SIZE.height, 110 + LINE * listed(figure).length) };
}

function alone(figure) {
  const shown = layout(figure);
  const unit = figure.unit ? ` <span style="font-size:12px">${escaped(figure.unit)}</span>` : "";
  return {
    ...shown,
    ...size(figure),
    paper_bgcolor: themed("--card"),
    title: {
      text: `<b>${escaped(figure.title)}</b>${unit}`,
      font: { size: 17, color: themed("--ink") },
      x: 0.02,
      xanchor: "left",
      y: 0.97,
      yanchor: "top",
    },
    margin: { l: 24, r: 24, t: 56, b: 24 },
    showlegend: listed(figure).length > 1,
    legend: { orientation: "v", x: 1.01, xanchor: "left", y: 1, yanchor: "top" },
  };
}

// Plotly reads some markup in a title.
function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
}

async function save() {
  const drawn = {};
  for (const figure of figures) {
    const names = listed(figure).map((series) => series.name);
    const data = traces(figure).map((one) => ({ ...one, showlegend: names.includes(one.name) }));
    const picture = { data, layout: alone(figure) };
    drawn[figure.id] = await Plotly.toImage(picture, { format: "png", scale: 2, ...size(figure) });
  }
  const output = document.createElement("pre");
  output.id = "drawn";
  output.textContent = JSON.stringify(drawn);
  document.body.append(output);
}

save();
