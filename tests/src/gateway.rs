//! The built gateway, with a configuration in a folder of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use crate::{Client, Sample, eventually, family_of, repository};

/// A running gateway.
pub struct Gateway {
    child: Child,
    folder: tempfile::TempDir,
    lines: Arc<Mutex<Vec<String>>>,
    /// Task of the thread that reads the log with the next line.
    reading: Arc<Mutex<Reading>>,
    /// Address for clients.
    pub address: SocketAddr,
    /// Admin address.
    pub admin: SocketAddr,
}

/// State of the reader of a gateway's log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Reads,
    /// Holds the pipe open and takes nothing from it.
    Hangs,
    /// Closes the pipe.
    Gone,
}

/// Path of the built program.
pub fn binary() -> PathBuf {
    let path =
        std::env::var_os("SPILLWAY_BIN").map_or_else(|| repository().join("target/debug/spillway"), PathBuf::from);
    assert!(path.is_file(), "{} is not there: `cargo build -p spillway` makes it", path.display());
    path
}

/// Path of the built gateway of `plugins/examples`, which lies beside the program.
pub fn example_binary() -> PathBuf {
    let path = binary().with_file_name("example-gateway");
    assert!(path.is_file(), "{} is not there: `cargo build -p spillway-example-filters` makes it", path.display());
    path
}

impl Gateway {
    /// As [`Self::start_in`], with the gateway of `plugins/examples`.
    pub async fn start_example(folder: tempfile::TempDir, yaml: &str) -> Self {
        Self::start_by(Command::new(example_binary()), folder, yaml).await
    }

