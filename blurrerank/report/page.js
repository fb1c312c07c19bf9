"use strict";
// Everything that comes from files enters the page as text (textContent, attributes), never as markup.

const PAGE = 25;
const KINDS = [
  { name: "", sign: "", said: "" },
  { name: "right", sign: "\u2713", said: "right identity" },
  { name: "wrong", sign: "\u2717", said: "wrong identity" },
  { name: "junk", sign: "\u2013", said: "junk" },
  { name: "dropped", sign: "\u2013", said: "dropped, same identity and camera" },
];
const TYPES = { u1: Uint8Array, i4: Int32Array, i8: BigInt64Array, f4: Float32Array };

const data = JSON.parse(document.getElementById("data").textContent);
const columns = {};
for (const [name, column] of Object.entries(data.columns)) {
  columns[name] = new TYPES[column.type](bytesOf(column.base64).buffer);
}
const { probeIds, probeCams, itemRows, itemIds, itemCams, probeCells, itemCells } = columns;
const { apBefore, apAfter, change, firstBefore, firstAfter } = columns;
const measured = change !== undefined;
const number = new Intl.NumberFormat("en");

// What each filter keeps. A probe without a match has neither an AP nor a change: NaN is never kept by < or >.
const SHOW = {
  all: () => true,
  better: (probe) => change[probe] > 0,
  worse: (probe) => change[probe] < 0,
  equal: (probe) => change[probe] === 0,
  gained: (probe) => firstAfter[probe] === 1 && firstBefore[probe] !== 1,
  lost: (probe) => firstBefore[probe] === 1 && firstAfter[probe] !== 1,
  none: (probe) => Number.isNaN(change[probe]),
};
// `key` makes a column one that can be sorted by; `rising` says how it is sorted at first.
const COLUMNS = [
  { name: "number", head: "No.", key: (probe) => probe, rising: true, text: (probe) => String(probe) },
];
if (data.probeNames) {
  COLUMNS.push({ name: "name", head: "Name", key: (p) => data.probeNames[p], rising: true, text: (p) => data.probeNames[p] });
}
if (measured) {
  COLUMNS.push(
    { name: "before", head: "AP before", key: (p) => apBefore[p], text: (p) => fraction(apBefore[p]) },
    { name: "after", head: "AP after", key: (p) => apAfter[p], text: (p) => fraction(apAfter[p]) },
    { name: "change", head: "Change", key: (p) => change[p], text: (p) => signed(change[p]) },
    { name: "first", head: "First match", text: (p) => `${place(firstBefore[p])} \u2192 ${place(firstAfter[p])}` },
  );
}

const state = { sort: measured ? "change" : "number", rising: !measured, page: 0, probes: [] };
const form = document.getElementById("filters");
const count = document.getElementById("count");
const table = document.getElementById("table");
const urls = new Map();

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

function fraction(value) {
  return Number.isNaN(value) ? "no match" : value.toFixed(4);
}

function signed(value) {
  if (Number.isNaN(value)) return "no match";
  return value === 0 ? "equal" : (value > 0 ? "+" : "\u2212") + Math.abs(value).toFixed(4);
}

