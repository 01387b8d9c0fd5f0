//! Reading pages and values.

use std::rc::Rc;

use bytes::Bytes;

use super::Root;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::frame::{Address, Kind};
use crate::format::page::{Page, Value, decode_value};
use crate::ids::ObjectId;
use crate::load::{Loaded, place, read_frames};
use crate::shard::Inner;

/// Frames that are read at once where a whole tree is looked at.
pub(super) const AT_ONCE: usize = 32;

fn wrong(id: &ObjectId, address: Address, what: &str) -> Error {
    Error::corrupt(format!("{}: {what}", place(id, address)))
}

async fn read<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    wanted: &[Address],
    kind: Kind,
) -> Result<Vec<Loaded>> {
    let loaded = read_frames(inner, id, wanted).await?;
    let odd = loaded.iter().position(|loaded| loaded.kind != kind);
    match odd {
        Some(at) => Err(wrong(id, wanted[at], "another frame of the object than its tree names")),
        None => Ok(loaded),
    }
}

/// Reads pages of one level, neighbours with one read.
///
/// Errors: `Corrupt`, with the place; `Retry`.
pub(super) async fn pages<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    wanted: &[Address],
    level: u8,
) -> Result<Vec<Page>> {
    let loaded = read(inner, id, wanted, Kind::Page).await?;
    let page = |(loaded, address): (Loaded, &Address)| {
        let page = Page::decode(&loaded.payload);
        let page = page.map_err(|why| wrong(id, *address, &why.to_string()))?;
        match page.level() == level {
            true => Ok(page),
            false => Err(wrong(id, *address, "a page of another level")),
        }
    };
    loaded.into_iter().zip(wanted).map(page).collect()
}

/// Reads the values of keys that lie in frames of their own.
///
/// Errors: as [`pages`].
pub(crate) async fn values<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    wanted: &[(Bytes, Address, u32)],
) -> Result<Vec<Bytes>> {
    let addresses: Vec<_> = wanted.iter().map(|(_, address, _)| *address).collect();
    let loaded = read(inner, id, &addresses, Kind::Value).await?;
    let value = |(loaded, (key, address, bytes)): (Loaded, &(Bytes, Address, u32))| {
        let read = decode_value(&loaded.payload);
        let (its_key, value) = read.map_err(|why| wrong(id, *address, &why.to_string()))?;
        match its_key == *key && value.len() == *bytes as usize {
            true => Ok(value),
            false => Err(wrong(id, *address, "the value of another key")),
        }
    };
    loaded.into_iter().zip(wanted).map(value).collect()
}

/// The child that a key is in.
pub(super) fn child_of(children: &[(Bytes, Address)], key: &[u8]) -> usize {
    children.partition_point(|(separator, _)| separator[..] <= *key).saturating_sub(1)
}

/// The value of a key in the tree below `root`: one page a level is read, and the value where it lies apart.
///
/// Errors: as [`pages`].
pub(crate) async fn get<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    root: &Root,
    key: &[u8],
) -> Result<Option<Bytes>> {
    let mut page = root.page.clone();
    loop {
        match page {
            Page::Inner(level, children) => {
                let (_, child) = children[child_of(&children, key)];
                let read = pages(inner, id, &[child], level - 1).await?;
                page = read.into_iter().next().expect("one was wanted");
            }
            Page::Leaf(entries) => {
                let found = entries.binary_search_by(|(its_key, _)| its_key[..].cmp(key));
                return match found.map(|at| entries[at].clone()) {
                    Err(_) => Ok(None),
                    Ok((_, Value::Inline(value))) => Ok(Some(value)),
                    Ok((key, Value::Apart { address, bytes })) => {
                        Ok(values(inner, id, &[(key, address, bytes)]).await?.pop())
                    }
                };
            }
        }
    }
}

/// All pages and values of the tree below `root`, read one after the other.
///
/// Errors: as [`pages`].
pub(crate) async fn frames<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    root: &Root,
) -> Result<Vec<Address>> {
    let (mut all, mut open) = (Vec::new(), vec![root.page.clone()]);
    while let Some(page) = open.pop() {
        match page {
            Page::Inner(level, children) => {
                for some in children.chunks(AT_ONCE) {
                    let wanted: Vec<_> = some.iter().map(|(_, address)| *address).collect();
                    open.extend(pages(inner, id, &wanted, level - 1).await?);
                    all.extend(wanted);
                }
            }
            Page::Leaf(entries) => {
                let apart: Vec<_> = entries.into_iter().filter_map(apart).collect();
                for some in apart.chunks(AT_ONCE) {
                    values(inner, id, some).await?;
                }
                all.extend(apart.into_iter().map(|(_, address, _)| address));
            }
        }
    }
    Ok(all)
}

/// A key whose value lies in a frame of its own.
pub(super) fn apart((key, value): (Bytes, Value)) -> Option<(Bytes, Address, u32)> {
    match value {
        Value::Inline(_) => None,
        Value::Apart { address, bytes } => Some((key, address, bytes)),
    }
}
