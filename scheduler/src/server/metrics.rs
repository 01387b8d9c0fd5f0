//! A Prometheus exporter: the process's recorder of metrics, and the router that answers `/metrics`.

use std::sync::{Mutex, OnceLock};

use dormouse_engine as engine;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{Router, ServerOptions};
use crate::error::Result;
use crate::http::Response;
use crate::topology::Topology;

/// Upper bounds of the buckets of times, in seconds: from what a call takes to what a client waits for.
const SECONDS: [f64; 15] =
    [1e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0, 10.0];
/// Of sizes, in bytes.
const BYTES: [f64; 8] =
    [4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0, 262_144.0, 1_048_576.0];
/// Of numbers.
const NUMBERS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0];

/// The recorder, once it is installed; there is one for the process.
static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
/// Held while it is being installed.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Installs the recorder, if this was not done before.
///
/// Errors: `Invalid`, code `recorder-there`: another recorder is installed.
fn install() -> Result<&'static PrometheusHandle> {
    let _one_at_a_time = INSTALLING.lock().expect("no code panics under it");
    if let Some(handle) = INSTALLED.get() {
        return Ok(handle);
    }
    let handle = build().map_err(|error| {
        let text =
            format!("a recorder of metrics is installed already ({error}): serve what it holds");
        engine::Error::coded(engine::Kind::Invalid, "recorder-there", text)
    })?;
    Ok(INSTALLED.get_or_init(|| handle))
}

fn build() -> Result<PrometheusHandle, BuildError> {
    let suffix = |suffix: &str| Matcher::Suffix(suffix.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(suffix("_seconds"), &SECONDS)?
        .set_buckets_for_metric(suffix("_bytes"), &BYTES)?
        .set_buckets_for_metric(suffix("_commits"), &NUMBERS)?
        .install_recorder()
}

/// Puts values that were told into their buckets: until then each takes memory.
pub(crate) fn upkeep() {
    INSTALLED.get().into_iter().for_each(PrometheusHandle::run_upkeep);
}

/// Answers `/metrics`, and nothing else.
///
/// Errors: as [`install`].
pub(crate) fn router(topology: &Topology) -> Result<Router> {
    let handle = install()?;
    let published = topology.clone();
    let answer = move |request: &mut Parts| {
        let is_asked = request.uri.path() == "/metrics" && request.method == Method::GET;
        let mut response = Response::new(String::new().into());
        if is_asked {
            published.publish_metrics();
            response = Response::new(handle.render().into());
            let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
        } else {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        Some(response.into())
    };
    Ok(Router::new(topology.clone(), ServerOptions::PRODUCTION).before(answer))
}
