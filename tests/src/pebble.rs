//! Pebble, the ACME test server of Let's Encrypt, with a DNS server that resolves every name to loopback.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::programs::needed;
use crate::{Authority, PATIENCE, Secure, free_port};

/// Authority that issues certificates by ACME.
pub struct Pebble {
    children: Vec<Child>,
    folder: tempfile::TempDir,
    dns: u16,
    management: SocketAddr,
    /// URL of the ACME directory.
    pub directory: String,
    /// Authority of Pebble's own server certificate.
    pub authority: Authority,
}

impl Pebble {
    /// A Pebble that looks for challenges on these ports and issues certificates valid for `valid` seconds. With an
    /// external account (key name and key in base64url) it requires one. Not started yet.
    pub fn new(http: u16, tls: u16, valid: u64, external: Option<(&str, &str)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::default();
        authority.server(&["127.0.0.1"]).write(folder.path(), "pebble");
        let (listen, management, dns) = (free_port(), free_port(), free_port());
        let keys: serde_json::Map<_, _> = external.iter().map(|(id, key)| ((*id).to_owned(), (*key).into())).collect();
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": folder.path().join("pebble.pem"),
            "privateKey": folder.path().join("pebble.key"),
            "httpPort": http,
            "tlsPort": tls,
            "keyAlgorithm": "ecdsa",
            "externalAccountBindingRequired": external.is_some(),
            "externalAccountMACKeys": keys,
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "short", "validityPeriod": valid}},
        }});
        std::fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        Self {
            children: Vec::new(),
            folder,
            dns,
            management: SocketAddr::from(([127, 0, 0, 1], management)),
            directory: format!("https://127.0.0.1:{listen}/dir"),
            authority,
        }
    }

    /// Starts Pebble and waits until it answers.
    pub async fn run(&mut self) {
        let how = "`scripts/test-tools.sh pebble` builds it";
        let dns = format!("127.0.0.1:{}", self.dns);
        let names = Command::new(needed("SPILLWAY_TEST_PEBBLE_DNS", ".cache/bin/pebble-challtestsrv", how))
            .args(["-dnsserver", &dns, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""])
            .args(["-tlsalpn01", "", "-doh", "", "-management", &format!("127.0.0.1:{}", free_port())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let authority = Command::new(needed("SPILLWAY_TEST_PEBBLE", ".cache/bin/pebble", how))
            .arg("-config")
            .arg(self.folder.path().join("pebble.json"))
            .args(["-dnsserver", &dns])
            .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children = vec![names, authority];
        tokio::time::timeout(PATIENCE, self.root()).await.expect("Pebble answers");
    }

    /// Root certificate of the issued certificates, in PEM.
    pub async fn root(&self) -> String {
        let client = Secure::new(self.management, &self.authority);
        loop {
            if let Ok(answer) = client.get("127.0.0.1", &self.management.to_string(), "/roots/0").await {
                return answer.text();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
