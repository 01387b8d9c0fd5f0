//! The server's router behind somebody else's server: mounted in axum, beside its own routes.

#![expect(clippy::disallowed_types, reason = "a client on a real network")]
#![expect(clippy::disallowed_methods, reason = "the rig is on the real clock")]

#[path = "server/rig.rs"]
#[expect(dead_code, reason = "what only the server's tests need")]
mod rig;

use std::io::Write;
use std::net::TcpStream;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rig::Rig;
use tower_service::Service as _;
use tungstenite::Message;

#[test]
fn it_is_mounted_in_axum_sockets_and_all() {
    let rig = Rig::new();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let tokio = tokio.unwrap();
    let app = Router::new()
        .route("/health", get(async || "well"))
        .nest_service("/objects", rig.router())
        .layer(axum::middleware::map_response(async |mut response: axum::response::Response| {
            response.headers_mut().insert("x-layer", axum::http::HeaderValue::from_static("mine"));
            response
        }));
    let listener = tokio.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    // What `axum::serve` does, for one connection after the other.
    let served = tokio.handle().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let app = app.clone();
            let service = service_fn(move |request| app.clone().call(request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connection.with_upgrades().await.unwrap();
        }
    });
    let ask = |method: &str, path: &str, body: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        rig::read_answer(&mut stream)
    };
    assert_eq!(ask("GET", "/health", ""), "200 well");
    assert_eq!(ask("POST", "/objects/rooms/a/x?y", "hello"), "200 a POST /x?y hello");
    assert!(ask("GET", "/objects/nothing/a", "").starts_with("404"));
    // The upgrade goes through axum, and frames past it.
    let url = format!("ws://{address}/objects/rooms/a/socket");
    let (mut socket, response) =
        tungstenite::client(url, TcpStream::connect(address).unwrap()).unwrap();
    assert_eq!(response.headers()["x-layer"], "mine");
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
    rig.evict("a");
    socket.send(Message::text("again")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("again"));
    served.abort();
}
