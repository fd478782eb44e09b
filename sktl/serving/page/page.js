"use strict";

const SHOWN = 6; // classes before "show all"
const N_SIMILAR = 6;
const AT_ONCE = 4; // pictures on their way to the server

const byId = (id) => document.getElementById(id);
const model = fetch("model").then((answer) => answer.json());
const waiting = [];
let underWay = 0;
let done = 0;
let asked = 0;

model.then(introduce, () => say("The server does not answer. Reload the page when it is back."));

function introduce(card) {
  document.title = card.name;
  byId("name").textContent = card.name;
  const size = card.input_size ? ` at ${card.input_size[2]} × ${card.input_size[1]} pixels` : "";
  const facts = [
    card.classes ? `${card.classes.length} classes` : "a number for each picture",
    card.backbone ? `${card.backbone}${size}` : "",
    card.gallery ? `${card.gallery.toLocaleString("en")} pictures to compare with` : "",
  ];
  byId("facts").textContent = facts.filter(Boolean).join(" · ");
}

function say(text) {
  byId("status").textContent = text;
}

function add(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  asked += pictures.length;
  const cards = pictures.map((file) => [file, makeCard(file)]);
  byId("results").prepend(...cards.map(([, card]) => card));
  waiting.push(...cards);
  proceed();
}

function proceed() {
  while (underWay < AT_ONCE && waiting.length) {
    const [file, card] = waiting.shift();
    underWay += 1;
    predict(file, card).finally(() => {
      underWay -= 1;
      done += 1;
      proceed();
    });
  }
  say(underWay ? `Looking at ${asked - done} of ${asked} pictures …` : asked ? `Done: ${asked} ${asked === 1 ? "picture" : "pictures"}.` : "");
}

function makeCard(file) {
  const card = byId("result").content.cloneNode(true).querySelector("article");
  const picture = card.querySelector("figure img");
  picture.src = URL.createObjectURL(file);
  picture.alt = `Your picture ${file.name}`;
  picture.onload = () => URL.revokeObjectURL(picture.src);
  picture.onerror = () => picture.remove();
  card.querySelector("figcaption").textContent = file.name;
  card.querySelector("h2").textContent = "…";
  return card;
}

async function predict(file, card) {
  try {
    const { gallery } = await model;
    const form = new FormData();
    form.append("images", file, file.name);
    const answer = await fetch(`predict?similar=${gallery ? N_SIMILAR : 0}`, { method: "POST", body: form });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.detail);
    show(card, body.classes, body.predictions[0]);
  } catch (error) {
    card.querySelector("h2").textContent = "No prediction";
    const reason = card.querySelector(".bad");
    reason.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    reason.hidden = false;
  }
}

function show(card, classes, prediction) {
  card.querySelector("h2").textContent = String(classes ? prediction.label : prediction.value);
  if (prediction.probabilities) showBars(card, classes, prediction.probabilities);
  if (prediction.similar) showSimilar(card, prediction.similar);
}

function showBars(card, classes, probabilities) {
  const order = classes.map((name, place) => [name, probabilities[place]]).sort((a, b) => b[1] - a[1]);
  const list = card.querySelector(".bars");
  const draw = (entries) => entries.forEach(([name, share]) => list.append(makeBar(name, share)));
  draw(order.slice(0, SHOWN));
  const rest = order.slice(SHOWN);
  const more = card.querySelector(".more");
  more.hidden = !rest.length;
  more.textContent = `Show all ${order.length} classes`;
  more.onclick = () => {
    draw(rest);
    more.remove();
  };
}

function makeBar(name, share) {
  const bar = byId("bar").content.cloneNode(true).querySelector("li");
  bar.querySelector(".class").textContent = name;
  bar.querySelector(".percent").textContent = `${(100 * share).toFixed(1)} %`;
  requestAnimationFrame(() => { bar.querySelector(".fill").style.width = `${100 * share}%`; });
  return bar;
}

function showSimilar(card, similar) {
  const section = card.querySelector(".similar");
  section.hidden = false;
  for (const each of similar) {
    const item = byId("neighbour").content.cloneNode(true).querySelector("li");
    const [folder, rest] = [each.name.split("/").slice(0, -1).join("/"), each.name.split("/").at(-1)];
    const label = folder || rest;
    item.title = `${each.name}, cosine similarity ${each.similarity.toFixed(3)}`;
    item.querySelector("img").src = each.thumbnail;
    item.querySelector("img").alt = `Similar picture: ${label}`;
    item.querySelector(".label").textContent = label;
    section.querySelector("ul").append(item);
  }
}

byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
addEventListener("paste", (event) => add(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
});
