"""Runs the steps of the Dockerfile in debootstrapped roots and tests the result. Called by test-image.sh, as root, in
a mount namespace of its own.

Supports the instructions of the Dockerfile and refuses any other. A container engine does three things that
this script does not: it gives each container a network of its own, it caches layers, and it packs the result.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

HEALTH_LIMIT_SECONDS = 60
ENGINE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def say(text):
    print(f"==> {text}", flush=True)


def fail(text):
    sys.exit(f"error: {text}")


def instructions(text):
    """Yields (line number, instruction, rest) of each instruction; continued lines are joined."""
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        start = start if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        word, _, rest = (pending + line).strip().partition(" ")
        pending = ""
        yield start, word.upper(), rest.strip()


class Stage:
    """A stage, begun by FROM: a root folder and the current settings."""

    def __init__(self, root):
        self.root = root
        self.environment = dict(ENGINE_ENVIRONMENT)
        self.workdir = "/"
        self.user = "root"
        self.entrypoint, self.command, self.health = [], [], []

    def inside(self, path):
        """Path on this machine of a path in the image."""
        return self.root / (pathlib.PurePosixPath(self.workdir) / path).as_posix().lstrip("/")

    def home(self):
        """Home folder of the user, from the image's own list of users as a container engine does."""
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, number, *_, home, _ = line.split(":")
            if self.user in (name, number):
                return home
        return "/"

    def run(self, command, **options):
        """Starts a command in the root, as the stage's user, and returns the process."""
        chroot = ["chroot", f"--userspec={self.user}", str(self.root), "/usr/bin/env", "-i", f"--chdir={self.workdir}"]
        chroot += [f"{name}={value}" for name, value in {"HOME": self.home(), **self.environment}.items()]
        # A process namespace of its own: processes that a step leaves running end with it.
        return subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *chroot, *command], **options)


def base_root(image, roots):
    """Makes the root of the base image: debootstrapped once, then stored as an archive."""
    match = re.fullmatch(r"debian:([a-z]+)-slim", image)
    if not match:
        fail(f"no way to make the base image {image} without a container engine")
    suite = match[1]
    kept = roots / f"{suite}.tar"
    if not kept.exists():
        say(f"debootstrap {suite} (once)")
        fresh = roots / f"{suite}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", suite, str(fresh)], check=True, stdout=subprocess.DEVNULL)
        # Networks with a TLS-intercepting gateway: its certificates belong to the machine, as with a container
        # engine.
        local = pathlib.Path("/usr/local/share/ca-certificates")
        if local.is_dir():
            shutil.copytree(local, fresh / "usr/local/share/ca-certificates", dirs_exist_ok=True)
        subprocess.run(["tar", "-C", str(fresh), "-cf", str(kept) + ".part", "."], check=True)
        shutil.rmtree(fresh)
        os.replace(str(kept) + ".part", kept)
    return kept


def open_root(kept, root):
    subprocess.run(["umount", "--quiet", "--recursive", str(root)], check=False)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    subprocess.run(["tar", "-C", str(root), "-xf", str(kept)], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    for kind, where in (("proc", "proc"), ("tmpfs", "tmp")):
        subprocess.run(["mount", "-t", kind, kind, str(root / where)], check=True)
    subprocess.run(["mount", "--bind", "/dev", str(root / "dev")], check=True)


def sources(source):
    """Lists the build context: the files of the checkout less those of .dockerignore (plain names at the top)."""
    ignored = set((source / ".dockerignore").read_text().split())
    if any(set(pattern) & set("*?!/") for pattern in ignored):
        fail(".dockerignore has a pattern that this script does not understand")
    return [path for path in source.iterdir() if path.name not in ignored]


def copy(stage, stages, source, rest):
    words = shlex.split(rest)
    origin = None
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")]
    *what, to = words
    target = stage.inside(to)
    for name in what:
        if origin:
            found = [origin.root / name.lstrip("/")]
        else:
            found = sources(source) if name == "." else [source / name]
        for path in found:
            if not path.exists():
                fail(f"COPY {rest}: there is no {path}")
            # As with a container engine: a folder's content goes into the target, a file into the folder or to the
            # name.
            if path.is_dir():
                shutil.copytree(path, target / path.name if name == "." else target, dirs_exist_ok=True, symlinks=True)
            else:
                end = target / path.name if to.endswith("/") or name == "." else target
                end.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, end)


