// What the servers of the TypeScript SDKs share.

export const LANGUAGES = ["python", "pyret", "rust"];
export const NOTES = ["apples", "apricots", "bread"];
export const FORM = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };

export const text = (words) => ({ content: [{ type: "text", text: words }] });

/** A completion of these words. */
export const starting = (words) => (value) => words.filter((word) => word.startsWith(value));

/** What the client answered, or the text of the error that it gave. */
export const whatCameOf = (kind, work) =>
  work.then(
    (answer) => `${kind}: ${answer}`,
    (error) => `${kind} failed: ${error.message}`,
  );
