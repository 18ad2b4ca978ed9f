// Ollama's official client for Node against a gateway. Prints one JSON object a step. Arguments: BASE_URL MODEL STEP...
import { Ollama } from "ollama";

const [base, model, ...steps] = process.argv.slice(2);
const client = new Ollama({ host: base.replace(/\/v1$/, "") });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const options = { temperature: 0, num_predict: 24 };

const what = {
  async chat() {
    const whole = await client.chat({ model, messages, options });
    return { text: whole.message.content, reason: whole.done_reason, output: whole.eval_count };
  },
  async stream() {
    let [text, parts, last] = ["", 0, null];
    for await (const part of await client.chat({ model, messages, options, stream: true })) {
      text += part.message.content;
      parts += part.message.content ? 1 : 0;
      last = part;
    }
    return { text, parts, reason: last.done_reason, output: last.eval_count };
  },
  async generate() {
    const whole = await client.generate({ model, prompt: messages[0].content, options });
    return { text: whole.response };
  },
  async embed() {
    const found = await client.embed({ model, input: ["a red fox", "a blue whale"] });
    return { vectors: found.embeddings.map((vector) => vector.length) };
  },
  async models() {
    return { models: (await client.list()).models.map((card) => card.name), shown: (await client.show({ model })).capabilities };
  },
  async error() {
    const refused = await client.chat({ model: "nobody", messages }).catch((error) => error);
    return { class: refused.name, status: refused.status_code };
  },
};

for (const step of steps) console.log(JSON.stringify({ step, ...(await what[step]()) }));
