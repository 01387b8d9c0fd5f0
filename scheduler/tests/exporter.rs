//! The Prometheus exporter: what a real GET of `/metrics` answers.

use std::io::{Read, Write};
use std::net::SocketAddr;

use dormouse_scheduler::prelude::*;

struct Counter(State);

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        Self(state)
    }

    async fn fetch(&self, _: Request) -> Result<Response> {
        let n: u64 = self.0.storage().get("n").await?.unwrap_or(0) + 1;
        self.0.storage().put("n", &n).await?;
        metrics::counter!("visits_total").increment(1);
        Response::json(&n)
    }
}

#[expect(clippy::disallowed_types, reason = "a client outside")]
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

#[test]
fn metrics_are_served_on_an_address_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::builder(dir.path()).cores(2).namespace::<Counter>("counters");
    let runtime = runtime.start().expect("a runtime");
    let admin = runtime.serve_metrics("127.0.0.1:0").wait().expect("an address");
    let public = runtime.serve("127.0.0.1:0").wait().expect("an address");
    for _ in 0..3 {
        assert!(get(public, "/counters/mice/").starts_with("HTTP/1.1 200 OK"));
    }

    let text = get(admin, "/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    for line in [
        "# TYPE dormouse_calls_total counter",
        "# TYPE dormouse_call_seconds histogram",
        "# HELP dormouse_resident_objects objects in memory",
        "dormouse_calls_total{namespace=\"counters\"} 3",
        "dormouse_commits_total{namespace=\"counters\"} 3",
        "dormouse_resident_objects{namespace=\"counters\"} 1",
        "dormouse_call_seconds_bucket{namespace=\"counters\",le=\"+Inf\"} 3",
        "dormouse_call_seconds_count{namespace=\"counters\"} 3",
        "dormouse_mailbox_messages{core=\"1\"} 0",
        "visits_total 3",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line}: {text}");
    }

    assert!(get(admin, "/counters/mice/").starts_with("HTTP/1.1 404"), "no object is reached here");
    assert!(get(public, "/metrics").starts_with("HTTP/1.1 404"), "nor metrics there");
    // The recorder is the process's: another runtime shares it.
    let dir = tempfile::tempdir().unwrap();
    let other = Runtime::builder(dir.path()).cores(1).namespace::<Counter>("others");
    let other = other.start().expect("a runtime");
    let admin = other.serve_metrics("127.0.0.1:0").wait().expect("an address");
    assert!(get(admin, "/metrics").contains("dormouse_resident_objects{namespace=\"others\"} 0"));
    other.close().unwrap();
    runtime.close().unwrap();
}