// 0: the probe has no match; -1: the list ends before its first.
function place(rank) {
  return rank > 0 ? number.format(rank) : rank < 0 ? "not listed" : "none";
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A sheet is decoded when the first of its pictures is shown.
function sheetUrl(sheet) {
  if (!urls.has(sheet)) {
    const [, kind, base64] = document.getElementById(`sheet-${sheet}`).textContent.match(/^data:([^;]+);base64,(.*)$/s);
    urls.set(sheet, URL.createObjectURL(new Blob([bytesOf(base64)], { type: kind })));
  }
  return urls.get(sheet);
}

function draw(picture, cell) {
  const { width, height, columns: across, perSheet, pictures } = data.sheets;
  const sheet = Math.floor(cell / perSheet);
  const inSheet = Math.min(perSheet, pictures - sheet * perSheet);
  const down = Math.ceil(inSheet / across);
  const [row, column] = [Math.floor((cell % perSheet) / across), cell % across];
  const share = (at, all) => (all > 1 ? (100 * at) / (all - 1) : 0);
  picture.classList.add("drawn");
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.boxSizing = "content-box";
  // Without the frame, so that the cells of the sheet meet its inner edge.
  picture.style.backgroundOrigin = "padding-box";
  picture.style.backgroundImage = `url("${sheetUrl(sheet)}")`;
  picture.style.backgroundSize = `${100 * across}% ${100 * down}%`;
  picture.style.backgroundPosition = `${share(column, across)}% ${share(row, down)}%`;
}

// One image: its picture, or a tile with its identity and camera as text.
function tile(tag, kind, what) {
  const said = [what.said, KINDS[kind].said];
  if (what.id !== undefined) said.push(`identity ${what.id}`);
  if (what.cam !== undefined) said.push(`camera ${what.cam}`);
  said.push(what.name ?? `row ${what.row}`);
  const label = said.filter(Boolean).join(", ");
  const picture = element("span", { class: "picture", role: "img", "aria-label": label, title: label });
  const made = element(tag, { class: `tile ${KINDS[kind].name}` }, picture);
  const id = what.id === undefined ? `#${what.row}` : String(what.id);
  if (what.cell >= 0) {
    draw(picture, what.cell);
    const cam = what.cam === undefined ? "" : ` \u00b7 c${what.cam}`;
    made.append(element("span", { class: "caption", "aria-hidden": "true" }, id + cam));
  } else {
    picture.append(element("strong", { "aria-hidden": "true" }, id));
    if (what.cam !== undefined) picture.append(element("span", { "aria-hidden": "true" }, `cam ${what.cam}`));
  }
  if (KINDS[kind].sign) {
    picture.append(element("span", { class: "mark", "aria-hidden": "true" }, KINDS[kind].sign));
  }
  return made;
}

function strip(name, probe) {
  const list = element("ol", { "aria-label": `${name}, best first` });
  const start = probe * data.shown;
  for (let rank = 0; rank < data.shown; rank++) {
    const item = columns[name][start + rank];
    if (item < 0) break;
    const kind = columns[name === "before" ? "kindsBefore" : "kindsAfter"][start + rank];
    list.append(tile("li", kind, {
      said: `rank ${rank + 1}`, row: itemRows[item], id: itemIds?.[item], cam: itemCams?.[item],
      name: data.itemNames?.[item], cell: itemCells?.[item] ?? -1,
    }));
  }
  return element("div", { class: `strip ${name}-strip` }, element("span", { class: "when", "aria-hidden": "true" }, name), list);
}

function body(probe) {
  const values = element("tr", { class: "values" });
  COLUMNS.forEach((column, at) => {
    const cell = element(at === 0 ? "th" : "td", at === 0 ? { scope: "row" } : {}, column.text(probe));
    cell.className = column.name;
    if (column.name === "change" && change[probe]) cell.classList.add(change[probe] > 0 ? "gain" : "loss");
    values.append(cell);
  });
  const mine = tile("div", 0, {
    said: "probe", row: probe, id: probeIds?.[probe], cam: probeCams?.[probe],
    name: data.probeNames?.[probe], cell: probeCells?.[probe] ?? -1,
  });
  const strips = element("div", { class: "strips" }, strip("before", probe), strip("after", probe));
  const cell = element("td", { colspan: COLUMNS.length }, element("div", { class: "probe" }, mine, strips));
  return element("tbody", { "data-probe": probe }, values, element("tr", { class: "lists" }, cell));
}

function select() {
  const keep = SHOW[form.elements.show?.value ?? "all"];
  const name = (form.elements.name?.value ?? "").trim().toLowerCase();
  const identity = (form.elements.identity?.value ?? "").trim();
  const probes = [];
  for (let probe = 0; probe < data.probes; probe++) {
    if (keep(probe) && (!name || data.probeNames[probe].toLowerCase().includes(name))
        && (!identity || String(probeIds[probe]) === identity)) probes.push(probe);
  }
  const { key } = COLUMNS.find((column) => column.name === state.sort);
  const turn = state.rising ? 1 : -1;
  probes.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    // Probes without a match come last either way.
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || one - other;
    return (a < b ? -turn : a > b ? turn : 0) || one - other;
  });
  state.probes = probes;
  show(0);
}

function show(page) {
  const pages = Math.max(1, Math.ceil(state.probes.length / PAGE));
  state.page = Math.min(Math.max(page, 0), pages - 1);
  for (const old of table.querySelectorAll("tbody")) old.remove();
  const first = state.page * PAGE;
  table.append(...state.probes.slice(first, first + PAGE).map(body));
  count.textContent = `${number.format(state.probes.length)} of ${number.format(data.probes)} probes, `
    + `page ${number.format(state.page + 1)} of ${number.format(pages)}`;
  for (const pager of document.querySelectorAll(".pager")) {
    const [previous, next, input] = ["previous", "next", "page"].map((name) => pager.querySelector(`[name=${name}]`));
    // Not `disabled`: that would take the focus from under a reader's fingers.
    previous.setAttribute("aria-disabled", String(state.page === 0));
    next.setAttribute("aria-disabled", String(state.page === pages - 1));
    input.value = state.page + 1;
    input.max = pages;
  }
}

function sortBy(column) {
  state.rising = state.sort === column.name ? !state.rising : Boolean(column.rising);
  state.sort = column.name;
  markSorted();
  select();
}

function markSorted() {
  for (const head of document.querySelectorAll("#columns th[data-sort]")) {
    const mine = head.dataset.sort === state.sort;
    head.setAttribute("aria-sort", !mine ? "none" : state.rising ? "ascending" : "descending");
  }
}

function build() {
  for (const column of COLUMNS) {
    const head = element("th", { scope: "col", class: column.name });
    if (column.key) {
      const button = element("button", { type: "button" }, column.head);
      button.addEventListener("click", () => sortBy(column));
      head.dataset.sort = column.name;
      head.append(button);
    } else head.append(column.head);
    document.getElementById("columns").append(head);
  }
  document.querySelectorAll(".pager").forEach((pager, at) => {
    const button = (name, text, step) => {
      const made = element("button", { type: "button", name }, text);
      made.addEventListener("click", () => {
        if (made.getAttribute("aria-disabled") === "true") return;
        show(state.page + step);
        if (at > 0) document.getElementById("probes-heading").focus();
      });
      return made;
    };
    const input = element("input", { type: "number", name: "page", min: 1 });
    input.addEventListener("change", () => show((Number.parseInt(input.value, 10) || 1) - 1));
    const label = element("label", {}, "Page ", input);
    pager.append(button("previous", "Previous", -1), label, button("next", "Next", 1));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  markSorted();
  select();
}

build();
