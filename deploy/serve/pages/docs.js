"use strict";
// Show openapi.json for people, with nothing from anywhere else.

const $ = (id) => document.getElementById(id);

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function example(path, content) {
  const given = content?.["application/json"]?.example;
  if (!given) return [];
  const [input] = given.inputs;
  const short = input.data.length > 16
    ? { ...given, inputs: [{ ...input, data: [...input.data.slice(0, 4), "…"] }] }
    : given;
  const body = JSON.stringify(short, null, 2);
  return [make("pre", `curl ${location.origin}${path} -d '${body}'`)];
}

function section(path, method, { summary, description = "", parameters = [], requestBody, responses }) {
  const rows = Object.entries(responses).map(([status, { description }]) =>
    make("tr", "", make("td", status), make("td", description)));
  return make("section", "",
    make("h2", `${method.toUpperCase()} ${path}`),
    make("div", summary),
    make("div", description.replaceAll("`", "")),
    ...parameters.map((p) => make("div", `${p.name}: ${p.description}`)),
    ...example(path, requestBody?.content),
    make("table", "", ...rows));
}

async function show(key) {
  const answer = await fetch("/openapi.json", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  const said = await answer.json();
  $("key-form").hidden = answer.status !== 401;
  $("note").textContent = answer.ok ? said.info.description : said.error;
  if (!answer.ok) return;
  $("operations").replaceChildren(...Object.entries(said.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => section(path, method, operation))));
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  show($("key").value);
});
show("");
