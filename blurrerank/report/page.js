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
const { apBefore, apAfter, change, firstBefore, firstAfter, mapLevels, mapStarts } = columns;
// What the script calls each list, and the columns that it is in.
const LISTS = {
  before: { items: columns.before, kinds: columns.kindsBefore, scores: columns.scoresBefore, ranks: columns.ranksAfter },
  after: { items: columns.after, kinds: columns.kindsAfter, scores: columns.scoresAfter, ranks: columns.ranksBefore },
};
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

const state = { sort: "number", rising: true, page: 0, probes: [] };
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
  if (value === 0) return "equal";
  const size = Math.abs(value);
  return (value > 0 ? "+" : "\u2212") + (size < 0.00005 ? size.toPrecision(1) : size.toFixed(4));
}

// 0: the probe has no match; -1: the list ends before its first.
function place(rank) {
  return rank > 0 ? number.format(rank) : rank < 0 ? "not listed" : "none";
}

// With a minus sign, but never "-0.00".
function fixed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "\u2212" : "") + text;
}

// A score, which may be of any size.
function figure(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return (value < 0 ? "\u2212" : "") + size.toPrecision(2);
  return fixed(value, size < 10 ? 4 : 2);
}

// The rank of an item in the other list; negative: it is beyond the end of so many.
function otherRank(rank) {
  return rank > 0 ? String(rank) : `>${-rank}`;
}

