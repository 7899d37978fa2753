// The openai and ai (Vercel) packages for Node against a running server: node run.mjs http://127.0.0.1:8000/v1
// Install them in the folder of the command: npm install openai ai @ai-sdk/openai-compatible zod
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const version = (name) => require(`${process.cwd()}/node_modules/${name}/package.json`).version;
const baseURL = process.argv[2] ?? "http://127.0.0.1:8000/v1";
const model = process.argv[3] ?? "onlyseen-tiny";
const messages = [{ role: "user", content: "Is there a cup in the image?", name: "ann" }];
const parameters = {
  type: "object",
  properties: { cup: { type: "boolean" } },
  required: ["cup"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "report", parameters } }];
const assert = (value) => { if (!value) throw new Error("unexpected answer"); };

async function runCase(name, title, run) {
  let result = "works";
  try { await run(); } catch (error) { result = `fails: ${String(error).slice(0, 160)}`; process.exitCode = 1; }
  console.log(`| ${name} (Node) ${version(name)} | ${title} | ${result} |`);
}

const { OpenAI } = await load("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
await runCase("openai", "Chat, full and streamed", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 10, store: true, metadata: { a: "b" } });
  assert(answer.choices[0].message.content && answer.onlyseen.ignored.includes("metadata"));
  let text = "";
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 10, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  assert(text);
});
await runCase("openai", "Call a forced tool, full and streamed", async () => {
  const fields = { model, messages, tools, tool_choice: "required", temperature: 0 };
  const answer = await client.chat.completions.create(fields);
  const { name, arguments: given } = answer.choices[0].message.tool_calls[0].function;
  assert(name === "report" && typeof JSON.parse(given).cup === "boolean");
  const final = await client.chat.completions.stream(fields).finalChatCompletion();
  assert(final.choices[0].message.tool_calls[0].function.arguments === given);
});
await runCase("openai", "Responses", async () => {
  const answer = await client.responses.create({ model, input: "Is there a cup?", max_output_tokens: 10, store: false });
  assert(answer.output_text);
});

const { generateText, streamText, tool, jsonSchema } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const chat = createOpenAICompatible({ name: "onlyseen", baseURL, apiKey: "none" })(model);
const prompt = "Is there a cup in the image?";
await runCase("ai", "generateText and streamText", async () => {
  assert((await generateText({ model: chat, prompt, maxOutputTokens: 10 })).text);
  let text = "";
  for await (const piece of streamText({ model: chat, prompt, maxOutputTokens: 10 }).textStream) text += piece;
  assert(text);
});
await runCase("ai", "generateText with a required tool", async () => {
  const report = tool({ description: "Report.", inputSchema: jsonSchema(parameters) });
  const answer = await generateText({ model: chat, prompt, tools: { report }, toolChoice: "required" });
  assert(typeof answer.toolCalls[0].input.cup === "boolean");
});
