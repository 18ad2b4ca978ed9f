"""Open-loop load with the official OpenAI client: requests leave at their time, whether or not others were answered.

Arguments: BASE_URL COUNT SECONDS, the time over which the requests are spread. Prints one JSON object for each answer.
"""

import asyncio
import json
import sys
import time

from openai import AsyncOpenAI

base_url, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
COUNTRIES = ["France", "Germany", "Italy", "Spain"]
client = AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120)


async def ask(n: int) -> None:
    await asyncio.sleep(n * seconds / count)
    country = COUNTRIES[n % len(COUNTRIES)]
    question = f"What is the capital of {country}? Answer in one sentence."
    told = {"n": n, "country": country, "streamed": n % 2 == 0}
    asked = dict(model="any", temperature=0, max_tokens=8, messages=[{"role": "user", "content": question}])
    began = time.monotonic()
    try:
        if told["streamed"]:
            raw = await client.chat.completions.with_raw_response.create(stream=True, **asked)
            text, whole = "", False
            async for chunk in raw.parse():
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    whole = whole or choice.finish_reason is not None
            told |= {"text": text, "whole": whole}
        else:
            raw = await client.chat.completions.with_raw_response.create(**asked)
            answer = raw.parse()
            told |= {"text": answer.choices[0].message.content, "whole": True}
        told |= {"status": raw.status_code, "by": raw.headers.get("x-spillway-served-by", "")}
    except Exception as e:  # everything that a caller would see as a failure
        told |= {"status": getattr(e, "status_code", 0), "error": repr(e)}
    print(json.dumps(told | {"seconds": round(time.monotonic() - began, 3)}), flush=True)


async def main() -> None:
    await asyncio.gather(*(ask(n) for n in range(count)))


asyncio.run(main())
