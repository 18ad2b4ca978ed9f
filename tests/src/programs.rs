//! Real programs: llama.cpp servers, Jaeger, Python with the official client. Missing ones fail loudly.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Gateway, PATIENCE, free_port};

/// Root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn needed(variable: &str, default: &str, how: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| repository().join(default), PathBuf::from);
    assert!(path.is_file(), "{} is not there: {how} ({variable} names another place)", path.display());
    path
}

/// Tester of rules for Prometheus.
pub fn promtool() -> PathBuf {
    needed("SPILLWAY_TEST_PROMTOOL", ".cache/bin/promtool", "`scripts/test-tools.sh promtool` fetches it")
}

/// Python with the packages of `tests/python/requirements.txt`.
pub fn python() -> PathBuf {
    needed("SPILLWAY_TEST_PYTHON", ".cache/venv/bin/python", "`scripts/test-tools.sh python` installs it")
}

/// Runs a script of `tests/python` with a gateway's `/v1` URL as its first argument. Returns its output: a JSON line
/// for each observation.
pub async fn script(name: &str, gateway: &Gateway, further: &[&str]) -> Vec<serde_json::Value> {
    let mut command = Command::new(python());
    command
        .arg(repository().join("tests/python").join(name))
        .arg(format!("http://{}/v1", gateway.address))
        .args(further);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Path of the demo model.
pub fn model() -> PathBuf {
    needed("SPILLWAY_TEST_MODEL", "models/smollm2-135m-instruct-q4_1.gguf", "`make model` fetches it")
}

/// Path of the embedding model.
pub fn minilm() -> PathBuf {
    let file = "models/all-minilm-l6-v2/model.safetensors";
    needed("SPILLWAY_TEST_MINILM", file, "`scripts/test-models.sh` fetches it")
}

/// Path of the Jaeger program.
pub fn jaeger() -> PathBuf {
    needed("SPILLWAY_TEST_JAEGER", ".cache/bin/jaeger", "`scripts/test-tools.sh jaeger` builds it")
}

/// llama.cpp server with the demo model.
pub struct LlamaServer {
    child: Child,
    /// Base URL.
    pub url: String,
}

impl LlamaServer {
    /// Starts a server with `parallel` slots.
    pub fn start(parallel: usize) -> Self {
        Self::start_with(parallel, &[])
    }

    /// As [`Self::start`], with further arguments of the script.
    pub fn start_with(parallel: usize, further: &[&str]) -> Self {
        let mut child = Command::new(python())
            .arg(repository().join("scripts/llama_server.py"))
            .args(["--model", model().to_str().unwrap(), "--parallel", &parallel.to_string()])
            .args(further)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
            .expect("the llama.cpp server starts");
        // Later output is drained, so that the server never blocks on it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    /// Sends a signal, such as STOP.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Server of `tests/python` that prints `listening on PORT` and ends with its standard input.
pub struct PythonServer {
    child: Child,
    /// Base URL.
    pub url: String,
}

impl PythonServer {
    /// Starts a script, and waits until it listens.
    pub fn start(script: &str) -> Self {
        Self::start_with(script, &[])
    }

    /// As [`Self::start`], with arguments of the script.
    pub fn start_with(script: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(python())
            .arg(repository().join("tests/python").join(script))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("listening on ").expect("the server starts");
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Redis server without persistence.
pub struct Redis {
    child: Option<Child>,
    /// Arguments of its port, and of TLS or a password.
    arguments: Vec<String>,
    /// Port on loopback.
    pub port: u16,
}

impl Redis {
    /// Starts a server on a free port.
    pub fn start() -> Self {
        Self::start_with(|port| vec!["--port".to_owned(), port.to_string()])
    }

    /// Starts a server that asks for a password.
    pub fn start_with_password(password: &str) -> Self {
        let plain = |port: u16| ["--port", &port.to_string(), "--requirepass", password].map(str::to_owned).to_vec();
        Self::start_with(plain)
    }

    /// Starts a server with TLS only, with `redis.pem` and `redis.key` of a folder.
    pub fn start_secure(folder: &std::path::Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let (cert, key) = (file("redis.pem"), file("redis.key"));
        Self::start_with(|port| {
            let port = port.to_string();
            let tls = ["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--tls-cert-file", &cert];
            let files = ["--tls-key-file", &key, "--tls-ca-cert-file", &cert];
            tls.iter().chain(&files).map(|text| (*text).to_owned()).collect()
        })
    }

    fn start_with(arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let port = free_port();
        let mut redis = Self { child: None, arguments: arguments(port), port };
        redis.restart();
        redis
    }

    /// Starts the server on its port, unless it runs.
    pub fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(&self.arguments);
        let child = command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not there: `scripts/system.sh test` installs it");
        self.child = Some(child);
        let end = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(std::time::Instant::now() < end, "redis-server does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a command and reads its reply: a text, a number as text, or the items of a list; nothing for none.
    pub fn command(&self, parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut command = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            command.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            command.extend_from_slice(part);
            command.extend_from_slice(b"\r\n");
        }
        stream.write_all(&command).unwrap();
        let mut replies = BufReader::new(stream);
        let mut items = Vec::new();
        reply(&mut replies, &mut items);
        items
    }

    /// Sends a signal, such as STOP or CONT.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }
}

/// Reads one reply in Redis' protocol.
fn reply(from: &mut impl BufRead, items: &mut Vec<Vec<u8>>) {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let (kind, rest) = line.trim_end().split_at(1);
    match kind {
        "+" | ":" => items.push(rest.as_bytes().to_vec()),
        "$" if rest != "-1" => {
            let mut bulk = vec![0; rest.parse::<usize>().unwrap() + 2];
            from.read_exact(&mut bulk).unwrap();
            bulk.truncate(bulk.len() - 2);
            items.push(bulk);
        }
        "*" => (0..rest.parse::<usize>().unwrap()).for_each(|_| reply(from, items)),
        "$" => {}
        _ => panic!("Redis refuses: {line}"),
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// nginx that serves a folder, and a Starlette application under uvicorn: readers of paths as they run in the field.
pub struct PathReader {
    child: Child,
    _folder: tempfile::TempDir,
    /// Base URL.
    pub url: String,
}

impl PathReader {
    /// Starts nginx with a secret in `/admin/keys` and an open page.
    pub async fn nginx() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("admin")).unwrap();
        std::fs::write(root.join("admin/keys"), "SECRET").unwrap();
        std::fs::write(root.join("page"), "open").unwrap();
        let root =
            format!("server {{ listen 127.0.0.1:{port}; location / {{ root {}/root; }} }}", folder.path().display());
        Self::nginx_with(folder, port, &root).await
    }

    /// Starts nginx that answers 200 over HTTP/2 to every request, and ends each connection after `requests` of them.
    pub async fn nginx_of_short_connections(requests: u32) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let server = format!(
            "keepalive_requests {requests}; server {{ listen 127.0.0.1:{port} http2; error_page 405 =200 @ok;
             location / {{ return 200 ok; }} location @ok {{ return 200 ok; }} }}"
        );
        Self::nginx_with(folder, port, &server).await
    }

    async fn nginx_with(folder: tempfile::TempDir, port: u16, http: &str) -> Self {
        let path = folder.path().display();
        // Workers of a root's nginx drop their privileges and must still read the files.
        let user = if Self::is_root() { "user root;" } else { "" };
        let config = format!(
            "daemon off; {user} worker_processes 1; pid {path}/pid; error_log {path}/error.log;
             events {{ worker_connections 256; }}
             http {{ access_log off; client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};
             uwsgi_temp_path {path}; scgi_temp_path {path}; {http} }}"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let program =
            ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].iter().find(|path| std::path::Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or(&"nginx"));
        command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-e").arg(folder.path().join("error.log"));
        Self::start(command, folder, port, "nginx is not there: `scripts/system.sh test` installs it").await
    }

    /// Starts uvicorn with `tests/python/path_app.py`.
    pub async fn asgi() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(python());
        command.arg(repository().join("tests/python/path_app.py")).arg(port.to_string());
        Self::start(command, folder, port, "`scripts/test-tools.sh python` installs uvicorn and starlette").await
    }

    fn is_root() -> bool {
        let id = Command::new("id").arg("-u").output().unwrap();
        id.stdout.starts_with(b"0\n")
    }

    async fn start(mut command: Command, folder: tempfile::TempDir, port: u16, how: &str) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect(how);
        let mut reader = Self { child, _folder: folder, url: format!("http://127.0.0.1:{port}") };
        crate::eventually("a server listens", || {
            let ended = reader.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended ({how}): {ended:?}");
            async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() }
        })
        .await;
        reader
    }
}

impl Drop for PathReader {
    fn drop(&mut self) {
        // nginx ends its worker on SIGTERM, but not when it is killed.
        let _ = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// The library by which a program, that preloads it, reads another time from its clock.
pub fn faketime() -> PathBuf {
    let library = Path::new("/usr/lib").join(format!("{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH));
    assert!(library.is_file(), "{} is not there: `scripts/system.sh test` installs it", library.display());
    library
}
