//! `inspect`: one object, its keys and values; and how a command is told which object is meant.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::Args;
use dormouse_engine::{Contents, ObjectId, ObjectInfo};
use dormouse_scheduler::NamespaceKey;
use serde::Serialize;

use crate::access;
use crate::ls::Line;
use crate::print::{self, Out, Text};
use crate::value::Shown;
use crate::{Done, Verdict};

/// Characters of a value that are shown.
const CUT: usize = 100;

/// Which object is meant: its id, or the namespace and name that its id was made from.
#[derive(Args)]
pub(crate) struct Which {
    /// The object's id, 64 hexadecimal digits.
    #[arg(required_unless_present = "name", conflicts_with = "name")]
    id: Option<String>,
    /// The namespace of the object's name.
    #[arg(long, requires = "name")]
    namespace: Option<String>,
    /// The object's name, instead of its id.
    #[arg(long, requires = "namespace")]
    name: Option<String>,
}

impl Which {
    pub(crate) fn id(&self) -> Result<ObjectId> {
        if let (Some(namespace), Some(name)) = (&self.namespace, &self.name) {
            return Ok(NamespaceKey::new(namespace).id_from_name(name).object());
        }
        let mut bytes = [0; ObjectId::BYTES];
        match hex::decode_to_slice(self.id.as_deref().unwrap_or_default(), &mut bytes) {
            Ok(()) => Ok(ObjectId::from_bytes(bytes)),
            Err(_) => bail!("an object's id is 64 hexadecimal digits"),
        }
    }
}

/// One object: what the directory says of it, its keys and values.
///
/// Values are shown on one line, text as it is, with backslashes, control characters and bytes that are
/// no UTF-8 escaped, and cut after 100 characters. Exits with 1 if there is no such object or key.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store inspect data 2225079e58bee60f097055c8b2a88eb5647bd2d337894f77e8e5ad6c2e78452f
  cargo store inspect data --namespace rooms --name lobby --full
  cargo store inspect data --namespace rooms --name lobby --key topic --json | jq .keys

In JSON, `keys` is a list of pairs of key and value; bytes that are no UTF-8 are {\"hex\": \"…\"}, values
of MessagePack, as objects put them, {\"hex\": \"…\", \"value\": …}."
)]
pub(crate) struct Inspect {
    /// The store's directory.
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Whole values.
    #[arg(long)]
    full: bool,
    /// Only this key, as it is or as it is shown, with its whole value.
    #[arg(long)]
    key: Option<String>,
    /// One JSON document, with whole values.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    info: Line<'a>,
    keys: Vec<(Text<'a>, Shown<'a>)>,
}

impl Inspect {
    pub(crate) fn run(self) -> Done {
        let id = self.which.id()?;
        let dir = self.dir.clone();
        access::read(&dir, async move |opened| {
            let shard = opened.shard_of(&id).await?;
            let Some(info) = shard.info(&id)? else {
                eprintln!("object {id} does not exist");
                return Ok(Verdict::Not);
            };
            let contents = shard.load(&id).await?;
            shard.close().await?;
            self.show(&info, &contents)
        })
    }

    fn show(&self, info: &ObjectInfo, contents: &Contents) -> Done {
        let wanted = |(key, _): &(&Bytes, &Bytes)| {
            let is = |wanted: &str| *key == wanted.as_bytes() || print::escaped(key) == wanted;
            self.key.as_deref().is_none_or(is)
        };
        let keys: Vec<_> = contents.map.iter().filter(wanted).collect();
        if let Some(key) = self.key.as_deref().filter(|_| keys.is_empty()) {
            eprintln!("object {} has no key {key}", info.id);
            return Ok(Verdict::Not);
        }
        let mut out = print::out();
        match self.json {
            true => print::json(&mut out, &Object::of(info, &keys))?,
            false => self.print(&mut out, info, &keys)?,
        }
        out.flush()?;
        Ok(Verdict::Fine)
    }

    fn print(&self, out: &mut Out, info: &ObjectInfo, keys: &[(&Bytes, &Bytes)]) -> Result<()> {
        let (namespace, name) = (info.namespace.as_deref(), info.name.as_deref());
        writeln!(out, "object {}", info.id)?;
        writeln!(out, "namespace {}, name {}", print::name(namespace), print::name(name))?;
        let (written, alarm) = (print::time(info.written_ms), print::time_or_none(info.alarm));
        writeln!(out, "version {}, written {written}, alarm {alarm}", info.version)?;
        let bytes: usize = keys.iter().map(|(key, value)| key.len() + value.len()).sum();
        let log_bytes = info.log_bytes;
        writeln!(out, "{} keys, {bytes} bytes; {log_bytes} bytes in the log", keys.len())?;
        for (key, value) in keys {
            let mut shown = Shown::of(value).line();
            if !self.full && self.key.is_none() {
                shown = print::cut(shown, CUT);
            }
            writeln!(out, "{} = {shown} ({} bytes)", print::escaped(key), value.len())?;
        }
        Ok(())
    }
}

impl<'a> Object<'a> {
    fn of(info: &'a ObjectInfo, keys: &[(&'a Bytes, &'a Bytes)]) -> Self {
        let keys = keys.iter().map(|(key, value)| (Text::of(key), Shown::of(value))).collect();
        Self { info: Line::of(info), keys }
    }
}