// An identity or camera as it was called where it was text.
function called(kind, label) {
  return label === undefined ? undefined : data.texts[kind]?.[label] ?? String(label);
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

// A camera below a picture: a number alone would not say that it is one.
function camera(cam, word) {
  return /^-?\d+$/.test(cam) ? word + cam : cam;
}

// A name that fits below a picture: where names begin alike, their ends tell them apart.
function shortened(name) {
  return name.length > 8 ? `${name.slice(0, 2)}\u2026${name.slice(-5)}` : name;
}

// What stands between identity and camera: names are as long as a line, numbers are not.
const between = ["ids", "cams"].some((kind) => Object.keys(data.texts[kind] ?? {}).length) ? "\n" : " \u00b7 ";

// One image: its picture, or a tile with its identity and camera as text.
function tile(tag, kind, what) {
  const said = [what.said, KINDS[kind].said];
  if (what.id !== undefined) said.push(`identity ${what.id}`);
  if (what.cam !== undefined) said.push(`camera ${what.cam}`);
  said.push(what.name ?? `row ${what.row}`);
  const label = said.filter(Boolean).join(", ");
  const picture = element("span", { class: "picture", role: "img", "aria-label": label, title: label });
  const made = element(tag, { class: `tile ${KINDS[kind].name}` }, picture);
  const id = what.id === undefined ? `#${what.row}` : what.id;
  if (what.cell >= 0) {
    draw(picture, what.cell);
    const cam = what.cam === undefined ? "" : between + shortened(camera(what.cam, "c"));
    made.append(element("span", { class: "caption", "aria-hidden": "true" }, shortened(id) + cam));
  } else {
    picture.append(element("strong", { "aria-hidden": "true" }, id));
    if (what.cam !== undefined) picture.append(element("span", { "aria-hidden": "true" }, camera(what.cam, "cam ")));
  }
  if (KINDS[kind].sign) {
    picture.append(element("span", { class: "mark", "aria-hidden": "true" }, KINDS[kind].sign));
  }
  return made;
}

// Whether an item is not among those that the other list shows.
function hidden(rank) {
  return rank < 0 || rank > data.shown;
}

// "23 \u2192 2": the ranks of an item before and after; one number if they are equal.
function move(name, rank, other) {
  const text = otherRank(other);
  if (other === rank) return String(rank);
  return name === "before" ? `${rank} \u2192 ${text}` : `${text} \u2192 ${rank}`;
}

// By how many ranks an item rose, at least.
function rise(name, rank, other) {
  const there = other > 0 ? other : 1 - other;
  return name === "before" ? rank - there : there - rank;
}

function strip(name, probe) {
  const { items, kinds, scores, ranks } = LISTS[name];
  const label = `${name}: ${data.labels[name]}`;
  const list = element("ol", { "aria-label": `${label}, best first` });
  for (let rank = 1; rank <= data.shown; rank++) {
    const at = probe * data.shown + rank - 1;
    const item = items[at];
    if (item < 0) break;
    const [other, score] = [ranks[at], figure(scores[at])];
    const there = `${name === "before" ? "after" : "before"} ${other > 0 ? `rank ${other}` : `beyond rank ${-other}`}`;
    const made = tile("li", kinds[at], {
      said: `rank ${rank}, ${there}, score ${score}`, row: itemRows[item],
      id: called("ids", itemIds?.[item]), cam: called("cams", itemCams?.[item]),
      name: data.itemNames?.[item], cell: itemCells?.[item] ?? -1,
    });
    made.dataset.item = item;
    const came = hidden(other) ? ` ${name === "before" ? "left" : "came"}` : "";
    made.append(
      element("span", { class: `move${came}`, "aria-hidden": "true" }, move(name, rank, other)),
      element("span", { class: "score", "aria-hidden": "true" }, score),
    );
    list.append(made);
  }
  const when = element("span", { class: "when", "aria-hidden": "true" }, label);
  return element("div", { class: `strip ${name}-strip` }, when, list);
}

function body(probe) {
  const values = element("tr", { class: "values" });
  COLUMNS.forEach((column, at) => {
    const cell = element(at === 0 ? "th" : "td", at === 0 ? { scope: "row" } : {}, column.text(probe));
    cell.className = column.name;
    if (at === 0) cell.append(" ", element("a", { href: `#probe=${probe}`, "aria-label": `Link to probe ${probe}` }, "#"));
    if (column.name === "change" && change[probe]) cell.classList.add(change[probe] > 0 ? "gain" : "loss");
    values.append(cell);
  });
  const mine = tile("div", 0, {
    said: "probe", row: probe, id: called("ids", probeIds?.[probe]), cam: called("cams", probeCams?.[probe]),
    name: data.probeNames?.[probe], cell: probeCells?.[probe] ?? -1,
  });
  const strips = element("div", { class: "strips" }, strip("before", probe), strip("after", probe));
  // Of all items of a probe one is a stop for Tab; arrow keys go from there.
  strips.querySelectorAll("li .picture").forEach((picture, at) => picture.setAttribute("tabindex", at ? -1 : 0));
  const cell = element("td", { colspan: COLUMNS.length }, element("div", { class: "probe" }, mine, strips));
  if (mapStarts[probe] >= 0) cell.append(mapDetails(probe));
  return element("tbody", { "data-probe": probe }, values, element("tr", { class: "lists" }, cell));
}

// Who is on the map of a probe, by the same rule as in maps.py: what `after` shows, then what left it.
function mapMembers(probe) {
  const members = [];
  for (const name of ["after", "before"]) {
    const { items, kinds, ranks } = LISTS[name];
    for (let rank = 1; rank <= data.shown; rank++) {
      const at = probe * data.shown + rank - 1;
      if (items[at] < 0 || (name === "before" && !hidden(ranks[at]))) continue;
      members.push({
        item: items[at], kind: kinds[at], left: name === "before", rank,
        text: move(name, rank, ranks[at]), rise: rise(name, rank, ranks[at]),
      });
    }
  }
  return members.slice(0, data.maps.items);
}

// The similarity of any two on the map of a probe, whose upper triangle is stored row by row; 0 is the probe.
function similarities(probe, size) {
  const { low, high } = data.maps;
  return (one, other) => {
    const [row, column] = one < other ? [one, other] : [other, one];
    const place = row * size - (row * (row + 1)) / 2 + column - row - 1;
    return low + ((high - low) * mapLevels[mapStarts[probe] + place]) / 255;
  };
}

function mapDetails(probe) {
  const details = element("details", { class: "map" }, element("summary", {}, "Affinity map"));
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("svg")) details.append(affinityMap(probe));
  });
  return details;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function affinityMap(probe) {
  const CELL = 20;
  const LEFT = 110;
  const members = [{ kind: 0, text: "probe" }, ...mapMembers(probe)];
  const size = members.length;
  const alike = similarities(probe, size);
  const pairs = members.flatMap((_, row) => members.map((_, column) => [row, column])).filter(([a, b]) => a !== b);
  const values = pairs.map(([row, column]) => alike(row, column));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const names = members.map(({ item, left, rank }) => (item === undefined ? "probe" : left ? `left ${rank}` : `rank ${rank}`));
  const readout = element("p", { class: "readout", role: "status" });
  const svg = drawn("svg", {
    viewBox: `0 0 ${LEFT + CELL * size} ${CELL * size}`, role: "img",
    "aria-label": `Cosine similarities among the probe and ${size - 1} items`,
  });
  svg.style.width = `${LEFT + CELL * size}px`;
  members.forEach(({ item, kind, text, left }, row) => {
    const { name, sign } = KINDS[kind];
    const y = CELL * row;
    const line = drawn("g", item === undefined ? {} : { "data-item": item });
    line.append(
      drawn("text", { class: `sign ${name}`, x: 4, y: y + 14 }, sign),
      drawn("text", { class: "end", x: LEFT - 8, y: y + 14 }, text),
    );
    members.forEach((_, column) => {
      if (column === row) return;
      const value = alike(row, column);
      const cell = drawn("rect", {
        x: LEFT + CELL * column, y, width: CELL - 1, height: CELL - 1,
        "fill-opacity": (0.04 + (0.96 * (value - low)) / (high - low || 1)).toFixed(3),
      });
      cell.addEventListener("pointerenter", () => {
        readout.textContent = `${names[row]} and ${names[column]}: ${fixed(value, 2)}`;
      });
      line.append(cell);
    });
    svg.append(line);
    if (left && !members[row - 1].left) {
      const [across, down, end] = [LEFT + y - 0.5, y - 0.5, CELL * size];
      svg.append(drawn("path", { class: "zero", d: `M0,${down}H${LEFT + end}M${across},0V${end}` }));
    }
  });
  const text = element("div", {},
    element("p", {}, "Cosine similarities of the features: the probe, the items after re-ranking, then those that left. "
      + `The stronger the colour, the more alike: ${fixed(low, 2)} to ${fixed(high, 2)}. A method may look at more images than these.`),
    ...reasons(members, alike), readout);
  return element("div", { class: "map-body" }, svg, text);
}

