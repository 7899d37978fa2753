// A request as a command for a shell, and as a program for the openai package of Python.

const PLACEHOLDER = "YOUR_API_KEY";

// The answer does not depend on these fields: they stream it, and add images to the receipt.
const simplify = ({stream, decoding: {trace, ...decoding}, ...request}) => ({...request, decoding});

const quoteShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export const toCurl = (origin, request) => [
  `curl ${quoteShell(`${origin}/v1/chat/completions`)} -H 'Content-Type: application/json' \\`,
  `  -H 'Authorization: Bearer ${PLACEHOLDER}' -d @- <<'JSON'`,
  JSON.stringify(simplify(request), null, 1),
  "JSON",
].join("\n");

// Escapes of JSON strings are those of Python. JSON.stringify escapes lone surrogates.
export const toLiteral = (value) => {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(toLiteral).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${toLiteral(item)}`).join(", ")}}`;
};

export const toPython = (origin, request) => {
  const {decoding, ...fields} = simplify(request);
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${toLiteral(`${origin}/v1`)}, api_key="${PLACEHOLDER}")`,
    "response = client.chat.completions.create(",
    ...Object.entries(fields).map(([name, value]) => `    ${name}=${toLiteral(value)},`),
    `    extra_body={"decoding": ${toLiteral(decoding)}},`,
    ")",
    "print(response.choices[0].message.content)",
  ].join("\n");
};
