// Prints the methods that the TypeScript SDK 2.x knows: of its unions of messages, and of the constants of its extensions.
import { readFileSync } from "node:fs";

const core = "./node_modules/@modelcontextprotocol/core";
const { exports } = JSON.parse(readFileSync(`${core}/package.json`));
const schemas = await import("@modelcontextprotocol/core");
const known = {};
for (const union of ["ClientRequest", "ClientNotification", "ServerRequest", "ServerNotification"]) {
  known[union] = schemas[`${union}Schema`].options.map((option) => [...option.shape.method.values][0]);
}
known.extensions = {};
for (const path of Object.keys(exports).filter((path) => path.startsWith("./ext/"))) {
  const module = await import(`@modelcontextprotocol/core/${path.slice(2)}`);
  known.extensions[path] = Object.entries(module).filter(([name]) => name.endsWith("_METHOD")).map(([, method]) => method);
}
console.log(JSON.stringify(known));
