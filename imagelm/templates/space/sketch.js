// The sheet to draw on. `element`, `props` and `watch` come from gr.HTML; `props.value` is the data URL of a PNG, "" for an empty sheet.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const colours = [...element.querySelectorAll("[data-colour]")];
let past = [""];
let last = null;

function show(url) {
  canvas.parentElement.classList.toggle("empty", !url);
  pen.fillStyle = props.paper;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (!url) return;
  const image = new Image();
  image.onload = () => {
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  };
  image.src = url;
}

function keep(url) {
  past.push(url);
  props.value = url;
}

function choose(button) {
  pen.strokeStyle = button.dataset.colour;
  colours.forEach((one) => one.setAttribute("aria-pressed", one === button));
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

function stroke(to) {
  pen.lineWidth = props.brush;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...to);
  pen.stroke();
  last = to;
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = point(event);
  canvas.parentElement.classList.remove("empty");
  stroke(last);
});
canvas.addEventListener("pointermove", (event) => {
  if (last) stroke(point(event));
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => {
    if (last) keep(canvas.toDataURL("image/png"));
    last = null;
  });

colours.forEach((button) => button.addEventListener("click", () => choose(button)));
element.querySelector(".undo").addEventListener("click", () => {
  if (past.length > 1) past.pop();
  props.value = past.at(-1);
  show(props.value);
});
element.querySelector(".clear").addEventListener("click", () => {
  if (props.value) keep("");
  show("");
});
watch("value", () => {
  past.push(props.value);
  show(props.value);
});
choose(colours[0]);
show(props.value);
