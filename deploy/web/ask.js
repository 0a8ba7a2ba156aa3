// Label texts in this browser: the packed model in onnxruntime-web, nothing is sent anywhere.
import * as ort from "./ort/ort.wasm.min.mjs";
import { Labels } from "./labels.js";

let labels = null;

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} was answered with ${answer.status}.`);
  return answer;
}

/** Throws an Error unless the bytes are those that were packed; browsers can tell on https and on localhost only. */
async function verify(bytes, wanted) {
  if (!crypto.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== wanted) throw new Error("The model is not the file that was packed: load the page again.");
}

/** Load a model that is described so; returns a sentence: what was loaded, and how long it took. */
export async function begin(model, described, tell) {
  labels = null;
  const started = performance.now();
  tell(`Loading ${described}…`);
  const [packed, bytes] = await Promise.all([
    fetched(`${model.folder}/packed.json`).then((answer) => answer.json()),
    fetched(`${model.folder}/model.onnx`).then((answer) => answer.arrayBuffer()),
  ]);
  await verify(bytes, model.sha256);
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  labels = new Labels(packed, async (ids) => {
    const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const feeds = { input_ids: integers(ids), attention_mask: integers(ids.map(() => 1)) };
    if (packed.inputs.includes("token_type_ids")) feeds.token_type_ids = integers(ids.map(() => 0));
    const { logits } = await session.run(feeds);
    return logits.data;
  });
  const seconds = (performance.now() - started) / 1000;
  return `${described}, runs in this browser: loaded in ${seconds.toFixed(1)} s. Texts are sent nowhere.`;
}

/** {record, milliseconds, where} of one text. */
export async function ask([text]) {
  const started = performance.now();
  const record = await labels.record(text);
  return { record, milliseconds: performance.now() - started, where: "in this browser" };
}
