"use strict";

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A schema with its references resolved; the service's schemas have no cycles. */
function resolved(schema, root) {
  if (Array.isArray(schema)) return schema.map((part) => resolved(part, root));
  if (schema === null || typeof schema !== "object") return schema;
  if (typeof schema.$ref === "string") {
    const target = schema.$ref.slice(2).split("/").reduce((node, key) => node[key], root);
    return resolved(target, root);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolved(value, root)]));
}

function content(of, root) {
  return Object.entries(of ?? {}).flatMap(([type, { schema, example }]) => {
    const parts = [element("p", type, "path quiet")];
    if (schema) parts.push(element("pre", JSON.stringify(resolved(schema, root), null, 2)));
    if (example !== undefined) parts.push(element("p", `Example: ${example}`, "quiet"));
    return parts;
  });
}

function operation(method, path, what, root) {
  const section = element("section");
  section.append(element("h2", `${method.toUpperCase()} ${path}`, "path"), element("p", what.summary));
  if (what.description) section.append(element("p", what.description, "quiet"));
  for (const parameter of what.parameters ?? []) {
    section.append(element("h3", `${parameter.name} (in ${parameter.in}${parameter.required ? ", required" : ""})`));
    section.append(element("p", parameter.description ?? "", "quiet"));
    section.append(element("pre", JSON.stringify(parameter.schema, null, 2)));
  }
  if (what.requestBody) section.append(element("h3", "Body"), ...content(what.requestBody.content, root));
  for (const [status, response] of Object.entries(what.responses)) {
    const details = element("details");
    details.append(element("summary", `${status}: ${response.description}`), ...content(response.content, root));
    section.append(details);
  }
  return section;
}

async function show() {
  const root = await (await fetch("/openapi.json")).json();
  byId("title").textContent = `${root.info.title} ${root.info.version}`;
  byId("description").textContent = root.info.description ?? "";
  const sections = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, what]) => operation(method, path, what, root)),
  );
  byId("operations").replaceChildren(...sections);
}

show().catch(() => byId("operations").append(element("p", "openapi.json cannot be read.")));