// For the item that rose and the one that fell most: how alike it is to the probe, and to the list.
function reasons(members, alike) {
  const list = members.flatMap(({ item, left }, at) => (item !== undefined && !left ? [at] : []));
  const said = (at, verb) => {
    const others = list.filter((other) => other !== at);
    const mean = others.reduce((sum, other) => sum + alike(at, other), 0) / others.length;
    return element("p", {}, `${members[at].text} ${verb} most: ${fixed(alike(0, at), 2)} to the probe, `
      + `${fixed(mean, 2)} to the other items of the list on average.`);
  };
  const rises = members.map((member) => member.rise ?? 0);
  const [most, least] = [Math.max(...rises), Math.min(...rises)];
  return [
    ...(most > 0 && list.length > 1 ? [said(rises.indexOf(most), "rose")] : []),
    ...(least < 0 && list.length > 1 ? [said(rises.indexOf(least), "fell")] : []),
  ];
}

// Light an item that is pointed at or has the focus, in both lists and on the map.
function light() {
  for (const old of table.querySelectorAll(".lit")) old.classList.remove("lit");
  for (const one of table.querySelectorAll("[data-item]:hover, [data-item]:focus-within")) {
    for (const same of one.closest("tbody").querySelectorAll(`[data-item="${one.dataset.item}"]`)) same.classList.add("lit");
  }
}

function walk(event) {
  const here = event.target.closest("li.tile");
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
  const list = { ArrowUp: "before", ArrowDown: "after" }[event.key];
  if (!here || !(step || list)) return;
  const strips = here.closest(".strips");
  const row = list ? strips.querySelector(`.${list}-strip ol`) : here.parentElement;
  const next = row.children[[...here.parentElement.children].indexOf(here) + step];
  event.preventDefault();
  if (!next) return;
  here.querySelector(".picture").tabIndex = -1;
  next.querySelector(".picture").tabIndex = 0;
  next.querySelector(".picture").focus();
}

// Changes for the worse are best seen from the largest on.
function usualSort() {
  const worse = ["worse", "lost"].includes(form.elements.show?.value);
  return measured ? { sort: "change", rising: worse } : { sort: "number", rising: true };
}

// The address names what is shown: "#show=worse&sort=-name&page=2", or "#probe=12".
function remember() {
  const said = new URLSearchParams();
  for (const { name, value } of form.elements) if (value.trim() && value !== "all") said.set(name, value.trim());
  const usual = usualSort();
  if (state.sort !== usual.sort || state.rising !== usual.rising) said.set("sort", (state.rising ? "" : "-") + state.sort);
  if (state.page) said.set("page", state.page + 1);
  const text = String(said);
  // An anchor within the page stays.
  if (text || location.hash.includes("=")) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function restore() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) {
    field.value = said.get(field.name) ?? "";
    if (field.selectedIndex === -1) field.selectedIndex = 0;
  }
  Object.assign(state, usualSort());
  const [, falling, sort] = said.get("sort")?.match(/^(-?)(.*)$/s) ?? [];
  if (COLUMNS.some((column) => column.key && column.name === sort)) Object.assign(state, { sort, rising: !falling });
  markSorted();
  select((Number.parseInt(said.get("page"), 10) || 1) - 1);
  if (!location.hash.includes("=")) return;
  document.getElementById("probes-heading").scrollIntoView();
  // Who follows a link to one probe wants to see all of it.
  if (said.get("probe")) for (const map of table.querySelectorAll("details.map")) map.open = true;
}

function select(page = 0) {
  const keep = SHOW[form.elements.show?.value ?? "all"];
  const name = (form.elements.name?.value ?? "").trim().toLowerCase();
  const identity = (form.elements.identity?.value ?? "").trim();
  const only = form.elements.probe.value.trim();
  const probes = [];
  for (let probe = 0; probe < data.probes; probe++) {
    if (keep(probe) && (!only || String(probe) === only) && (!name || data.probeNames[probe].toLowerCase().includes(name))
        && (!identity || called("ids", probeIds[probe]) === identity)) probes.push(probe);
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
  show(page);
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
  remember();
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
  form.addEventListener("input", (event) => {
    if (event.target.name === "show") {
      Object.assign(state, usualSort());
      markSorted();
    }
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  for (const name of ["pointerover", "pointerleave", "focusin", "focusout"]) table.addEventListener(name, light);
  table.addEventListener("keydown", walk);
  // An anchor within the page names no state.
  addEventListener("hashchange", () => (location.hash.length < 2 || location.hash.includes("=")) && restore());
  restore();
}

build();
