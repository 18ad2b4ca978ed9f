//! End of a connection that has no request left to serve.

use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::exchange::ConnectionInfo;

/// Waits until a connection must carry no further request: its listener is closed, or the client's certificate expires.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>, connection: &ConnectionInfo) {
    let ended = async {
        match connection.certificate_ends() {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = ended => {}
    }
}
