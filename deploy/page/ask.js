// Ask the server that this page comes from.

/** One sentence: what answers, of a model that is described so. */
export async function begin(model, described) {
  return `${described}, on this server.`;
}

/** {record, milliseconds, where}; throws an Error with the server's sentence. */
export async function ask(texts, key) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const started = performance.now();
  let answer;
  try {
    answer = await fetch("predict", {
      method: "POST", headers, body: JSON.stringify({ texts: [texts.length === 2 ? texts : texts[0]] }),
    });
  } catch {
    throw new Error("The server does not answer.");
  }
  const said = await answer.json();
  const milliseconds = performance.now() - started;
  if (!answer.ok) throw new Error(`${said.error[0].toUpperCase()}${said.error.slice(1)}.`);
  return { record: said.results[0], milliseconds, where: "from here to the server and back" };
}
