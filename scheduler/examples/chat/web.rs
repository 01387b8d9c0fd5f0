//! Which path is what: the page for people, sockets for rooms, new ids for private ones.
//!
//! `/rooms/NAME` is a public room, `/rooms/ID` a private one: only who knows the 64 digits of its id
//! finds it. Looking at the page wakes no room, and no path leads to another kind of object.

use std::path::Path;
use std::time::Duration;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Route, Router, ServerOptions, StackLimits};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::limiter::RateLimiter;
use super::room::{self, Room};

const PAGE: &str = include_str!("chat.html");
/// Characters of a public room's name.
const ROOM_NAME_MAX: usize = 32;

/// Opens the rooms in `dir`; each is awake for `idle` with nothing to do.
pub(crate) fn start(
    dir: impl AsRef<Path>,
    idle: Duration,
    cores: Option<usize>,
) -> Result<Runtime> {
    room::set_idle(idle);
    let limits = StackLimits { idle, ..StackLimits::PRODUCTION };
    let builder = Runtime::builder(dir).limits(limits);
    let builder = builder.namespace::<Room>("rooms").namespace::<RateLimiter>("limiters");
    cores.into_iter().fold(builder, |builder, cores| builder.cores(cores)).start()
}

pub(crate) fn router(runtime: &Runtime) -> Router {
    let rooms = runtime.namespace();
    runtime.router(ServerOptions::PRODUCTION).before(move |request| Some(route(request, &rooms)))
}

fn route(request: &Parts, rooms: &Namespace<Room>) -> Route {
    let is_get = request.method == Method::GET;
    match request.uri.path().trim_end_matches('/') {
        "" if is_get => page(),
        "/rooms" if request.method == Method::POST => {
            text(StatusCode::CREATED, rooms.new_unique_id().to_string())
        }
        path => match path.strip_prefix("/rooms/").map(|name| find(rooms, name)) {
            Some(Ok(room)) if asks_for_socket(request) => room.into(),
            Some(Ok(_)) if is_get => page(),
            Some(Err(why)) => text(StatusCode::NOT_FOUND, why),
            _ => text(StatusCode::NOT_FOUND, "There is nothing here.".to_owned()),
        },
    }
}

/// The room of a name, or of an id.
fn find(rooms: &Namespace<Room>, name: &str) -> Result<Stub<Room>, String> {
    let name = percent_decode_str(name).decode_utf8();
    let name = name.map_err(|_| "A room's name is UTF-8.".to_owned())?;
    if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let id = rooms.id_from_string(&name);
        return id.map(|id| rooms.get(id)).map_err(|_| "There is no such private room.".to_owned());
    }
    let len = name.chars().count();
    if len == 0 || len > ROOM_NAME_MAX || name.contains('/') || name.chars().any(char::is_control) {
        return Err(format!(
            "A room's name has 1 to {ROOM_NAME_MAX} characters, none of them a /."
        ));
    }
    Ok(rooms.get_by_name(&name))
}

fn asks_for_socket(request: &Parts) -> bool {
    request.headers.contains_key(http::header::UPGRADE)
}

fn page() -> Route {
    answer(StatusCode::OK, "text/html; charset=utf-8", PAGE.into())
}

fn text(status: StatusCode, text: String) -> Route {
    answer(status, "text/plain; charset=utf-8", (text + "\n").into())
}

fn answer(status: StatusCode, kind: &'static str, body: Body) -> Route {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.into()
}
