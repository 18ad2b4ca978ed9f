// Anthropic's official client for Node against a gateway. Prints one JSON object a step. Arguments: BASE_URL MODEL STEP...
import Anthropic from "@anthropic-ai/sdk";

const [base, model, ...steps] = process.argv.slice(2);
const client = new Anthropic({ baseURL: base.replace(/\/v1$/, ""), apiKey: "unused", maxRetries: 0 });
const question = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const asked = { model, max_tokens: 64, messages: question };
const tools = [
  {
    name: "weather",
    description: "The weather in a city.",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const text = (message) => message.content.map((block) => block.text ?? "").join("");
const calls = (message) => message.content.filter((block) => block.type === "tool_use");

const what = {
  async chat() {
    const whole = await client.messages.create(asked);
    return { text: text(whole), reason: whole.stop_reason, output: whole.usage.output_tokens };
  },
  async stream() {
    let parts = 0;
    const stream = client.messages.stream(asked).on("text", () => parts++);
    const whole = await stream.finalMessage();
    return { text: text(whole), reason: whole.stop_reason, output: whole.usage.output_tokens, parts };
  },
  async count() {
    return { input: (await client.messages.countTokens({ model, messages: question })).input_tokens };
  },
  async tools() {
    const messages = [{ role: "user", content: "What is the weather in Rome?" }];
    const first = await client.messages.stream({ ...asked, messages, tools }).finalMessage();
    messages.push({ role: "assistant", content: first.content });
    const result = (call) => ({ type: "tool_result", tool_use_id: call.id, content: "Rain in Rome." });
    messages.push({ role: "user", content: calls(first).map(result) });
    const last = await client.messages.create({ ...asked, messages, tools });
    return { calls: calls(first).map((call) => [call.name, call.input]), reason: first.stop_reason, text: text(last) };
  },
  async models() {
    const listed = [];
    for await (const card of client.models.list()) listed.push(card.id);
    return { models: listed };
  },
  async error() {
    const refused = await client.messages.create({ ...asked, model: "nobody" }).catch((error) => error);
    return { class: refused.constructor.name, status: refused.status, type: refused.error?.error?.type };
  },
};

for (const step of steps) console.log(JSON.stringify({ step, ...(await what[step]()) }));
