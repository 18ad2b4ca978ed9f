//! What the pages say is true: their configurations load, their commands run and print what stands behind them, their
//! links lead somewhere, the names in them exist, the reference is what the program checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use spillway_tests::{
    Authority, Gateway, IssuerKey, Page, Redis, Reply, Seen, Upstream, binary, check_tests, commands, free_port,
    minilm, missing, model, pages, plain_module, python, reference, reply, repository, word_classifier,
    write_countries,
};

/// Servers that pages name, each by its documented port: they repeat what they were asked, or speak OpenAI's API.
const SERVERS: [u16; 4] = [8081, 8082, 8083, 8084];
/// The server that judges requests.
const JUDGE: u16 = 9002;
/// A port on which nothing listens.
const NOBODY: u16 = 8089;
/// Ports of the gateway's listeners.
const LISTENERS: [u16; 2] = [8080, 8443];
const ADMIN: u16 = 9901;
/// Address of the metrics alone.
const METRICS: u16 = 9902;
const REDIS: u16 = 6379;

/// How long a server takes to write a completion: what is to be full for a moment, hedged or too late needs one.
const WRITING: Duration = Duration::from_millis(300);
/// Further runs of a block whose output is not yet what is expected: a health check or an edit takes its time.
const FURTHER_RUNS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// File of `prompts.md`, as the page shows it.
const PROMPTS: &str = "---
version: 3
---
You answer for the support of Example. Be {{tone}}.

---
version: 2
---
You answer for the support of Example.
";

/// File of `basic-auth.md`, as the page shows it.
const USERS: &str = "ann:$2y$04$abcdefghijklmnopqrstuuoD8yw7MmybLKVooaTGGZAt3HXugv2.a\n";

/// Files of `callers-by-address.md`, as the page shows them.
const BLOCKED: &str = "; networks that nobody wants\n198.51.100.0/24 ; SBL1\n2001:db8:bad::/48\n";
const BOTS: &str = "# crawlers for training\nGPTBot\nCCBot/\nBytespider\n";

/// What gateways of the pages have in their environment.
const VARIABLES: [(&str, &str); 4] = [
    ("ADMIN_TOKEN", "token-of-the-operators"),
    ("CHAT_KEY", "key-of-the-gateway"),
    ("TEAM", "red"),
    ("HOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
];

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

fn good(what: &str, out: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{what}\nfailed:\n{said}");
    said
}

/// An example with the demo model where the folder of a page has it.
fn example(name: &str) -> String {
    read(&format!("config/examples/{name}.yaml")).replace("../../models", "models")
}

/// A whole configuration, which a gateway can run; others are parts.
fn is_whole(yaml: &str) -> bool {
    yaml.lines().any(|line| line.starts_with("listeners:"))
}

/// Files that configurations of pages name: certificates, keys of an issuer, endpoints, models.
struct Files {
    authority: Authority,
    key: IssuerKey,
}

impl Files {
    fn new() -> Self {
        Self { authority: Authority::default(), key: IssuerKey::new("k1") }
    }

    fn folder(&self, server: u16) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let (path, certs) = (folder.path(), folder.path().join("certs"));
        std::fs::create_dir(&certs).unwrap();
        for authority in ["ca", "clients-ca", "internal-ca"] {
            std::fs::write(certs.join(format!("{authority}.pem")), &self.authority.pem).unwrap();
        }
        self.authority.server(&["api.example.com"]).write(&certs, "api.example.com");
        self.authority.server(&["gateway.internal"]).write(&certs, "gateway");
        self.authority.client("acme", "spiffe://example.com/acme").write(&certs, "acme");
        std::fs::write(path.join("jwks.json"), json!({"keys": [self.key.jwk()]}).to_string()).unwrap();
        let endpoints = json!([{"url": format!("http://127.0.0.1:{server}")}]);
        std::fs::write(path.join("endpoints.json"), endpoints.to_string()).unwrap();
        std::fs::copy(repository().join("config/examples/probes.jsonl"), path.join("probes.jsonl")).unwrap();
        std::fs::create_dir(path.join("prompts")).unwrap();
        std::fs::write(path.join("prompts/support.md"), PROMPTS).unwrap();
        std::fs::create_dir(path.join("plugins")).unwrap();
        std::fs::write(path.join("plugins/words.wasm"), plain_module()).unwrap();
        std::fs::write(path.join("users.htpasswd"), USERS).unwrap();
        std::fs::write(path.join("blocked.txt"), BLOCKED).unwrap();
        std::fs::write(path.join("bots.txt"), BOTS).unwrap();
        write_countries(&path.join("countries.mmdb"), &[("203.0.113.0/24", "DE")]);
        std::fs::create_dir(path.join("models")).unwrap();
        word_classifier(&path.join("models/prompt-injection"));
        word_classifier(&path.join("models/toxicity"));
        let link = |file: &Path| {
            std::os::unix::fs::symlink(file, path.join("models").join(file.file_name().unwrap())).unwrap();
        };
        link(&std::fs::canonicalize(model()).unwrap());
        link(std::fs::canonicalize(minilm()).unwrap().parent().unwrap());
        // `curl` of a page prints what a terminal would show: no meter.
        std::fs::write(path.join(".curlrc"), "silent\nshow-error\n").unwrap();
        std::fs::create_dir(path.join("bin")).unwrap();
        std::os::unix::fs::symlink(binary(), path.join("bin/spillway")).unwrap();
        folder
    }

    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        self.key.token(&json!({
            "iss": "https://id.example.com", "aud": "spillway", "sub": "anna", "exp": now + 3_600,
            "org": {"id": "research"}, "plan": "gold",
        }))
    }
}

