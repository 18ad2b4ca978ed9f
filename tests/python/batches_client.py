"""Files and batches by the official OpenAI client. Prints one JSON object a step.

Arguments: BASE_URL KEY OTHER_KEY.
"""

import io
import json
import sys
import time

from openai import APIStatusError, OpenAI

base_url, key, other_key = sys.argv[1:4]
client = OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
other = OpenAI(base_url=base_url, api_key=other_key, max_retries=0, timeout=120)


def tell(**facts):
    print(json.dumps(facts))


def refused(call):
    try:
        call()
    except APIStatusError as error:
        return [error.status_code, error.body["code"], error.body["param"]]
    return None


def request(n, model="gpt"):
    body = {"model": model, "messages": [{"role": "user", "content": f"Question {n}"}]}
    return {"custom_id": f"q-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def send(lines, name="input.jsonl"):
    text = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=(name, io.BytesIO(text.encode())), purpose="batch")


def ended(batch):
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


sent = send([request(n) for n in range(20)] + [request(20, "nothing")])
tell(step="file", object=sent.object, bytes=sent.bytes, name=sent.filename, purpose=sent.purpose)
batch = client.batches.create(
    input_file_id=sent.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    metadata={"job": "nightly"},
)
tell(step="created", object=batch.object, status=batch.status, window=batch.expires_at - batch.created_at)
batch = ended(batch)
counts = batch.request_counts
tell(
    step="ended",
    status=batch.status,
    counts=[counts.total, counts.completed, counts.failed],
    metadata=batch.metadata,
    model=batch.model,
    usage=[batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens],
    ordered=batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at,
)
output, errors = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
tell(
    step="results",
    ids=sorted(line["custom_id"] for line in output),
    statuses=sorted({line["response"]["status_code"] for line in output}),
    texts=sorted({line["response"]["body"]["choices"][0]["message"]["content"] for line in output}),
    requests=len({line["response"]["request_id"] for line in output}),
    errors=[[line["custom_id"], line["response"]["status_code"]] for line in errors],
)
tell(
    step="lists",
    files=[file.purpose for file in client.files.list(order="asc")],
    inputs=[file.id == sent.id for file in client.files.list(purpose="batch")],
    batches=[one.id == batch.id for one in client.batches.list(limit=1)],
    other=[len(other.files.list().data), len(other.batches.list().data)],
)
tell(
    step="others",
    file=refused(lambda: other.files.retrieve(sent.id)),
    content=refused(lambda: other.files.content(batch.output_file_id)),
    deleted=refused(lambda: other.files.delete(sent.id)),
    batch=refused(lambda: other.batches.retrieve(batch.id)),
    cancelled=refused(lambda: other.batches.cancel(batch.id)),
    made=refused(
        lambda: other.batches.create(
            input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    ),
)
bad = send([{"custom_id": "a"}, request(1), request(1)])
failed = ended(
    client.batches.create(input_file_id=bad.id, endpoint="/v1/chat/completions", completion_window="24h")
)
tell(step="failed", status=failed.status, errors=[[one.line, one.code, one.param] for one in failed.errors.data])
tell(
    step="refused",
    endpoint=refused(
        lambda: client.batches.create(input_file_id=sent.id, endpoint="/v1/audio/speech", completion_window="24h")
    ),
    window=refused(
        lambda: client.batches.create(
            input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="25h"
        )
    ),
    purpose=refused(lambda: client.files.create(file=("x", b"{}"), purpose="assistants")),
    cancelled=refused(lambda: client.batches.cancel(batch.id)),
)
deleted = client.files.delete(sent.id)
tell(step="deleted", deleted=deleted.deleted, again=refused(lambda: client.files.delete(sent.id)))
kept = client.files.create(
    file=("kept.jsonl", json.dumps(request(1)).encode()),
    purpose="batch",
    expires_after={"anchor": "created_at", "seconds": 3600},
)
tell(step="expires", seconds=kept.expires_at - kept.created_at)
