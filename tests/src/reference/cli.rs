//! `cli.md`: every command with its arguments and options, from the program's own help. Exit codes and variables are written
//! here.

use std::fmt::Write;

use super::source::{files, literals};
use super::{GENERATED, cell, compare};

/// Exit codes, each with an example of what ends so.
const CODES: &[(u8, &str)] = &[
    (0, "Success. `serve` ends with it after a signal."),
    (
        1,
        "A failure while running: an address in use, a gateway that does not answer, a model that cannot be loaded, a question of `eval-set` without an answer, a batch that was refused, a request for which the expression of `eval` has no value. Of `rollout status NAME` and `--wait`: the rollout is aborted.",
    ),
    (2, "Wrong usage or a wrong configuration; nothing was started. A rollout, key or consumer that does not exist."),
    (
        3,
        "Of `rollout status NAME` and `--wait`: the rollout is paused or inconclusive. Of `eval-set`: fewer answers passed than `--min-pass`. Of `batch run`: a line failed, or the batch did not end as `completed`. Of `upgrade`: the new process failed, and the one before goes on.",
    ),
    (4, "Of `rollout --wait`: `--timeout` is over. Of `upgrade`: the gateway refuses to begin."),
];

const VARIABLES: &[(&str, &str)] = &[
    ("SPILLWAY_CONFIG", "The configuration, where `-c` is left out."),
    ("SPILLWAY_ADMIN", "The admin address that `top`, `drain`, `diff`, `drift`, `keys`, `rollout` and `upgrade` ask."),
    ("SPILLWAY_ADMIN_TOKEN", "Its token (`admin.token`)."),
    ("SPILLWAY_API_KEY", "The key with which `batch run` and `eval-set` ask."),
    ("SPILLWAY_LOG", "Filter of the process log: `info`, `debug`, `spillway=debug`."),
    ("RUST_LOG", "The same, where `SPILLWAY_LOG` is not set."),
    (
        "SPILLWAY_STATE_DIR",
        "Folder at which relative paths begin that the gateway writes (`state`, `tls.acme.storage`).",
    ),
    ("SPILLWAY_CACHE_DIR", "Folder of compiled GPU pipelines and of kernel measurements."),
    ("XDG_CACHE_HOME", "`spillway` in it is that folder, where `SPILLWAY_CACHE_DIR` is not set."),
    ("HOME", "`.cache/spillway` in it is that folder, where neither is set."),
    (
        "SPILLWAY_CPU_UNIT",
        "Vector unit for models on the CPU (`AVX2`, `NEON`, `portable`, ...); the fastest when not set.",
    ),
    ("LISTEN_FDS", "Number of the sockets, from descriptor 3 on, that systemd has opened for the process."),
    ("LISTEN_PID", "Process that these are for; any other leaves them alone."),
    ("NOTIFY_SOCKET", "Socket of systemd that is told when the gateway is ready, hands over or ends."),
    (
        "SPILLWAY_HAND_OVER",
        "Written by the gateway itself, for the process that it hands over to ([upgrade](../how-to/upgrade.md)).",
    ),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "Collector of traces, where `telemetry.tracing` is not written."),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "The same; goes before it."),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "`grpc`, the only one that is supported."),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "The same; goes before it."),
    ("OTEL_TRACES_EXPORTER", "`otlp`, or `none` for no traces."),
    ("OTEL_TRACES_SAMPLER", "`always_on`, `always_off`, `traceidratio`, or one of them with `parentbased_`."),
    ("OTEL_TRACES_SAMPLER_ARG", "Share of the requests that are traced, 0 to 1."),
    ("OTEL_SDK_DISABLED", "`true` for no traces."),
];

/// Argument or option of a help text.
#[derive(Debug, Default)]
struct Entry {
    written: String,
    text: String,
}