/// A completion, or what was asked: the server's documented port, method and path, then headers by name.
async fn answer(port: u16, seen: Seen) -> Option<Reply> {
    if port == JUDGE {
        let knows = seen.headers.get("authorization").is_some_and(|value| value == "Bearer good");
        let login = [("location", "https://login.example.com/")];
        return Some(if knows { reply(200, &[("x-user-id", "u-1")], "") } else { reply(302, &login, "") });
    }
    if seen.path == "/v1/chat/completions" {
        tokio::time::sleep(WRITING).await;
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let message = json!({"role": "assistant", "content": format!("Hello from {port}.")});
        let text = format!(
            "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":{},\"choices\":[{{\"index\":0,\"message\":{message},\"finish_reason\":\"stop\"}}],\"usage\":{}}}",
            body["model"],
            json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}),
        );
        return Some(reply(200, &[("content-type", "application/json")], text));
    }
    if seen.path == "/v1/completions" {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let choice = json!({"index": 0, "text": body["prompt"], "finish_reason": "stop"});
        let text = json!({"created": 1, "model": body["model"], "choices": [choice], "system_fingerprint": "fp"});
        return Some(reply(200, &[("content-type", "application/json")], text.to_string()));
    }
    if seen.path.ends_with("/old") {
        let host = seen.headers["host"].to_str().unwrap();
        let new = format!("http://{host}{}/new", seen.path.trim_end_matches("/old"));
        let cookie = format!("id=7; Domain={host}; Path=/");
        return Some(reply(302, &[("location", &new), ("set-cookie", &cookie)], ""));
    }
    let headers: BTreeSet<String> =
        seen.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
    let headers: String = headers.into_iter().collect();
    Some(reply(200, &[], format!("server {port}: {} {}\n{headers}", seen.method, seen.path)))
}

/// What runs beside the gateways of all pages, and the real port of each documented one.
struct World {
    files: Files,
    ports: BTreeMap<u16, u16>,
    _servers: Vec<Upstream>,
    _redis: Redis,
}

impl World {
    async fn start() -> Self {
        let (mut ports, mut servers) = (BTreeMap::new(), Vec::new());
        for port in SERVERS.into_iter().chain([JUDGE]) {
            let server = Upstream::start(move |seen| answer(port, seen)).await;
            ports.insert(port, server.address.port());
            servers.push(server);
        }
        let redis = Redis::start();
        ports.extend(LISTENERS.iter().chain(&[NOBODY, METRICS]).map(|port| (*port, free_port())));
        ports.insert(REDIS, redis.port);
        Self { files: Files::new(), ports, _servers: servers, _redis: redis }
    }
}

