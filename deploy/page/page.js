// The page: a text, its label, its probabilities and the time. Who answers is ask.js's matter.
import { ask, begin } from "./ask.js";

const at = (id) => document.getElementById(id);

function element(name, content, kind) {
  const made = document.createElement(name);
  made.textContent = content;
  if (kind) made.className = kind;
  return made;
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
  for (const name of ["label", "probability", "share"]) head.append(Object.assign(element("th", name), { scope: "col" }));
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

async function main() {
  const answer = await fetch("about.json");
  if (!answer.ok) throw new Error(`about.json was answered with ${answer.status}`);
  const about = await answer.json();
  makeFields(about.texts);
  at("secret").hidden = !about.key;
  at("form").addEventListener("submit", send);
  at("where").textContent = await begin(about, (said) => { at("where").textContent = said; });
  at("send").disabled = false;
}

main().catch((error) => {
  at("where").textContent = "";
  showProblem(error);
});