/// The entries of one part of a help text, such as `Options:`; lines that go on are joined.
fn entries(help: &str, part: &str) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let lines = help.lines().skip_while(|line| *line != part).skip(1).take_while(|line| !line.is_empty());
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim();
        let begins = indent <= 6;
        if begins {
            let (written, text) = text.split_once("  ").unwrap_or((text, ""));
            found.push(Entry { written: written.to_owned(), text: text.trim().to_owned() });
        } else if let Some(last) = found.last_mut() {
            last.text = format!("{} {text}", last.text).trim().to_owned();
        }
    }
    found
}

/// Takes `[key: value]` out of a text.
fn note(text: &mut String, key: &str) -> String {
    let opened = format!("[{key}: ");
    let Some((before, behind)) = text.split_once(&opened).map(|(a, b)| (a.to_owned(), b.to_owned())) else {
        return String::new();
    };
    let (value, rest) = behind.split_once(']').unwrap();
    *text = format!("{}{rest}", before.trim_end());
    format!("`{}`", value.trim_end_matches('='))
}

fn command(page: &mut String, words: &[&str], help: &dyn Fn(&[&str]) -> String) {
    let text = help(words);
    let about = text.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
    let commands = entries(&text, "Commands:");
    if words.is_empty() {
        page.push_str("| command | |\n|---|---|\n");
    } else {
        write!(page, "\n## spillway {}\n\n{about}.\n\n```text\n{usage}\n```\n", words.join(" ")).unwrap();
    }
    for entry in commands.iter().filter(|entry| entry.written != "help" && words.is_empty()) {
        let anchor = format!("spillway-{}", entry.written);
        writeln!(page, "| [`spillway {}`](#{anchor}) | {} |", entry.written, cell(&entry.text)).unwrap();
    }
    let mut rows = entries(&text, "Arguments:");
    rows.extend(entries(&text, "Options:"));
    rows.retain(|entry| !entry.written.contains("--help") && !entry.written.contains("--version"));
    if !rows.is_empty() {
        page.push_str("\n| argument | default | variable | |\n|---|---|---|---|\n");
        for mut row in rows {
            let (default, variable) = (note(&mut row.text, "default"), note(&mut row.text, "env"));
            writeln!(page, "| `{}` | {default} | {variable} | {} |", cell(&row.written), cell(&row.text)).unwrap();
        }
    }
    for entry in commands.iter().filter(|entry| entry.written != "help") {
        let words: Vec<&str> = words.iter().copied().chain([entry.written.as_str()]).collect();
        command(page, &words, help);
    }
}

/// Renders the page.
pub(super) fn page(help: &dyn Fn(&[&str]) -> String) -> String {
    let files = files(&["gateway/src", "config/src"]);
    let is_variable = |text: &&String| {
        let is_plain = text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        is_plain
            && (["SPILLWAY_", "OTEL_", "XDG_"].iter().any(|prefix| text.starts_with(prefix))
                || ["HOME", "RUST_LOG", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"].contains(&text.as_str()))
    };
    let all: Vec<String> = files.iter().flat_map(|file| literals(&file.code)).collect();
    let rows: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
    compare("variables", &rows, all.iter().filter(is_variable).map(String::as_str));
    let mut page = format!(
        "# Command line

{GENERATED}

`spillway COMMAND --help` prints the same. Every command has `-h`/`--help`; `spillway --version` is `spillway version`.

"
    );
    command(&mut page, &[], help);
    page.push_str("\n## Exit codes\n\n| code | |\n|---|---|\n");
    for (code, text) in CODES {
        writeln!(page, "| {code} | {text} |").unwrap();
    }
    page.push_str("\n## Environment\n\nAny variable can also stand in the configuration as `${NAME}`.\n\n| variable | |\n|---|---|\n");
    for (name, text) in VARIABLES {
        writeln!(page, "| `{name}` | {} |", cell(text)).unwrap();
    }
    page.push_str("\nSignals and folders are in [the process](../operate/process.md).\n");
    page
}
