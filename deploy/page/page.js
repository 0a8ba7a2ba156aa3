// The page: a text, its label, its probabilities and the time. Who answers is ask.js's matter.
import { ask, begin } from "./ask.js";

const at = (id) => document.getElementById(id);

function element(name, content, kind) {
  const made = document.createElement(name);
  made.textContent = content;
  if (kind) made.className = kind;
  return made;
}

/** `smsa-u8, int8, a file of 6.46 MB` */
function describe({ run, precision, bytes }) {
  return [run, precision, bytes && `a file of ${(bytes / 1e6).toFixed(2)} MB`].filter(Boolean).join(", ");
}

function show(...parts) {
  at("answer").replaceChildren(...parts);
}

function showProblem(error) {
  show(element("p", error.message, "error"));
}

/** A table of labels with their probabilities, as given: the order of the labels is the model's. */
function table(probabilities) {
  const made = document.createElement("table");
  const head = made.createTHead().insertRow();
  for (const [name, kind] of [["label"], ["probability", "number"], ["share"]]) {
    head.append(Object.assign(element("th", name, kind), { scope: "col" }));
  }
  const body = made.createTBody();
  for (const [label, value] of Object.entries(probabilities)) {
    const row = body.insertRow();
    const bar = Object.assign(document.createElement("progress"), { max: 1, value });
    bar.setAttribute("aria-label", `share of ${label}`);
    row.append(Object.assign(element("th", label), { scope: "row" }), element("td", value.toFixed(4), "number"));
    row.append(element("td", "", "bar"));
    row.lastChild.append(bar);
  }
  return made;
}

function showRecord({ record, milliseconds, where }) {
  const time = element("p", `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms ${where}`, "time");
  if (record.error) return show(element("p", `This text ${record.error}.`, "error"));
  const parts = record.label === undefined ? [element("p", record.value.toFixed(3), "label")]
    : [element("p", record.label, "label"), table(record.probabilities)];
  if (record.note) parts.push(element("p", `Note: ${record.note}.`));
  show(...parts, time);
}

function makeFields(names) {
  for (const name of names) {
    const label = element("label", names.length === 1 ? "Text" : name);
    const area = Object.assign(document.createElement("textarea"), { id: `text-${name}`, lang: "id", required: true });
    label.htmlFor = area.id;
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
    });
    at("fields").append(label, area);
  }
}

async function send(event) {
  event.preventDefault();
  if (at("send").disabled) return;
  at("send").disabled = true;
  try {
    const texts = [...at("fields").querySelectorAll("textarea")].map((area) => area.value);
    showRecord(await ask(texts, at("key").value));
  } catch (error) {
    showProblem(error);
  } finally {
    at("send").disabled = false;
  }
}

/** Have a model answer; until it is loaded nothing can be sent. */
async function choose(model) {
  at("send").disabled = true;
  show();
  at("where").textContent = await begin(model, describe(model), (said) => { at("where").textContent = said; });
  at("send").disabled = false;
}

function fail(error) {
  at("where").textContent = "";
  showProblem(error);
}

async function main() {
  const answer = await fetch("about.json");
  if (!answer.ok) throw new Error(`about.json was answered with ${answer.status}.`);
  const { models, texts, key } = await answer.json();
  makeFields(texts);
  at("secret").hidden = !key;
  at("choice").hidden = models.length < 2;
  models.forEach((model, place) => at("model").add(new Option(describe(model), place)));
  at("model").addEventListener("change", () => choose(models[at("model").value]).catch(fail));
  at("form").addEventListener("submit", send);
  await choose(models[0]);
}

main().catch(fail);