/// A text with other numbers in place of those that are ports.
fn with_ports(text: &str, ports: &BTreeMap<u16, u16>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let end = |word: &mut String, out: &mut String| {
        let port = word.parse().ok().and_then(|port: u16| ports.get(&port));
        out.push_str(&port.map_or_else(|| word.clone(), u16::to_string));
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else {
            end(&mut word, &mut out);
            out.push(c);
        }
    }
    end(&mut word, &mut out);
    out
}

/// A configuration of a page and the gateway that runs it, once a command asks for it.
struct Scene {
    yaml: String,
    folder: Option<tempfile::TempDir>,
    gateway: Option<Gateway>,
}

impl Scene {
    fn new(world: &World, yaml: &str) -> Self {
        let folder = world.files.folder(world.ports[&SERVERS[3]]);
        std::fs::write(folder.path().join("spillway.yaml"), yaml).unwrap();
        Self { yaml: yaml.to_owned(), folder: Some(folder), gateway: None }
    }

    async fn gateway(&mut self, world: &World) -> &Gateway {
        if let Some(folder) = self.folder.take() {
            // The harness puts an admin address of its own in front.
            let yaml: String = self.yaml.split_inclusive('\n').filter(|line| !line.starts_with("admin: {")).collect();
            let yaml = yaml.replace("\nadmin:\n  address: 127.0.0.1:9901", "\nadmin:\n  address: \"127.0.0.1:0\"");
            let yaml = with_ports(&yaml, &world.ports);
            self.gateway = Some(Gateway::start_with_variables(folder, &yaml, &VARIABLES).await);
        }
        self.gateway.as_ref().unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.as_ref().map_or_else(|| self.gateway.as_ref().unwrap().folder(), tempfile::TempDir::path)
    }

    /// Runs one command and gives what it prints, errors as well, with the documented ports.
    async fn run(&mut self, world: &World, what: &str, command: &str) -> (bool, String) {
        if let Some(signal) = command.strip_prefix("kill -").and_then(|rest| rest.split(' ').next()) {
            assert!(command.ends_with(" \"$(pidof spillway)\""), "{what}: whom does it end?");
            self.gateway(world).await.signal(signal);
            return (true, String::new());
        }
        let mut ports = world.ports.clone();
        ports.extend(self.gateway.as_ref().map(|gateway| (ADMIN, gateway.admin.port())));
        let text = with_ports(command, &ports);
        let folder = self.path().to_owned();
        let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("exec 2>&1\n{text}")]).current_dir(&folder).env("PATH", path);
        bash.env("CURL_HOME", &folder).env("TOKEN", world.files.token()).envs(VARIABLES);
        bash.env("SPILLWAY_ADMIN", format!("http://127.0.0.1:{}", ports.get(&ADMIN).unwrap_or(&ADMIN)));
        let out = tokio::task::spawn_blocking(move || bash.output().unwrap()).await.unwrap();
        let back = ports.into_iter().map(|(documented, real)| (real, documented)).collect();
        (out.status.success(), with_ports(&String::from_utf8_lossy(&out.stdout), &back))
    }
}

/// Whether a command asks a running gateway.
fn asks_a_gateway(command: &str) -> bool {
    [
        "curl ",
        "spillway batch",
        "spillway top",
        "spillway drain",
        "spillway drift",
        "spillway keys ",
        "spillway rollout",
        "spillway upgrade",
        "kill -",
    ]
    .iter()
    .any(|asks| command.contains(asks))
}

/// Whether a command is one that no test runs, and then what it names is there.
fn is_only_looked_at(what: &str, command: &str) -> bool {
    if let Some(target) = command.strip_prefix("make ") {
        assert!(read("Makefile").contains(&format!("\n{target}: ##")), "{what}: there is no such target");
        return true;
    }
    if ["helm ", "kubectl ", "sudo "].iter().any(|program| command.starts_with(program)) {
        for path in
            command.split_whitespace().filter(|word| ["deploy/", "config/"].iter().any(|at| word.starts_with(at)))
        {
            assert!(repository().join(path).exists(), "{what}: there is no {path}");
        }
        return true;
    }
    if !command.starts_with("docker ") {
        return false;
    }
    let compose = read("compose.yaml");
    assert!(repository().join("Dockerfile").is_file() && compose.contains("build: ."), "{what}");
    for image in command.split_whitespace().filter(|word| word.contains("/jaeger:")) {
        assert!(compose.contains(image), "{what}: compose.yaml has another version");
    }
    true
}

