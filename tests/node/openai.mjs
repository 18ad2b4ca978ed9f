// OpenAI's official client for Node against a gateway. Prints one JSON object a step. Arguments: BASE_URL MODEL STEP...
import OpenAI from "openai";

const [baseURL, model, ...steps] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const question = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const asked = { model, messages: question, temperature: 0, max_tokens: 64 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const what = {
  async chat() {
    const whole = await client.chat.completions.create(asked);
    return { text: whole.choices[0].message.content, output: whole.usage.completion_tokens };
  },
  async stream() {
    const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    let parts = 0;
    stream.on("content", () => parts++);
    const whole = await stream.finalChatCompletion();
    return { text: whole.choices[0].message.content, output: whole.usage.completion_tokens, parts };
  },
  async responses() {
    const request = { model, input: question[0].content, temperature: 0, max_output_tokens: 64 };
    const whole = await client.responses.create(request);
    let text = "";
    for await (const event of await client.responses.create({ ...request, stream: true }))
      if (event.type === "response.output_text.delta") text += event.delta;
    return { text: whole.output_text, streamed: text };
  },
  async tools() {
    const messages = [{ role: "user", content: "What is the weather in Rome?" }];
    const first = await client.chat.completions.create({ ...asked, messages, tools: [weather] });
    const calls = first.choices[0].message.tool_calls;
    messages.push(first.choices[0].message);
    for (const call of calls) messages.push({ role: "tool", tool_call_id: call.id, content: "Rain in Rome." });
    const stream = client.chat.completions.stream({ ...asked, messages, tools: [weather] });
    const last = await stream.finalChatCompletion();
    return {
      calls: calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
      text: last.choices[0].message.content,
    };
  },
  async models() {
    const listed = [];
    for await (const card of client.models.list()) listed.push(card.id);
    return { models: listed };
  },
  async error() {
    const refused = await client.chat.completions.create({ ...asked, model: "nobody" }).catch((error) => error);
    return { class: refused.constructor.name, status: refused.status, code: refused.code };
  },
};

for (const step of steps) console.log(JSON.stringify({ step, ...(await what[step]()) }));