    /// Starts the gateway with this configuration, preceded by a listener and an admin address on free ports.
    pub async fn start(yaml: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}"))
            .await
    }

    /// Kills the gateway and starts it again in its folder.
    pub async fn crash_and_restart(self, yaml: &str) -> Self {
        self.crash_and_restart_in(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}")).await
    }

    /// As [`Self::crash_and_restart`], with a configuration that has listeners.
    pub async fn crash_and_restart_in(mut self, yaml: &str) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        Self::start_in(folder, yaml).await
    }

    /// Starts the gateway in a folder that holds the files of its configuration, listeners included. The admin
    /// address is added in front.
    pub async fn start_in(folder: tempfile::TempDir, yaml: &str) -> Self {
        Self::start_by(Command::new(binary()), folder, yaml).await
    }

    /// As [`Self::start_in`], with at most `files` open files.
    pub async fn start_with_files(files: u32, folder: tempfile::TempDir, yaml: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]).arg(binary());
        Self::start_by(shell, folder, yaml).await
    }

    /// The same with further variables in its environment.
    pub async fn start_with_variables(folder: tempfile::TempDir, yaml: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        command.envs(variables.iter().copied());
        Self::start_by(command, folder, yaml).await
    }

    /// As [`Self::start_in`], with a command that runs the program with the arguments that are added to it.
    pub async fn start_by(command: Command, folder: tempfile::TempDir, yaml: &str) -> Self {
        Self::start_with_input(command, Stdio::null(), folder, yaml).await
    }

    /// As [`Self::start_by`], with an open file as standard input.
    pub async fn start_with_input(mut command: Command, input: Stdio, folder: tempfile::TempDir, yaml: &str) -> Self {
        std::fs::write(folder.path().join("spillway.yaml"), whole(yaml)).unwrap();
        let mut child = command
            .args(["serve", "-c", "spillway.yaml"])
            .current_dir(folder.path())
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .env("TEST_SECRET", "upstream-secret")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reading = Arc::new(Mutex::new(Reading::Reads));
        let (out, sink, how) = (child.stdout.take().unwrap(), lines.clone(), reading.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
                while *how.lock().unwrap() == Reading::Hangs {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                if *how.lock().unwrap() == Reading::Gone {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Self { child, folder, lines, reading, address: unknown, admin: unknown };
        let ready = eventually("the gateway is ready", || {
            let ended = gateway.child.try_wait().unwrap();
            assert!(ended.is_none(), "the gateway ended: {ended:?}\n{}", gateway.log());
            let ready = gateway.events("ready").first().cloned();
            async move { ready }
        });
        ready.await;
        gateway.address = gateway.event_address("listening");
        gateway.admin = gateway.event_address("admin_listening");
        gateway
    }

    /// Address of the listener with this name.
    pub fn listener(&self, name: &str) -> SocketAddr {
        let events = self.events("listening");
        let event = events.iter().find(|event| event["listener"] == name);
        event.unwrap_or_else(|| panic!("a listener {name}"))["address"].as_str().unwrap().parse().unwrap()
    }

    fn event_address(&self, event: &str) -> SocketAddr {
        self.events(event)[0]["address"].as_str().unwrap().parse().unwrap()
    }

    /// Log lines with this event, so far.
    pub fn events(&self, event: &str) -> Vec<serde_json::Value> {
        self.any_of(&[event])
    }

    /// Log lines with one of these events, so far and in their order.
    fn any_of(&self, events: &[&str]) -> Vec<serde_json::Value> {
        let lines = self.lines.lock().unwrap();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.filter(|line| events.iter().any(|event| line["event"] == *event)).collect()
    }

    /// Whole log.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Takes no further line from the log, and holds its pipe open.
    pub fn stop_reading_log(&self) {
        *self.reading.lock().unwrap() = Reading::Hangs;
    }

    /// Closes the pipe of the log when the next line has come.
    pub fn close_log(&self) {
        *self.reading.lock().unwrap() = Reading::Gone;
    }

    /// Number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Path of the configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("spillway.yaml")
    }

    /// Folder of the configuration file.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Client of the gateway.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Text that the admin address serves under a path.
    pub async fn shown(&self, path: &str) -> String {
        Client::new(self.admin).get(path).await.text()
    }

    /// State of an endpoint from the admin API.
    pub async fn endpoint(&self, url: &str) -> serde_json::Value {
        let shown: serde_json::Value = serde_json::from_str(&self.shown("/api/backends").await).unwrap();
        let backends = shown["backends"].as_array().unwrap().iter();
        let mut endpoints = backends.flat_map(|b| b["endpoints"].as_array().unwrap());
        endpoints.find(|e| e["url"] == url).cloned().unwrap_or_else(|| panic!("{url} is not in {shown}"))
    }

    /// Value of a series, whose labels may be in any order; 0 if a metric with labels has none with these values yet. Panics on
    /// a metric that the gateway does not have.
    pub async fn metric(&self, series: &str) -> f64 {
        let family = family_of(series);
        let wanted = Sample::read(series);
        let text = self.shown("/metrics").await;
        let lines = text.lines().filter(|line| line.starts_with(wanted.name));
        let mut samples = lines.map(Sample::read);
        match samples.find(|sample| (sample.name, &sample.labels) == (wanted.name, &wanted.labels)) {
            Some(found) => found.value.parse().unwrap_or_else(|e| panic!("{found:?}: {e}")),
            None if family.labels.is_empty() => panic!("{series} is missing in {text}"),
            None => 0.0,
        }
    }

    /// Page of metrics.
    pub async fn metrics(&self) -> String {
        self.shown("/metrics").await
    }

    /// Waits until a series has this value: counts may follow the answer of a request with some delay.
    pub async fn metric_becomes(&self, series: &str, value: f64) {
        let what = format!("{series} becomes {value}");
        eventually(&what, || async { (self.metric(series).await == value).then_some(()) }).await;
    }

    /// Sends a signal to the process.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Hands over to a new process by the command `upgrade`; its exit code and what it says.
    pub async fn upgrade(&self) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(["upgrade", "--admin", &format!("http://{}", self.admin)]);
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = [ran.stdout, ran.stderr].concat();
        (ran.status.code(), String::from_utf8(said).unwrap())
    }

    /// Number of the process that serves, which is another one after a hand-over.
    pub async fn serving(&self) -> u32 {
        let admin = Client::new(self.admin);
        // The system resets a connection that the process before had not taken when it closed its socket.
        eventually("the admin address answers", || async {
            let answer = admin.try_send(admin.request("GET", "/api/upgrade", &[], "")).await.ok()?;
            answer.json()["pid"].as_u64()?.try_into().ok()
        })
        .await
    }

    /// Processes that this one and its successors have started and that run.
    pub fn successors(&self) -> Vec<u32> {
        let started = self.events("hand_over_started");
        let all = started.iter().filter_map(|event| u32::try_from(event["pid"].as_u64()?).ok());
        // A number may belong to another process by now.
        let folder = self.folder.path().canonicalize().unwrap();
        all.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)).collect()
    }

    /// Waits for the end of the process.
    pub async fn wait(mut self) -> (ExitStatus, String) {
        let status = eventually("the gateway ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended }
        })
        .await;
        (status, self.log())
    }

    /// Number of reloads that have ended, well or not.
    pub fn edits(&self) -> usize {
        self.any_of(&["config_reloaded", "config_rejected"]).len()
    }

    /// Waits until more than this many reloads have ended, well or not, and returns the last.
    pub async fn reloads(&self, more_than: usize) -> serde_json::Value {
        eventually("an edit is taken or kept out", || {
            let all = self.any_of(&["config_reloaded", "config_rejected"]);
            let last = (all.len() > more_than).then(|| all.last().cloned().unwrap());
            async move { last }
        })
        .await
    }
}

/// Configuration text with the admin address in front, as a test's gateway has it, unless the text has one of its own.
pub fn whole(yaml: &str) -> String {
    if yaml.lines().any(|line| line.starts_with("admin:")) {
        return yaml.to_owned();
    }
    format!("admin: {{address: \"127.0.0.1:0\"}}\n{yaml}")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        for successor in self.successors() {
            let _ = Command::new("kill").args(["-s", "KILL", &successor.to_string()]).status();
        }
        self.close_log();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- log of the gateway ---\n{}", self.log());
        }
    }
}
