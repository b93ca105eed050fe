"use strict";
// Charts, a table that sorts and filters, and the differences between two runs. Everything is in the page.

for (const data of document.querySelectorAll("script.figure")) {
  const chart = JSON.parse(data.textContent);
  const narrow = window.matchMedia("(max-width: 600px)").matches;
  if (narrow) chart.layout.legend.orientation = "v";
  Plotly.newPlot(data.previousElementSibling, chart.data, chart.layout, {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendDataToCloud"],
  });
}

// ---- The table -------------------------------------------------------------------------------------------------

const table = document.getElementById("means");
const body = table.tBodies[0];

function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return /^-?[\d.,]/.test(text) && !Number.isNaN(number) ? number : text;
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

for (const [column, cell] of [...table.tHead.rows[0].cells].entries()) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = cell.textContent;
  cell.replaceChildren(button);
  button.addEventListener("click", () => {
    const rising = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compare(key(a, column), key(b, column)) * (rising ? 1 : -1));
    body.append(...rows);
  });
}

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = words.length ? `${shown} of ${body.rows.length}` : "";
});

// ---- Two runs --------------------------------------------------------------------------------------------------

const configs = document.getElementById("configs");
if (configs) {
  const { base, jobs } = JSON.parse(configs.textContent);
  const [one, two] = [document.getElementById("one"), document.getElementById("two")];
  const lines = document.getElementById("differences").tBodies[0];
  const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const draw = () => {
    const [a, b] = [one, two].map((choice) => ({ ...base, ...jobs[Number(choice.value)] }));
    const names = Object.keys({ ...a, ...b }).filter((name) => JSON.stringify(a[name]) !== JSON.stringify(b[name]));
    lines.replaceChildren(...(names.length ? names : [null]).map((name) => {
      const row = document.createElement("tr");
      const cells = name === null ? ["no setting differs", "", ""] : [name, show(a[name]), show(b[name])];
      for (const text of cells) row.insertCell().textContent = text;
      return row;
    }));
  };
  one.addEventListener("change", draw);
  two.addEventListener("change", draw);
  draw();
}