def build(source, roots):
    stages, stage = {}, None
    for number, word, rest in instructions((source / "Dockerfile").read_text()):
        say(f"Dockerfile:{number}: {word} {rest[:100]}")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stage = Stage(roots / (name or "final"))
            open_root(base_root(image, roots), stage.root)
            stages[name or "final"] = stage
        elif word == "RUN":
            with open(roots / "steps.log", "w+", encoding="utf-8", errors="replace") as log:
                if stage.run(["sh", "-c", rest], stdout=log, stderr=subprocess.STDOUT).wait():
                    log.seek(0)
                    print("".join(log.readlines()[-40:]), file=sys.stderr)
                    fail(f"Dockerfile:{number}: the step failed (the end of what it said is above)")
        elif word == "COPY":
            copy(stage, stages, source, rest)
        elif word == "WORKDIR":
            stage.workdir = rest
            stage.inside(".").mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            stage.environment.update(part.split("=", 1) for part in shlex.split(rest))
        elif word == "USER":
            stage.user = rest
        elif word == "EXPOSE":
            pass
        elif word == "HEALTHCHECK":
            stage.health = json.loads(rest.partition(" CMD ")[2])
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        else:
            fail(f"Dockerfile:{number}: this script does not know {word}")
    return stage


def ask():
    """Sends one chat request to the address that the image serves."""
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
    question = {"model": "smollm2", "max_tokens": 16, "temperature": 0,
                "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(question), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        fail(f"the gateway in the image answered {response.status}: {answer}")
    return response.getheader("x-spillway-served-by"), answer["choices"][0]["message"]["content"]


def try_it(stage):
    size = subprocess.run(["du", "-sxm", str(stage.root)], check=True, capture_output=True, text=True).stdout.split()[0]
    say(f"The root of the image holds {size} MiB")
    # As in compose.yaml: only the home folder, which is in memory, is writable.
    home = stage.root / "var/lib/spillway"
    owner = stage.run(["id", "-u"], stdout=subprocess.PIPE, text=True).communicate()[0].strip()
    if owner == "0":
        fail("the image runs as root")
    subprocess.run(["mount", "--bind", str(stage.root), str(stage.root)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(stage.root)], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", str(stage.root / "proc")], check=True)
    subprocess.run(["mount", "--bind", "/dev", str(stage.root / "dev")], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"uid={owner}", "tmpfs", str(home)], check=True)
    log = open(stage.root.parent / "gateway.log", "w+", encoding="utf-8")
    gateway = stage.run([*stage.entrypoint, *stage.command], stdout=log, stderr=subprocess.STDOUT)
    try:
        begin = time.monotonic()
        while stage.run(stage.health).wait():
            if gateway.poll() is not None or time.monotonic() - begin > HEALTH_LIMIT_SECONDS:
                log.seek(0)
                fail(f"the gateway did not become healthy; it said:\n{log.read()}")
            time.sleep(0.2)
        say(f"Healthy after {time.monotonic() - begin:.1f} s, as user {owner}")
        served_by, text = ask()
        if served_by != "builtin/smollm2" or "Paris" not in text:
            fail(f"a strange answer, by {served_by}: {text}")
        say(f"It answers: {text!r} ({served_by})")
        # unshare is between this process and the gateway: the signal goes to its child, as an engine sends it to
        # process 1.
        children = pathlib.Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        if gateway.wait(timeout=15) != 0:
            fail(f"SIGTERM ended it with status {gateway.returncode}")
        say("SIGTERM ends it cleanly")
    finally:
        if gateway.poll() is None:
            gateway.kill()
            gateway.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--roots", type=pathlib.Path, required=True)
    options = parser.parse_args()
    final = build(options.source, options.roots)
    try_it(final)
    say("The image's steps work; its roots are under " + str(options.roots))


main()
