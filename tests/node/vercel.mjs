// Vercel's AI SDK against a gateway. Prints one JSON object a step. Arguments: BASE_URL MODEL STEP..., where a step is
// PROVIDER:WHAT, such as `openai:text`.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name, ...steps] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: "unused" });
const models = {
  openai: openai.chat(name),
  responses: openai.responses(name),
  anthropic: createAnthropic({ baseURL, apiKey: "unused" })(name),
};
const asked = { prompt: "What is the capital of France? Answer in one sentence.", maxOutputTokens: 64, temperature: 0, maxRetries: 0 };
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Rain in ${city}.`,
});
const agent = { ...asked, prompt: "What is the weather in Rome?", tools: { weather }, stopWhen: stepCountIs(3) };
const called = (steps) => steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input]));

async function streamed(model, request) {
  const result = streamText({ model, ...request, onError: ({ error }) => { throw error; } });
  let parts = 0;
  for await (const text of result.textStream) parts += text ? 1 : 0;
  return { result, parts };
}

const what = {
  async text(model) {
    const { text, finishReason, usage } = await generateText({ model, ...asked });
    return { text, reason: finishReason, output: usage.outputTokens };
  },
  async stream(model) {
    const { result, parts } = await streamed(model, asked);
    return { text: await result.text, parts, reason: await result.finishReason, output: (await result.usage).outputTokens };
  },
  async object(model) {
    const output = Output.object({ schema: z.object({ large: z.boolean() }) });
    const { output: found } = await generateText({ model, ...asked, prompt: "Is Paris large?", output });
    return { large: typeof found.large === "boolean" };
  },
  async tools(model) {
    const { text, steps } = await generateText({ model, ...agent });
    return { calls: called(steps), text };
  },
  async streamed_tools(model) {
    const { result } = await streamed(model, agent);
    return { calls: called(await result.steps), text: await result.text };
  },
  async embed() {
    const { embeddings } = await embedMany({ model: openai.embedding(name), values: ["a red fox", "a blue whale"], maxRetries: 0 });
    return { vectors: embeddings.map((vector) => vector.length) };
  },
};

for (const step of steps) {
  const [provider, name] = step.split(":");
  console.log(JSON.stringify({ step, ...(await what[name](models[provider])) }));
}
