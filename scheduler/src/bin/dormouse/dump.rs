//! `dump`: the contents of a store as text that depends on nothing else.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::{Contents, Error, Filter, Kind, ObjectId, ObjectInfo};
use futures_util::future::join_all;
use serde::Serialize;

use crate::access::{self, Opened, RealShard};
use crate::print::{self, Text};
use crate::value::Shown;
use crate::{Done, Verdict};

/// Objects that are read at once, and the bytes that they may have together.
const READ_OBJECTS: usize = 64;
const READ_BYTES: u64 = 8 << 20;

/// All contents, a JSON object a line, sorted by id.
///
/// Each line holds `id`, `namespace`, `name` (null where not known), `alarm` (milliseconds since 1970, or
/// null) and `keys`: a list of pairs of key and value, sorted by the keys' bytes. UTF-8 is a string; other
/// bytes are {"hex": "…"}, which no string is. A value that is one of MessagePack, as objects put them, is
/// {"hex": "…", "value": …}. With --all, `version` and `written` (UTC) come after them.
///
/// The same contents give the same text, whatever the store's history and number of shards, unless
/// --all is given. An object that can't be read is said on the error output and left out; then it exits
/// with 1.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store dump data > data.jsonl
  cargo store dump data --namespace rooms | jq -c '[.name, (.keys | length)]'
  diff <(cargo store dump one) <(cargo store dump other)"
)]
pub(crate) struct Dump {
    /// The store's directory.
    dir: PathBuf,
    /// Only objects of this namespace.
    #[arg(long)]
    namespace: Option<String>,
    /// Versions and times of the last write, too.
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    alarm: Option<u64>,
    keys: Vec<(Text<'a>, Shown<'a>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
}

impl Dump {
    pub(crate) fn run(self) -> Done {
        let dir = self.dir.clone();
        access::read(&dir, async move |opened| self.dump(&opened).await)
    }

    async fn dump(&self, opened: &Opened) -> Done {
        let shards = opened.shards().await?;
        let filter =
            Filter { namespace: self.namespace.as_deref().map(Into::into), ..<_>::default() };
        let ids = sorted_ids(&shards, &filter);
        let (mut out, mut whole) = (print::out(), true);
        // Where the text itself goes to the terminal, it is the progress.
        let bar =
            (!std::io::stdout().is_terminal()).then(|| print::bar("objects", ids.len() as u64));
        let mut rest = &ids[..];
        while !rest.is_empty() {
            for (_, read) in read_some(&shards, &mut rest).await {
                match read {
                    Ok(Some((info, contents))) => {
                        print::json(&mut out, &self.line(&info, &contents))?;
                    }
                    Ok(None) => {}
                    Err(error) if error.kind() == Kind::Corrupt => {
                        eprintln!("left out: {error}");
                        whole = false;
                    }
                    Err(error) => return Err(error.into()),
                }
                bar.iter().for_each(|bar| bar.inc(1));
            }
        }
        out.flush()?;
        bar.iter().for_each(|bar| bar.finish_and_clear());
        for shard in shards {
            whole &= access::tell_left_out(&shard.damaged_blocks());
            shard.close().await?;
        }
        Ok(Verdict::fine_if(whole))
    }

    fn line<'a>(&self, info: &'a ObjectInfo, contents: &'a Contents) -> Line<'a> {
        let keys = contents.map.iter();
        Line {
            id: info.id.to_string(),
            namespace: info.namespace.as_deref(),
            name: info.name.as_deref(),
            alarm: contents.alarm,
            keys: keys.map(|(key, value)| (Text::of(key), Shown::of(value))).collect(),
            version: self.all.then_some(info.version.0),
            written: self.all.then(|| print::time(info.written_ms)),
        }
    }
}

/// The ids of all objects that the filter takes: the one thing of each that is held in memory.
pub(crate) fn sorted_ids(shards: &[RealShard], filter: &Filter) -> Vec<ObjectId> {
    let ids = shards.iter().flat_map(|shard| access::objects(shard, filter));
    let mut ids: Vec<_> = ids.map(|object| object.id).collect();
    ids.sort_unstable();
    ids
}

/// What was read of an object; nothing if it does not exist.
pub(crate) type Read = Result<Option<(ObjectInfo, Contents)>, Error>;

/// Reads the next few objects at once and takes their ids off `ids`: not more than some bytes of them, but
/// one at least.
pub(crate) async fn read_some(
    shards: &[RealShard],
    ids: &mut &[ObjectId],
) -> Vec<(ObjectId, Read)> {
    let shard = |id: &ObjectId| {
        let count = u16::try_from(shards.len()).expect("shards are numbered by 16 bits");
        &shards[usize::from(id.shard(count))]
    };
    let mut bytes = 0;
    let fits = |id: &&ObjectId| {
        let info = shard(id).info(id).ok().flatten();
        bytes += info.map_or(0, |info| info.log_bytes);
        bytes <= READ_BYTES
    };
    let few = ids.iter().take(READ_OBJECTS).take_while(fits).count().max(1);
    let (now, later) = ids.split_at(few.min(ids.len()));
    *ids = later;
    join_all(now.iter().map(async |id| (*id, read(shard(id), id).await))).await
}

/// Reads an object. One with neither key nor alarm does not exist, though it may still have an entry.
async fn read(shard: &RealShard, id: &ObjectId) -> Read {
    let Some(info) = shard.info(id)? else { return Ok(None) };
    let contents = shard.load(id).await?;
    let exists = !contents.map.is_empty() || contents.alarm.is_some();
    Ok(exists.then_some((info, contents)))
}
