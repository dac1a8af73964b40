// The table of a batch: sorting, filtering, turntables that play while they can be seen, and the models in a viewer.
"use strict";

const batch = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const arrived = {}; // name of a file -> what waits for its bytes

// A file beside the page calls this with its bytes.
function somniaFile(name, text) {
  arrived[name](text);
}

// The bytes of a file: in the page, or in a script beside it, which a page opened from a disk may read, too.
function bytesOf(file) {
  const inside = element(file.name);
  const text = inside ? Promise.resolve(inside.textContent) : new Promise((resolve, reject) => {
    arrived[file.name] = resolve;
    const script = document.createElement("script");
    script.src = file.beside;
    script.onerror = () => reject(new Error(file.beside + " is not beside this page"));
    document.head.append(script);
  });
  return text.then((found) => Uint8Array.from(atob(found.trim()), (letter) => letter.charCodeAt(0)));
}

function made(tag, content, name) {
  const one = document.createElement(tag);
  if (content !== undefined) one.textContent = content;
  if (name) one.className = name;
  return one;
}

function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : value.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

// ---- turntables: loaded when they come into sight ----

const sight = new IntersectionObserver((entries) => entries.forEach(async ({ target, isIntersecting }) => {
  if (!isIntersecting) return void (target.pause && target.pause());
  if (!target.src && !target.asked) {
    target.asked = true;
    try {
      target.src = URL.createObjectURL(new Blob([await bytesOf(target.file)], { type: target.file.type }));
    } catch (error) {
      target.replaceWith(made("span", error.message, "error"));
    }
  }
  if (target.play) target.play().catch(() => {});
}));

function turntable(file) {
  const one = made(file.type.startsWith("video") ? "video" : "img");
  Object.assign(one, { file, muted: true, loop: true, playsInline: true, alt: "turntable" });
  sight.observe(one);
  return one;
}

// ---- the table ----

const columns = [
  { title: "turntable" },
  { title: "model" },
  { title: "prompt", value: (job) => job.title },
  { title: "seed", value: (job) => job.seed },
  { title: "state", value: (job) => job.state },
  ...batch.columns.map((title) => ({ title, value: (job) => job.numbers[title] })),
];
let order = { column: null, down: false };

function head() {
  for (const column of columns) {
    const cell = made("th", column.value ? undefined : column.title);
    if (column.value) {
      const button = made("button", column.title);
      button.addEventListener("click", () => {
        order = { column, down: order.column === column && !order.down };
        for (const other of element("head").children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
        fill();
      });
      cell.append(button);
    }
    element("head").append(cell);
  }
}

function compared(a, b) {
  const [x, y] = [order.column.value(a), order.column.value(b)], empty = (value) => value === null || value === undefined;
  if (empty(x) || empty(y)) return empty(x) - empty(y); // at the end, whatever the order
  const sign = order.down ? -1 : 1;
  return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
}

function rowOf(job) {
  const row = made("tr", undefined, job.picked ? "picked" : "");
  row.dataset.name = job.name;
  for (const column of columns) {
    const value = column.value && column.value(job), cell = made("td", column.value ? shown(value) : undefined);
    if (typeof value === "number") cell.className = "number";
    if (column.title === "turntable" && job.turntable) cell.append(turntable(job.turntable));
    if (column.title === "state") {
      cell.className = job.state;
      if (job.remark) cell.append(made("div", job.remark));
      if (job.error) cell.append(made("div", job.error, "error"));
    }
    if (column.title === "prompt") cell.append(settings(job));
    if (column.title === "model" && job.model) {
      const button = made("button", "3D view");
      button.addEventListener("click", () => show(job));
      cell.append(button, made("div", shown(Math.round(job.model.bytes / 1e4) / 100) + " MB"));
    }
    row.append(cell);
  }
  return row;
}

function settings(job) {
  const one = made("details");
  one.append(made("summary", job.name));
  one.append(made("pre", "python main.py " + job.command));
  if (job.result) one.append(made("pre", JSON.stringify(job.result, null, 2)));
  return one;
}

const rows = new Map();

function fill() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const jobs = batch.jobs.filter((job) => words.every((word) => `${job.title} ${job.name} ${job.state}`.toLowerCase().includes(word)));
  if (order.column) jobs.sort(compared);
  for (const job of jobs) if (!rows.has(job.name)) rows.set(job.name, rowOf(job));
  element("rows").replaceChildren(...jobs.map((job) => rows.get(job.name)));
}

// ---- the viewer ----

let viewer = null;

async function show(job) {
  element("trouble").textContent = "";
  element("shown").textContent = job.title;
  element("viewer").showModal();
  try {
    viewer = viewer || new Viewer(element("canvas"));
    await viewer.show((await bytesOf(job.model)).buffer);
  } catch (error) {
    element("trouble").textContent = "The model cannot be shown: " + error.message;
  }
}

element("lit").addEventListener("change", (event) => { if (viewer) viewer.lit = event.target.checked; });
element("turn").addEventListener("change", (event) => { if (viewer) viewer.turning = event.target.checked; });
element("close").addEventListener("click", () => element("viewer").close());
element("viewer").addEventListener("close", () => { if (viewer) viewer.free(); });
element("filter").addEventListener("input", fill);
element("summary").textContent = batch.summary;
head();
fill();
