//! Everything that a node holds, read through its own port: keys by SCAN, and what they hold by type. Locks are
//! left out: what they answer changes with the time.

use std::collections::BTreeMap;

use crate::client::{Connection, Outcome, Reply};

/// The content by key, in one form for equal content. `is_local` reads the node's own state, however old.
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

fn value(connection: &mut Connection, key: &str) -> Outcome<Option<String>> {
    let Reply::Text(kind) = connection.call(&["TYPE", key])? else { return Ok(None) };
    let mut reply = match kind.as_str() {
        "string" => connection.call(&["GET", key])?,
        "list" => connection.call(&["LRANGE", key, "0", "-1"])?,
        "set" => connection.call(&["SMEMBERS", key])?,
        _ => return Ok(None),
    };
    if let (Reply::Array(members), "set") = (&mut reply, kind.as_str()) {
        members.sort_by_key(|member| format!("{member:?}"));
    }
    Ok(Some(format!("{kind} {}", text(&reply))))
}

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Nil => "nil".into(),
        Reply::Integer(integer) => integer.to_string(),
        Reply::Text(text) | Reply::Error(text) => text.clone(),
        Reply::Array(replies) => replies.iter().map(text).collect::<Vec<_>>().join(","),
    }
}
