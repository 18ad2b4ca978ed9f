//! Files and secrets that a configuration names: absolute, watched, and reported where they are missing.

use crate::common;
use std::collections::BTreeSet;
use std::path::PathBuf;

use spillway_config::{LoadOptions, load};

use crate::common::options;

/// Configuration in which every key of the language that names a file has a file of its own.
const EVERY_FILE: &str = "listeners:
  - address: 127.0.0.1:0
    protocol: https
    tls:
      certificates: [{certFile: l.pem, keyFile: l.key}]
      clientCertificates: {caFile: clients.pem}
      acme: {domains: [a.test], caFile: acme.pem, externalAccount: {keyId: k, hmacKey: {file: hmac}}}
admin: {address: \"127.0.0.1:0\", token: {file: token}}
backends:
  - name: b
    endpoints: [{url: \"https://127.0.0.1:1\"}]
    endpointsFile: endpoints.yaml
    credentials: {bearer: {file: bearer}}
    tls: {caFile: b-ca.pem, clientCertificate: {certFile: b.pem, keyFile: b.key}}
models: [{name: m, source: m.gguf}]
consumers:
  - {name: c, keysFile: digests, credentials: {b: {bearer: {file: c-bearer}}}}
authentication:
  jwt:
    - {issuer: \"https://one.test\", audiences: [a], jwks: {file: jwks.json}, claims: {consumer: sub}}
    - {issuer: \"https://two.test\", audiences: [a], caFile: issuer.pem, claims: {consumer: sub}}
state:
  budgets: {sqlite: budgets.db}
  limits: {redis: {url: \"rediss://127.0.0.1:1\", caFile: redis.pem, password: {file: password}}}
routes: [{backendRefs: [{name: b}]}]
discovery: {kubernetes: {gatewayClass: c, kubeconfig: kube.yaml}}
";
const READ: [&str; 19] = [
    "acme.pem",
    "b-ca.pem",
    "b.key",
    "b.pem",
    "bearer",
    "c-bearer",
    "clients.pem",
    "digests",
    "endpoints.yaml",
    "hmac",
    "issuer.pem",
    "jwks.json",
    "kube.yaml",
    "l.key",
    "l.pem",
    "m.gguf",
    "password",
    "redis.pem",
    "token",
];

#[test]
fn every_file_that_is_named_is_watched_and_must_exist_unless_the_gateway_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    std::fs::write(&file, EVERY_FILE).unwrap();
    let expected: BTreeSet<PathBuf> = READ.iter().map(|name| folder.path().join(name)).chain([file.clone()]).collect();
    let strict = LoadOptions { offline: false, ..options() };

    let report = load(&file, &strict).unwrap_err();
    let missing = |name: &str| format!("there is no file {}:", folder.path().join(name).display());
    for name in READ {
        let count = report.diagnostics.iter().filter(|d| d.message.contains(&missing(name))).count();
        assert_eq!(count, 1, "{name}: {report}");
    }
    assert_eq!(report.counts(), (READ.len(), 0), "{report}");
    assert_eq!(BTreeSet::from_iter(report.files), expected, "the edit that creates one is seen");

    let offline = load(&file, &options()).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(offline.warnings.counts(), (0, READ.len()), "{}", offline.warnings);

    for name in READ {
        std::fs::write(folder.path().join(name), if name == "endpoints.yaml" { "[]" } else { "# text" }).unwrap();
    }
    let loaded = load(&file, &strict).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(BTreeSet::from_iter(loaded.files), expected);
    let config = loaded.config;
    assert_eq!(*config.state.budgets.sqlite, *folder.path().join("budgets.db"));
    let acme = config.listeners[0].tls.as_ref().unwrap().acme.as_ref().unwrap();
    assert_eq!(*acme.storage, *folder.path().join("state/acme"), "a default too");
}

#[test]
fn secrets_that_cannot_be_read_are_reported_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    let yaml = EVERY_FILE.replace("{file: token}", "{env: UNSET}").replace("{file: c-bearer}", "{env: SET}");
    std::fs::write(&file, yaml).unwrap();
    for name in READ {
        let text = match name {
            "endpoints.yaml" => "[]",
            "password" => "\n",
            _ => "# text",
        };
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let report = load(&file, &LoadOptions { offline: false, ..options() }).unwrap_err();
    let told: Vec<String> = report.diagnostics.iter().map(|d| format!("{} {}", d.path, d.message)).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("admin.token the environment variable `UNSET`, which holds a secret, is not set"));
    assert!(told[1].starts_with("state.limits.redis.password the secret in ") && told[1].contains("is empty"));

    std::fs::write(folder.path().join("password"), "x").unwrap();
    for (path, told) in [(".", "is not a regular file"), ("token/x", "cannot read"), ("gone", "there is no file")] {
        std::fs::write(&file, EVERY_FILE.replace("{file: token}", &format!("{{file: {path}}}"))).unwrap();
        let report = load(&file, &LoadOptions { offline: false, ..options() }).unwrap_err();
        assert_eq!(report.counts(), (1, 0), "{report}");
        assert!(report.to_string().contains(told) && report.to_string().contains("at: admin.token.file"), "{report}");
    }

    let plain = EVERY_FILE.replace("{file: token}", "pl4in-secret");
    let told = common::told(&plain).0;
    assert_eq!(told, ["8: expected a mapping with `env` or `file`, found a string"]);
}