/// Runs the commands of a page beside its configurations and compares what they print. Gives how many outputs were.
async fn run_page(world: &World, page: &Page) -> usize {
    let blocks = page.blocks();
    let mut scene: Option<Scene> = None;
    let mut compared = 0;
    for (n, block) in blocks.iter().enumerate() {
        if block.language == "yaml" && is_whole(&block.text) {
            scene = Some(Scene::new(world, &block.text));
        }
        if block.language != "sh" {
            continue;
        }
        let what = format!("{}: {}", page.path, block.text.trim_end());
        let mut run: Vec<String> = commands(&block.text);
        run.retain(|command| !is_only_looked_at(&what, command));
        for command in &run {
            let known = [
                "curl ",
                "spillway ",
                "SPILLWAY_API_KEY=test spillway ",
                "printf ",
                "sed -i ",
                "seq ",
                "for ",
                "kill -",
            ];
            assert!(known.iter().any(|kind| command.starts_with(kind)), "{what}: no test runs this kind of command");
        }
        if run.is_empty() {
            continue;
        }
        let scene = scene.get_or_insert_with(|| Scene::new(world, &example("demo")));
        if run.iter().any(|command| asks_a_gateway(command)) {
            scene.gateway(world).await;
        }
        let expected = blocks.get(n + 1).filter(|next| next.language == "text").map(|next| next.text.as_str());
        let mut left = FURTHER_RUNS;
        loop {
            let mut printed = String::new();
            for command in &run {
                let (good, said) = scene.run(world, &what, command).await;
                assert!(good || expected.is_some(), "{what}\nfailed:\n{said}");
                printed.push_str(&said);
                if !said.is_empty() && !said.ends_with('\n') {
                    printed.push('\n');
                }
            }
            let Some(expected) = expected else { break };
            let Some(line) = missing(expected, &printed) else {
                compared += 1;
                break;
            };
            assert!(left > 0, "{what}\nis to print:\n{line}\nand printed:\n{printed}");
            left -= 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
    compared
}

async fn run_pages(of: impl Fn(&str) -> bool) -> usize {
    let world = World::start().await;
    let mut compared = 0;
    for page in pages().into_iter().filter(|page| of(&page.path)) {
        compared += run_page(&world, &page).await;
    }
    compared
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_pages_prints_what_stands_behind_it() {
    let compared = run_pages(|path| !path.starts_with("docs/how-to/")).await;
    assert!(compared > 3, "only {compared} outputs were compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_how_to_pages_prints_what_stands_behind_it() {
    let compared = run_pages(|path| path.starts_with("docs/how-to/")).await;
    assert!(compared > 40, "only {compared} outputs were compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_make_run_prints_to_try_works() {
    let world = World::start().await;
    let mut scene = Scene::new(&world, &example("demo"));
    let script = read("scripts/run.sh");
    let printed = script.split("<<'EOF'\n").nth(1).unwrap().split("\nEOF").next().unwrap();
    let indented = |begin: &str| -> String {
        let from = printed.find(begin).unwrap();
        let lines = printed[from..]
            .lines()
            .take_while(|line| line.is_empty() || (line.starts_with("  ") && !line.starts_with("  http")));
        lines.map(|line| line.strip_prefix("  ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
    };
    scene.gateway(&world).await;
    let (good_curl, said) = scene.run(&world, "curl", &indented("  curl ")).await;
    assert!(good_curl && said.contains("Paris"), "{said}");
    let script = with_ports(&indented("  from openai"), &world.ports);
    let python = python();
    let run = move || Command::new(python).args(["-c", &script]).output().unwrap();
    let said = good("openai", &tokio::task::spawn_blocking(run).await.unwrap());
    assert!(!said.trim().is_empty(), "the client printed nothing");
}

#[test]
fn every_yaml_of_the_pages_is_taken() {
    let files = Files::new();
    let minimal = example("minimal");
    let mut seen = 0;
    for page in pages() {
        // Parts of the file with every key, which is checked as a whole (`tests/tests/reference.rs`).
        let is_extract = page.path.starts_with("docs/reference/configuration/");
        for block in page.blocks().into_iter().filter(|block| block.language == "yaml" && !is_extract) {
            // A part of a file is tried as part of the smallest one.
            let whole = if is_whole(&block.text) { block.text.clone() } else { format!("{minimal}{}", block.text) };
            let folder = files.folder(SERVERS[3]);
            std::fs::write(folder.path().join("spillway.yaml"), whole).unwrap();
            let mut check = Command::new(binary());
            check.args(["check", "spillway.yaml"]).current_dir(folder.path()).envs(VARIABLES);
            let said = good(&format!("{}:\n{}", page.path, block.text), &check.output().unwrap());
            assert!(said.contains("(0 warnings)"), "{}:\n{}\n{said}", page.path, block.text);
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} configurations were found");
}

#[test]
fn every_subcommand_of_the_pages_exists() {
    for page in pages() {
        for span in page.spans() {
            let Some(named) = span.strip_prefix("spillway ") else { continue };
            let words: Vec<_> =
                named.split_whitespace().take_while(|word| word.chars().all(char::is_lowercase)).collect();
            let out = Command::new(binary()).args(&words).arg("--help").output().unwrap();
            good(&format!("{}: spillway {}", page.path, words.join(" ")), &out);
        }
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let pages = pages();
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        pages.iter().map(|page| (page.path.as_str(), page.anchors())).collect();
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in &pages {
        for link in page.links() {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let folder = Path::new(&page.path).parent().unwrap();
            let target = if path.is_empty() { Some(page.path.clone()) } else { joined(folder, path) };
            let there = target.as_ref().is_some_and(|target| repository().join(target).exists());
            let target = target.unwrap_or_default();
            if !there {
                broken.push(format!("{}: [..]({link}): there is no file {target}", page.path));
            } else if !anchor.is_empty() && !anchors.get(target.as_str()).is_some_and(|all| all.contains(anchor)) {
                broken.push(format!("{}: [..]({link}): {target} has no heading for #{anchor}", page.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(seen > 100, "only {seen} links were found");
}

/// A relative path from a folder of the repository; `None` where it leads out of the repository.
fn joined(folder: &Path, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.to_str().unwrap().split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The text of every source below some folders.
fn sources(folders: &[&str]) -> String {
    fn read_all(folder: &Path, sources: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_all(&path, sources);
            } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "sh") {
                *sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut sources = String::new();
    for folder in folders {
        read_all(&repository().join(folder), &mut sources);
    }
    sources
}

#[test]
fn files_metrics_and_tests_that_pages_name_exist() {
    const ROOTS: [&str; 8] = ["config/", "engine/", "gateway/", "plugins/", "tests/", "loadtest/", "scripts/", "docs/"];
    let sources = sources(&["tests/tests", "gateway/src", "plugins", "config/src", "engine/src"]);
    let mut wrong = Vec::new();
    // The changelog tells of what was.
    for page in pages().iter().filter(|page| page.path != "CHANGELOG.md") {
        for span in page.spans() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let is_path = ROOTS.iter().any(|root| span.starts_with(root)) && !span.contains(' ');
            if is_path && !repository().join(&span).exists() {
                wrong.push(format!("{}: `{span}`: there is no such file", page.path));
            }
            // Labels may follow the name of a metric; tests and metrics have names of several words.
            let name = span.split('{').next().unwrap();
            let counted = name.trim_end_matches("_total").trim_end_matches("_count");
            let is_metric =
                name.starts_with("spillway_") || name.starts_with("gen_ai_") || name.starts_with("http_server_");
            let is_test = name.matches('_').count() >= 4;
            if name.chars().all(plain)
                && ((is_metric && !sources.contains(&format!("\"{counted}\"")))
                    || (is_test && !is_metric && !sources.contains(name)))
            {
                wrong.push(format!("{}: `{span}`: nothing in the sources has this name", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn code_that_pages_quote_stands_in_the_sources() {
    let sources = sources(&["plugins"]);
    let mut seen = 0;
    for page in pages() {
        for block in page.blocks().into_iter().filter(|block| block.language == "rust") {
            assert!(sources.contains(&block.text), "{}: the sources have no such lines:\n{}", page.path, block.text);
            seen += 1;
        }
    }
    assert!(seen > 3, "only {seen} blocks were found");
}

#[test]
fn the_reference_and_the_schema_file_are_what_the_program_checks() {
    let out = Command::new(binary()).arg("schema").output().unwrap();
    assert!(out.status.success());
    let printed = String::from_utf8(out.stdout).unwrap();
    let schema = serde_json::from_str(&printed).unwrap();
    let help = |words: &[&str]| {
        let mut help = Command::new(binary());
        help.args(words).arg("-h").env_remove("COLUMNS");
        for variable in ["SPILLWAY_CONFIG", "SPILLWAY_ADMIN", "SPILLWAY_ADMIN_TOKEN"] {
            help.env_remove(variable);
        }
        good(&format!("spillway {} -h", words.join(" ")), &help.output().unwrap())
    };
    let mut files = reference(&schema, &help);
    files.push(("config/spillway.schema.json".to_owned(), printed));
    let update = std::env::var_os("SPILLWAY_UPDATE_DOCS").is_some();
    for (path, wanted) in &files {
        let file = repository().join(path);
        if update {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, wanted).unwrap();
        }
        let written = std::fs::read_to_string(file).unwrap_or_default();
        assert!(written == *wanted, "{path} is out of date: run with SPILLWAY_UPDATE_DOCS=1 and look at the change");
    }
    for Page { path, .. } in pages().iter().filter(|page| page.path.starts_with("docs/reference/")) {
        let is_written = path == "docs/reference/README.md" || files.iter().any(|(file, _)| file == path);
        assert!(is_written, "{path} is generated by nothing: remove it");
    }
}

#[test]
fn every_attack_of_the_table_is_tried_by_a_test() {
    let sources = sources(&["tests/tests", "gateway/src", "plugins", "config/src", "engine/src"]);
    let text = read("docs/attacks.md");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20);
    for row in rows {
        for test in row.trim_end_matches(" |").rsplit("| ").next().unwrap().split(", ") {
            let test = test.trim_matches('`');
            assert!(sources.contains(&format!("fn {test}()")), "{row}: there is no test {test}");
        }
    }
    // What the tests of attacks try stands in the table.
    let attacks =
        read("tests/tests/attacks.rs") + &read("tests/tests/floods.rs") + &read("tests/tests/websocket_attacks.rs");
    for test in attacks.split("#[tokio::test]\nasync fn ").skip(1) {
        let name = test.split('(').next().unwrap();
        assert!(text.contains(name), "{name} is not in docs/attacks.md");
    }
}

#[test]
fn every_fault_of_the_table_is_tried_by_a_test() {
    let sources = sources(&["tests/tests", "gateway/src", "plugins", "config/src", "engine/src"]);
    let page = read("docs/operate/faults.md");
    let text = page.split("\n## Soak").next().unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| fault ")).collect();
    assert!(rows.len() > 20);
    for row in rows {
        for test in row.trim_end_matches(" |").rsplit("| ").next().unwrap().split(", ") {
            let test = test.trim_matches('`');
            assert!(sources.contains(&format!("fn {test}()")), "{row}: there is no test {test}");
        }
    }
    for test in read("tests/tests/faults.rs").split("#[tokio::test]\nasync fn ").skip(1) {
        let name = test.split('(').next().unwrap();
        assert!(text.contains(name), "{name} is not in docs/operate/faults.md");
    }
}

/// A file that no program names is not even compiled.
#[test]
fn every_file_of_tests_is_in_a_program() {
    for (folder, roots) in [("tests/tests", &["alone.rs", "side_by_side.rs"][..]), ("config/tests", &["all.rs"])] {
        let programs: String = roots.iter().map(|root| read(&format!("{folder}/{root}"))).collect();
        for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let module = format!("mod {};\n", name.trim_end_matches(".rs"));
            let is_in = roots.contains(&name.as_str()) || programs.matches(&module).count() == 1;
            assert!(is_in, "{folder}/{name} is not in one of {roots:?}");
        }
    }
}

#[test]
fn every_test_that_the_table_of_apis_names_exists() {
    check_tests();
}

#[test]
fn every_example_names_the_schema_for_editors() {
    for entry in std::fs::read_dir(repository().join("config/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let line = "# yaml-language-server: $schema=../spillway.schema.json\n";
        assert!(text.starts_with(line), "{} does not begin with {line}", path.display());
    }
}
