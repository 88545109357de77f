// A task editor: the value of the component is a task as ARC's JSON, in a string.
const root = element.querySelector(".editor");
const MAX_SIDE = 30;
let color = 1;
let task = read(props.value);
let sent = props.value;

function blank(rows, cols) {
  return Array.from({ length: rows }, () => Array(cols).fill(0));
}

function read(text) {
  const task = JSON.parse(text || "{}");
  return { ...task, train: task.train || [], test: task.test || [] };
}

function emit() {
  task.test.forEach((pair) => delete pair.output); // the known answer was that of another task
  sent = JSON.stringify(task);
  props.value = sent;
  trigger("change");
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function palette() {
  const buttons = props.colors.map((code, number) =>
    make("button", {
      type: "button", class: "color", style: `background:${code}`, "aria-label": `colour ${number}`,
      "aria-pressed": number === color,
      onclick: () => { color = number; draw(); root.querySelectorAll(".color")[number].focus(); },
    }, String(number)));
  return make("div", { class: "palette", role: "group", "aria-label": "Colour to paint with" }, ...buttons);
}

function number(label, value, change) {
  return make("input", {
    type: "number", min: 1, max: MAX_SIDE, value, "aria-label": label,
    onchange: (event) => change(Math.min(MAX_SIDE, Math.max(1, Number(event.target.value) || 1))),
  });
}

// One grid: painted with the pointer, or with arrows and digits.
function gridBox(pair, side, label) {
  const grid = pair[side], rows = grid.length, cols = grid[0].length;
  const cell = Math.max(5, Math.min(30, Math.floor(130 / Math.max(rows, cols))));
  const canvas = make("canvas", {
    width: cols * cell + 1, height: rows * cell + 1, tabindex: 0, role: "application",
    "aria-label": `${label}, ${rows} rows, ${cols} columns. Arrows move, digits and space paint.`,
  });
  const live = make("span", { class: "live", "aria-live": "polite" });
  let at = [0, 0];
  const paint = () => {
    const context = canvas.getContext("2d");
    grid.forEach((row, r) => row.forEach((value, c) => {
      context.fillStyle = props.colors[value] || "#fff";
      context.fillRect(c * cell, r * cell, cell, cell);
      context.strokeStyle = "#55606B";
      context.strokeRect(c * cell + 0.5, r * cell + 0.5, cell, cell);
    }));
    if (document.activeElement === canvas) {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(at[1] * cell + 2, at[0] * cell + 2, cell - 3, cell - 3);
      context.lineWidth = 1;
      live.textContent = `row ${at[0] + 1}, column ${at[1] + 1}: ${grid[at[0]][at[1]]}`;
    } else live.textContent = "";
  };
  const set = (r, c, value) => {
    if (r < 0 || c < 0 || r >= rows || c >= cols || grid[r][c] === value) return;
    grid[r][c] = value;
    paint();
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    at = [Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * cols)]
      .map((place, axis) => Math.max(0, Math.min([rows, cols][axis] - 1, place)));
    set(...at, color);
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); canvas.focus(); under(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) under(event); });
  canvas.addEventListener("pointerup", emit);
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", paint);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : [" ", "Enter"].includes(event.key) ? color : null;
    if (move) {
      at = [Math.max(0, Math.min(rows - 1, at[0] + move[0])), Math.max(0, Math.min(cols - 1, at[1] + move[1]))];
    } else if (digit !== null) {
      set(...at, digit);
      emit();
    } else return;
    event.preventDefault();
    paint();
  });
  const resize = (r, c) => {
    pair[side] = blank(r, c).map((row, i) => row.map((_, j) => (grid[i] || [])[j] || 0));
    draw();
    emit();
  };
  paint();
  return make("div", { class: "grid-box" },
    make("div", { class: "size" }, number(`${label}: rows`, rows, (value) => resize(value, cols)), "×",
      number(`${label}: columns`, cols, (value) => resize(rows, value))),
    canvas, live);
}

function pairRow(part, index) {
  const pair = task[part][index];
  const name = part === "train" ? `Pair ${index + 1}` : `Test input ${index + 1}`;
  const remove = make("button", {
    type: "button", class: "remove", "aria-label": `Remove ${name}`,
    onclick: () => { task[part].splice(index, 1); draw(); emit(); },
  }, "✕");
  const grids = [gridBox(pair, "input", `${name} input`)];
  if (part === "train") grids.push(make("span", { class: "arrow", "aria-hidden": "true" }, "→"), gridBox(pair, "output", `${name} output`));
  return make("div", { class: "pair" }, make("div", { class: "name" }, name, " ", remove), make("div", { class: "grids" }, ...grids));
}

function add(part) {
  const last = task[part].at(-1) || task.train.at(-1);
  const size = (side) => (last && last[side] ? [last[side].length, last[side][0].length] : [3, 3]);
  task[part].push(part === "train" ? { input: blank(...size("input")), output: blank(...size("output")) } : { input: blank(...size("input")) });
  draw();
  emit();
}

function download() {
  const url = URL.createObjectURL(new Blob([JSON.stringify(task)], { type: "application/json" }));
  make("a", { href: url, download: `${task.task_id || "task"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function draw() {
  const button = (text, onclick) => make("button", { type: "button", class: "add", onclick }, text);
  root.replaceChildren(
    palette(),
    ...task.train.map((_, index) => pairRow("train", index)),
    ...task.test.map((_, index) => pairRow("test", index)),
    make("div", { class: "tools" },
      button("Add pair", () => add("train")),
      button("Add test input", () => add("test")),
      button("Save as JSON", download)),
  );
}

draw();
watch("value", () => {
  if (props.value === sent) return;
  sent = props.value;
  task = read(props.value);
  draw();
});
