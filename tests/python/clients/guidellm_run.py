"""A short benchmark of GuideLLM against a gateway. Prints one JSON object for each request format.

Arguments: URL MODEL FORMAT...
"""

import json
import pathlib
import subprocess
import sys
import tempfile

url, model, *formats = sys.argv[1:]
guidellm = pathlib.Path(sys.executable).with_name("guidellm")
REQUESTS = 12

for request_format in formats:
    with tempfile.TemporaryDirectory() as folder:
        data, report = pathlib.Path(folder, "prompts.jsonl"), pathlib.Path(folder, "report.json")
        rows = [{"prompt": f"Count from {n}.", "output_tokens_count": 8} for n in range(REQUESTS)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        subprocess.run(
            [guidellm, "run", "--disable-console",
             "--backend", f"kind=openai_http,target={url},model={model},request_format={request_format}",
             "--profile", "kind=concurrent,streams=3",
             "--constraint", f"kind=max_requests,count={REQUESTS}",
             "--data", f"kind=json_file,path={data}",
             "--output", f"kind=json,path={report}"],
            check=True, timeout=300, stdout=sys.stderr, env={"HOME": folder, "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        )
        benchmark = json.loads(report.read_text())["benchmarks"][0]
        print(json.dumps({"format": request_format, "metrics": benchmark["metrics"]["request_totals"]}), flush=True)
