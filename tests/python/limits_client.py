"""The official client with the keys of three consumers against their limits. Usage: limits_client.py URL KEY KEY KEY"""

import sys

import openai


def ask(client, **more):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], **more)


url, by_requests, by_tokens, by_budget = sys.argv[1:]
clients = {key: openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in sys.argv[2:]}

# Two requests, then none.
raw = clients[by_requests].chat.completions.with_raw_response.create(
    model="m", messages=[{"role": "user", "content": "hello"}]
)
assert raw.headers["x-ratelimit-remaining-requests"] == "1", raw.headers
ask(clients[by_requests])
try:
    ask(clients[by_requests])
    raise SystemExit("the third request passed")
except openai.RateLimitError as error:
    assert error.code == "rate_limit_exceeded", error
    assert int(error.response.headers["retry-after"]) > 0

# More tokens than ever fit, then fewer.
try:
    ask(clients[by_tokens], max_tokens=5000)
    raise SystemExit("too many tokens passed")
except openai.BadRequestError as error:
    assert error.code == "tokens_exceed_limit", error
assert ask(clients[by_tokens], max_tokens=50).usage.total_tokens == 100

# A budget of one answer.
ask(clients[by_budget], max_tokens=50)
try:
    ask(clients[by_budget], max_tokens=50)
    raise SystemExit("a spent budget passed")
except openai.RateLimitError as error:
    assert error.code == "insufficient_quota" and error.type == "insufficient_quota", error
    assert error.response.headers["x-should-retry"] == "false"

# An unknown key.
try:
    ask(openai.OpenAI(base_url=url, api_key="sk-none", max_retries=0))
    raise SystemExit("an unknown key passed")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error
