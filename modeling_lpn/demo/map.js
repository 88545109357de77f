// The log-likelihood over a 2-dimensional latent space, the way of the search, and a point that can be executed.
const canvas = element.querySelector("canvas");
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DEPTH = 8; // nats below the best that still differ in colour
let point = null;
let timer = null;

function shade(share) {
  const place = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), low = Math.min(RAMP.length - 2, Math.floor(place));
  return `rgb(${RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (place - low))).join()})`;
}

function draw() {
  const context = canvas.getContext("2d"), size = canvas.width, map = props.value && JSON.parse(props.value);
  context.clearRect(0, 0, size, size);
  if (!map) return;
  const cells = map.log_probs.length, step = size / cells, best = Math.max(...map.log_probs.flat());
  map.log_probs.forEach((row, r) => row.forEach((value, c) => {
    context.fillStyle = shade(1 - (best - value) / DEPTH);
    context.fillRect(Math.floor(c * step), Math.floor(size - (r + 1) * step), Math.ceil(step), Math.ceil(step));
  }));
  const at = ([x, y]) => [((x + map.half) / (2 * map.half)) * size, ((map.half - y) / (2 * map.half)) * size];
  for (const [color, width] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    map.path.forEach((place, index) => context[index ? "lineTo" : "moveTo"](...at(place)));
    context.stroke();
  }
  if (point) {
    const [x, y] = at(point);
    for (const [color, width] of [["#000", 5], ["#ff4136", 3]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x - 9, y); context.lineTo(x + 9, y);
      context.moveTo(x, y - 9); context.lineTo(x, y + 9);
      context.stroke();
    }
  }
}

function choose(x, y, wait) {
  const half = JSON.parse(props.value).half;
  point = [x, y].map((value) => Math.max(-half, Math.min(half, value)));
  draw();
  clearTimeout(timer);
  timer = setTimeout(() => trigger("execute", { x: point[0], y: point[1] }), wait);
}

canvas.addEventListener("click", (event) => {
  if (!props.value) return;
  const box = canvas.getBoundingClientRect(), half = JSON.parse(props.value).half;
  choose(((event.clientX - box.left) / box.width * 2 - 1) * half, (1 - (event.clientY - box.top) / box.height * 2) * half, 0);
});
canvas.addEventListener("keydown", (event) => {
  const move = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (!move || !props.value) return;
  event.preventDefault();
  const step = JSON.parse(props.value).half / 20, [x, y] = point || JSON.parse(props.value).path.at(-1);
  choose(x + move[0] * step, y + move[1] * step, 150);
});
draw();
watch("value", () => { point = null; draw(); });
