//! The `tracing` spans of events: `fetch`, `call`, `alarm`, `socket` and `construct`, each with its `object` and
//! `namespace`, entered whenever the event's code runs. What an object logs is so told by object.
//!
//! They are at the level `INFO`, of the target `dormouse_scheduler`. Without a subscriber that wants them, one costs a look
//! at a static number.

use tracing::{Span, info_span};

use super::{Awake, Watch};
use crate::id::Id;

macro_rules! span {
    ($name:literal, $watch:expr, $id:expr, $class:expr) => {
        info_span!(
            target: "dormouse_scheduler",
            parent: None,
            $name,
            object = %$id,
            namespace = &**$watch.namespace($class),
        )
    };
}

/// The span of an event, if somebody wants it; a task of the object's own has that which started it.
pub(crate) fn of_event(watch: &Watch, why: Awake, id: &Id, class: usize) -> Option<Box<Span>> {
    let span = match why {
        Awake::Request => span!("fetch", watch, id, class),
        Awake::Call => span!("call", watch, id, class),
        Awake::Alarm => span!("alarm", watch, id, class),
        Awake::SocketEvent => span!("socket", watch, id, class),
        Awake::Starting => span!("construct", watch, id, class),
        _ => return None,
    };
    (!span.is_disabled()).then(|| Box::new(span))
}
