"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);

// Colours written as "@name" are variables of the style sheet.
function coloured(value, key) {
  if (Array.isArray(value)) return value.map((item) => coloured(item, key));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, k)]));
  }
  if (typeof value === "string" && value[0] === "@" && /color$/.test(key)) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + value.slice(1)).trim();
  }
  return value;
}

// A figure with a menu says in its layout's meta what each choice changes.
function chosen(key) {
  const spec = figures[key];
  const menu = [...document.querySelectorAll("select[data-for]")].find((m) => m.dataset.for === key);
  if (!menu) return spec;
  const choice = spec.layout.meta[menu.value];
  return {
    data: spec.data.map((trace, k) => ({ ...trace, ...choice.data[k] })),
    layout: { ...spec.layout, shapes: choice.shapes },
  };
}

function draw() {
  for (const box of document.querySelectorAll("[data-figure]")) {
    const spec = coloured(chosen(box.dataset.figure), "");
    Plotly.react(box, spec.data, spec.layout, {
      responsive: true, displaylogo: false, 
      displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }
}

function sort(table, column, header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const number = (text) => {
    const words = { inf: Infinity, "-inf": -Infinity };
    return text in words ? words[text] : text.trim() === "" ? NaN : Number(text);
  };
  const order = (one, other) => {
    const [x, y] = [one, other].map((row) => row.cells[column].dataset.value);
    const [a, b] = [number(x), number(y)];
    if (Number.isNaN(a) || Number.isNaN(b)) return x.localeCompare(y, undefined, { numeric: true });
    return a < b ? -1 : a > b ? 1 : 0;
  };
  const rows = [...table.tBodies[0].rows].sort(order);
  table.tBodies[0].append(...(ascending ? rows : rows.reverse()));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.firstElementChild.addEventListener("click", () => sort(table, column, header));
  });
}
for (const menu of document.querySelectorAll("select[data-for]")) {
  menu.addEventListener("change", draw);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
