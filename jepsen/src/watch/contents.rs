//! The whole content of a node, read through its own port: keys by SCAN, and values by type; long values as
//! their hash. Locks, elections and sessions are left out: their replies change with time.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde_json::{Value, json};

use crate::client::{Connection, Outcome, Reply};

/// Longer values are shown by their hash: the history contains each of them ten times.
const BYTES_MAX: usize = 4_096;

/// The content by key, in a canonical form. `is_local` reads the node's own state, however old.
pub(crate) fn read(connection: &mut Connection, is_local: bool) -> Outcome<BTreeMap<String, String>> {
    if is_local {
        connection.call(&["READONLY"])?;
    }
    let mut content = BTreeMap::new();
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = match connection.call(&["SCAN", &cursor, "COUNT", "1000"])? {
            Reply::Array(parts) => match &parts[..] {
                [Reply::Text(next), Reply::Array(keys)] => (next.clone(), keys.clone()),
                _ => return Err(Reply::Array(parts).unexpected()),
            },
            other => return Err(other.unexpected()),
        };
        for key in keys {
            let Reply::Text(key) = key else { return Err(key.unexpected()) };
            if let Some(value) = value(connection, &key)? {
                content.insert(key, value);
            }
        }
        if next == "0" {
            return Ok(content);
        }
        cursor = next;
    }
}

/// A digest of everything that a node holds, including locks and sessions, and the log index that it belongs
/// to.
pub(crate) fn digest(connection: &mut Connection) -> Outcome<Value> {
    match connection.call(&["DEBUG", "DIGEST"])? {
        Reply::Array(parts) => match &parts[..] {
            [Reply::Integer(index), Reply::Text(digest)] => Ok(json!({"index": index, "digest": digest})),
            _ => Err(Reply::Array(parts).unexpected()),
        },
        other => Err(other.unexpected()),
    }
}

fn value(connection: &mut Connection, key: &str) -> Outcome<Option<String>> {
    let Reply::Text(kind) = connection.call(&["TYPE", key])? else { return Ok(None) };
    let mut reply = match kind.as_str() {
        "string" => connection.call(&["GET", key])?,
        "list" => connection.call(&["LRANGE", key, "0", "-1"])?,
        "set" => connection.call(&["SMEMBERS", key])?,
        "hash" => pairs(connection.call(&["HGETALL", key])?),
        "zset" => connection.call(&["ZRANGE", key, "0", "-1", "WITHSCORES"])?,
        _ => return Ok(None),
    };
    if let (Reply::Array(members), "set" | "hash") = (&mut reply, kind.as_str()) {
        members.sort_by_key(|member| format!("{member:?}"));
    }
    let text = text(&reply);
    if text.len() > BYTES_MAX {
        let mut hash = DefaultHasher::new();
        text.hash(&mut hash);
        return Ok(Some(format!("{kind} of {} bytes, {:016x}", text.len(), hash.finish())));
    }
    Ok(Some(format!("{kind} {text}")))
}

/// Pairs each field with its value, so that they can be sorted.
fn pairs(reply: Reply) -> Reply {
    match reply {
        Reply::Array(parts) => {
            Reply::Array(parts.chunks(2).map(|pair| Reply::Array(pair.to_vec())).collect())
        }
        other => other,
    }
}

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Nil => "nil".into(),
        Reply::Integer(integer) => integer.to_string(),
        Reply::Text(text) | Reply::Error(text) => text.clone(),
        Reply::Array(replies) => replies.iter().map(text).collect::<Vec<_>>().join(","),
    }
}
